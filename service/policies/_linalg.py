"""Symmetric matrices for the ridge policies: factored, packed, applied; and the check of what they are made from.

All in float64. A symmetric (d, d) matrix travels packed: its upper triangle row by row, P = d (d + 1) / 2 numbers.
Stacks of m matrices are worked on in blocks of rows that fit the cache, and each matrix by itself: what comes out for
one does not depend on which others stand beside it, bit for bit.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from functools import lru_cache

import numpy as np

from service.policies._base import Array, Arrays, Batch, NumericalError

WAITING = 16  # events whose rank-one changes are made to a matrix in one product
BLOCK = 1 << 17  # numbers worked on at once: 1 MB
JITTERS = (0.0, *(10.0**k for k in range(-12, -5)))  # of the mean diagonal element


class NotPSD(NumericalError):
    """A matrix that should be positive definite is not, and not by rounding alone."""


def finite_batch(batch: Batch, d: int) -> Array:
    """The batch's features as (B, d) float64.

    Raises:
        ValueError: they have another shape.
        NumericalError: a feature or a reward is not finite.
    """
    if batch.x.ndim != 2 or batch.x.shape[1] != d:
        raise ValueError(f"features of shape {batch.x.shape}, expected (B, {d})")
    if not (np.isfinite(batch.x).all() and np.isfinite(batch.reward).all()):
        raise NumericalError("a feature or a reward is not finite")
    return batch.x.astype(np.float64)


def psd_cholesky(A: Array) -> Array:
    """Lower Cholesky factors (..., d, d) of symmetric positive definite matrices (..., d, d).

    A matrix that is singular to working precision gets a multiple of the identity added: 10⁻¹² of its mean diagonal
    element, then ten times that, up to 10⁻⁶, with a RuntimeWarning that says how much.

    Raises:
        NumericalError: a matrix is not finite.
        NotPSD: a matrix is not positive definite even then.
    """
    if not np.isfinite(A).all():
        raise NumericalError("cannot factor a matrix that is not finite")
    try:
        factors: Array = np.linalg.cholesky(A)
    except np.linalg.LinAlgError:  # it does not say which one
        each = [_cholesky_with_jitter(one) for one in A.reshape(-1, *A.shape[-2:])]
        factors = np.stack(each).reshape(A.shape)
    return factors


def _cholesky_with_jitter(A: Array) -> Array:
    """The factor (d, d) of one matrix (d, d)."""
    scale = np.trace(A) / len(A)
    for jitter in JITTERS:
        try:
            factor: Array = np.linalg.cholesky(A + jitter * scale * np.eye(len(A)))
        except np.linalg.LinAlgError:
            continue
        if jitter:
            warnings.warn(f"matrix singular to working precision; added {jitter:.0e} of its scale", RuntimeWarning, 3)
        return factor
    raise NotPSD(f"matrix ({len(A)}, {len(A)}) with mean diagonal {scale:g} is not positive definite")


def root_of_inverse(A: Array) -> Array:
    """root (d, d), for which A⁻¹ = rootᵀ root; for A (d, d) symmetric positive definite.

    Raises:
        NumericalError: A cannot be factored.
    """
    root: Array = np.linalg.solve(psd_cholesky(A), np.eye(len(A)))
    return root


class Information:
    """A (d, d), to which every event adds a x xᵀ, and beside it S (d, d), from which it takes c (Sx)(Sx)ᵀ.

    With c = a / (1 + a xᵀSx) that keeps S the inverse of A (Sherman & Morrison 1950). To write d × d numbers for every
    event would cost several times what all else does. So the newest events wait as rows of two small matrices:
    A = A' + growᵀ grow, S = S' - shrinkᵀ shrink. At every WAITING-th, in whatever batches they came, A' and S' change.
    """

    def __init__(self, A: Array, S: Array) -> None:
        self._d = len(A)
        self.set(A, S)

    def set(self, A: Array, S: Array) -> None:
        """Both are exactly symmetric, and nothing waits."""
        self._A, self._S = A, S
        self._grow, self._shrink = np.zeros((2, WAITING, self._d))
        self._waiting = 0

    def add(self, x: Array, a: float, Sx: Array, c: float) -> None:
        """One event: x (d,), S x (d,), a and c ≥ 0."""
        self._grow[self._waiting] = math.sqrt(a) * x
        self._shrink[self._waiting] = math.sqrt(c) * Sx
        self._waiting += 1
        if self._waiting == WAITING:
            self.set(self.matrix, self.inverse)

    def inverse_times(self, x: Array) -> Array:
        """S x (d,)."""
        Sx: Array = self._S @ x - (self._shrink @ x) @ self._shrink
        return Sx

    @property
    def matrix(self) -> Array:
        """A (d, d)."""
        A: Array = self._A + self._grow.T @ self._grow
        return A

    @property
    def inverse(self) -> Array:
        """S (d, d)."""
        S: Array = self._S - self._shrink.T @ self._shrink
        return S

    def state(self) -> Arrays:
        """matrices (2, P), packed, and what waits (2, 0 to WAITING - 1, d)."""
        waiting = np.stack([self._grow, self._shrink])[:, : self._waiting]
        return {"matrices": pack(np.stack([self._A, self._S])), "waiting": waiting.copy()}

    def load(self, state: Arrays) -> None:
        self.set(*unpack(state["matrices"], self._d))
        self._waiting = state["waiting"].shape[1]
        self._grow[: self._waiting], self._shrink[: self._waiting] = state["waiting"]


@lru_cache(maxsize=16)
def packed_index(d: int) -> tuple[Array, Array]:
    """Row and column of each of the P packed elements: two arrays (P,)."""
    return np.triu_indices(d)


def pack(A: Array) -> Array:
    """(m, d, d) → (m, P)."""
    left, right = packed_index(A.shape[-1])
    packed: Array = np.ascontiguousarray(A[:, left, right])  # the index alone leaves it column by column
    return packed


def unpack(packed: Array, d: int) -> Array:
    """(m, P) → (m, d, d)."""
    left, right = packed_index(d)
    place = np.empty((d, d), dtype=np.intp)
    place[left, right] = place[right, left] = np.arange(len(left))
    return packed.take(place, axis=1)


def packed_outer(x: Array) -> Iterator[Array]:
    """The packed x xᵀ (P,) of each row of x (B, d), in order."""
    left, right = packed_index(x.shape[1])
    for rows in blocks(len(x), len(left)):
        yield from x[rows].take(left, axis=1) * x[rows].take(right, axis=1)


def matvec(stack: Array, rows: Array, x: Array) -> Array:
    """stack[rowsᵢ] xᵢ for each row of x (n, d): (n, e), from a stack (m, e, d)."""
    out = np.empty((len(x), stack.shape[1]))
    for part in blocks(len(x), stack[0].size):
        np.matvec(take(stack, rows[part]), x[part], out=out[part])
    return out


def take(stack: Array, rows: Array) -> Array:
    """stack[rows], as a view if the rows are consecutive: copying matrices costs more than using them."""
    start, stop = int(rows[0]), int(rows[-1]) + 1
    consecutive = stop - start == len(rows) and (rows == np.arange(start, stop)).all()
    taken: Array = stack[start:stop] if consecutive else stack[rows]
    return taken


def blocks(n: int, width: int) -> Iterator[slice]:
    """0 … n in slices of about BLOCK / width rows."""
    step = max(1, BLOCK // width)
    return (slice(start, min(start + step, n)) for start in range(0, n, step))
