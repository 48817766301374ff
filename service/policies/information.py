"""Keeps a growing information matrix together with its inverse, and the mean that is learned with them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from service.policies.base import Array, Arrays
from service.policies.linalg import add_products, pack, root_of_inverse, unpack

WAITING = 16  # events whose rank-one changes are added to the matrices in one product
REFRESH = 4096  # events after which an owner solves the inverse anew, so that rounding errors do not add up


class Information:
    """Keeps A (d, d), which grows by a x xᵀ per event, S (d, d), which shrinks by c (Sx)(Sx)ᵀ, and the mean m (d,).

    With c = a / (1 + a xᵀSx), S stays the inverse of A (Sherman & Morrison 1950). The mean moves by a multiple of Sx.

    Events come in blocks of WAITING. Within one, nothing is done to d × d or d numbers: with S and m as they were when
    the block began, y = S x of each of its events, and P the products yₖᵀxⱼ, all in one product each, event k finds

        hⱼ = (Sⱼxⱼ)ᵀxₖ = Σᵢ Tⱼᵢ Pₖᵢ,   xₖᵀSₖxₖ = Pₖₖ - Σ cⱼ hⱼ²,   mₖᵀxₖ = mᵀxₖ + Σ stepⱼ hⱼ   (j < k),

    where Sₖ, mₖ are those after k events, and T (WAITING, WAITING) says Sⱼxⱼ = Σᵢ Tⱼᵢ yᵢ. Its row k is eₖ - Σ cⱼ hⱼ Tⱼ.
    All products are of the same shapes, however many events have come, and those that have not are rows of zeros: so
    the result is the same, bit for bit, in whatever parts a block comes.

    Args:
        A, S: the initial matrices, exactly symmetric.

    Attributes:
        mean: (d,). It may be replaced while no event waits.
    """

    def __init__(self, A: Array, S: Array) -> None:
        self._d = len(A)
        self.mean = np.zeros(self._d)
        self.set(A, S)

    def set(self, A: Array, S: Array) -> None:
        """Replace both matrices, exactly symmetric. No event waits afterwards."""
        self._A, self._S = A, S
        self._begin_block()

    def _begin_block(self) -> None:
        self._waiting = 0
        self._x, self._Sx, self._grow, self._shrink = np.zeros((4, WAITING, self._d))
        self._said: list[tuple[float, float, float]] = []  # step, c and a of each event
        self._T, self._minus_c = np.zeros((WAITING, WAITING)), np.zeros(WAITING)
        self._weights = np.zeros((2, WAITING))  # -cⱼ hⱼ and stepⱼ, for the event at hand

    def restart(self, A: Array) -> None:
        """Replace A, exactly symmetric, and solve S anew as its inverse.

        Raises:
            NumericalError: A cannot be factored. Nothing is changed.
        """
        root = root_of_inverse(A)
        self.set(A, root.T @ root)

    def parts(self, size: int, events: int) -> Iterator[slice]:
        """Cut so many events into parts for `enter`: none goes beyond a block, or beyond a REFRESH.

        Args:
            events: learned before them.
        """
        start = 0
        while start < size:
            stop = min(size, start + WAITING - self._waiting, start + REFRESH - (events + start) % REFRESH)
            yield slice(start, stop)
            start = stop

    def enter(self, x: Array) -> None:
        """Take in a part, x (B, d). Then come `look` and `learn` for each of its events, and `leave`."""
        if self._waiting == 0:
            self._begin = self.mean
        self._x[self._waiting : self._waiting + len(x)] = x
        self._multiply()

    def _multiply(self) -> None:
        np.matmul(self._x, self._S, out=self._Sx)
        self._products = self._Sx @ self._x.T
        self._squares: list[float] = self._products.diagonal().tolist()
        self._values: list[float] = (self._x @ self._begin).tolist()

    def look(self) -> tuple[float, float]:
        """Return mᵀx and xᵀSx ≥ 0 of the next event."""
        at, weights = self._waiting, self._weights
        h = self._T @ self._products[at]
        np.multiply(self._minus_c, h, out=weights[0])
        less, more = (weights @ h).tolist()
        return self._values[at] + more, max(self._squares[at] + less, 0.0)

    def learn(self, step: float, shrink: float, grow: float) -> None:
        """Learn the event that `look` was about: m += step S x, S -= shrink (Sx)(Sx)ᵀ, A += grow x xᵀ."""
        at = self._waiting
        row = self._T[at]
        np.matmul(self._weights[0], self._T, out=row)
        row[at] = 1.0
        self._weights[1, at], self._minus_c[at] = step, -shrink
        self._said.append((step, shrink, grow))
        self._waiting += 1

    def leave(self) -> None:
        """End a part, and the block if it is full."""
        Sx = self._T @ self._Sx  # Sⱼxⱼ, one a row
        roots = np.zeros((2, WAITING))
        roots[:, : self._waiting] = np.sqrt([(shrink, grow) for _, shrink, grow in self._said]).T
        np.multiply(roots[0, :, None], Sx, out=self._shrink)
        np.multiply(roots[1, :, None], self._x, out=self._grow)
        self.mean = self._begin + self._weights[1] @ Sx
        if self._waiting == WAITING:
            add_products(self._A, self._grow)
            add_products(self._S, self._shrink, op=np.subtract)
            self._begin_block()

    @property
    def matrix(self) -> Array:
        """A (d, d)."""
        A = self._A.copy()
        add_products(A, self._grow)
        return A

    @property
    def inverse(self) -> Array:
        """S (d, d)."""
        S = self._S.copy()
        add_products(S, self._shrink, op=np.subtract)
        return S

    def state(self) -> Arrays:
        """Copy the matrices as they were when the block began, and its k events.

        Returns:
            `matrices` (2, P), packed; `waiting` (2, k, d): √a x and √c S x, from which a learner of the version before
            goes on; and, to go on bit for bit, `block_x` (k, d); `block_said` (k, 3): step, c and a; `block_mean`
            (1, d) as it was when the block began, (0, d) if k = 0.
        """
        k = self._waiting
        return {
            "matrices": pack(np.stack([self._A, self._S])),
            "waiting": np.stack([self._grow, self._shrink])[:, :k].copy(),
            "block_x": self._x[:k].copy(),
            "block_said": np.array(self._said, dtype=np.float64).reshape(k, 3),
            "block_mean": self._begin[None].copy() if k else np.zeros((0, self._d)),
        }

    def load(self, state: Arrays) -> None:
        """Replace the matrices and the waiting events by those of a `state()`; the mean is for the owner to replace."""
        self.set(*unpack(state["matrices"], self._d))
        if "block_x" not in state:  # of a version whose events waited each for itself: the matrices take them in
            self._grow[: state["waiting"].shape[1]], self._shrink[: state["waiting"].shape[1]] = state["waiting"]
            self.set(self.matrix, self.inverse)
            return
        x, said = state["block_x"], state["block_said"]
        if len(x):
            self._begin = state["block_mean"][0].copy()
            self._x[: len(x)] = x
            self._multiply()
            for step, shrink, grow in said.tolist():
                self.look()
                self.learn(step, shrink, grow)
            self.leave()
