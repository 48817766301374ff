"""Keeps a growing information matrix together with its inverse."""

from __future__ import annotations

import math

import numpy as np

from service.policies.base import Array, Arrays
from service.policies.linalg import pack, root_of_inverse, unpack

WAITING = 16  # events whose rank-one changes are added to the matrices in one product
REFRESH = 4096  # events after which an owner solves the inverse anew, so that rounding errors do not add up


class Information:
    """Keeps A (d, d), which grows by a x xᵀ per event, and S (d, d), which shrinks by c (Sx)(Sx)ᵀ.

    With c = a / (1 + a xᵀSx), S stays the inverse of A (Sherman & Morrison 1950).

    Writing d × d numbers per event would dominate the cost. So the newest events wait as rows of two small matrices:
    A = A' + growᵀ grow and S = S' - shrinkᵀ shrink. Every WAITING-th event updates A' and S', whatever the batches.

    Args:
        A, S: the initial matrices, exactly symmetric.
    """

    def __init__(self, A: Array, S: Array) -> None:
        self._d = len(A)
        self.set(A, S)

    def set(self, A: Array, S: Array) -> None:
        """Replace both matrices, exactly symmetric. No event waits afterwards."""
        self._A, self._S = A, S
        self._grow, self._shrink = np.zeros((2, WAITING, self._d))
        self._waiting = 0

    def restart(self, A: Array) -> None:
        """Replace A, exactly symmetric, and solve S anew as its inverse.

        Raises:
            NumericalError: A cannot be factored. Nothing is changed.
        """
        root = root_of_inverse(A)
        self.set(A, root.T @ root)

    def add(self, x: Array, a: float, Sx: Array, c: float) -> None:
        """Add one event: x (d,), S x (d,), a ≥ 0 and c ≥ 0."""
        self._grow[self._waiting] = math.sqrt(a) * x
        self._shrink[self._waiting] = math.sqrt(c) * Sx
        self._waiting += 1
        if self._waiting == WAITING:
            self.set(self.matrix, self.inverse)

    def inverse_times(self, x: Array) -> Array:
        """Compute S x (d,)."""
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
        """Copy `matrices` (2, P), packed, and the events that wait, `waiting` (2, 0 to WAITING - 1, d)."""
        waiting = np.stack([self._grow, self._shrink])[:, : self._waiting]
        return {"matrices": pack(np.stack([self._A, self._S])), "waiting": waiting.copy()}

    def load(self, state: Arrays) -> None:
        """Replace both matrices and the waiting events by those of a `state()`."""
        self.set(*unpack(state["matrices"], self._d))
        self._waiting = state["waiting"].shape[1]
        self._grow[: self._waiting], self._shrink[: self._waiting] = state["waiting"]
