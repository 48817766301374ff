"""One ridge regression for all items, for the policies whose expected rewards are linear."""

from __future__ import annotations

import numpy as np

from service.policies._base import Array, Arrays, fade
from service.policies._linalg import psd_cholesky

REFRESH = 4096  # events after which the running inverse is solved anew from the sums: no drift, however many come


class Ridge:
    """Ridge regression of rewards on rows, one event after the other.

    A = ridge I + Σ w x xᵀ (d, d), b = Σ w r x (d,), θ = A⁻¹ b (d,), over all events, each with what is left of its
    weight w. The sums are kept without the prior and in units of `_weight`. Beside them run A⁻¹ and θ, by the
    Sherman-Morrison formula: they say what each event was expected to bring. What is served is solved from the sums.
    """

    def __init__(self, d: int, ridge: float) -> None:
        self.d, self.ridge = d, ridge
        self._outer, self._b, self._mass = np.zeros((d, d)), np.zeros(d), 0.0
        self._weight = 1.0  # of one event in the sums
        self.events = 0
        self._restart()

    def update(self, x: Array, reward: Array) -> Array:
        """Learn from rows (B, d), float64 and finite, and rewards (B,); the expected reward of each, (B,)."""
        expected = np.empty(len(x))
        for at, (row, r) in enumerate(zip(x, reward.tolist(), strict=True)):
            expected[at] = e = float(self._theta @ row)
            Sx = self._inverse @ row
            g = 1.0 / (1.0 + max(float(row @ Sx), 0.0))
            self._theta += (g * (r - e)) * Sx
            self._inverse -= g * np.multiply.outer(Sx, Sx)
            self._outer += self._weight * np.multiply.outer(row, row)
            self._b += (self._weight * r) * row
            self._mass += self._weight
            self.events += 1
            if self.events % REFRESH == 0:
                self._restart()
        return expected

    def forget(self, keep: float) -> None:
        self._weight, scale = fade(self._weight, keep)
        if scale != 1:
            self._outer *= scale
            self._b *= scale
            self._mass *= scale
        self._restart()

    def _restart(self) -> None:
        self._theta, root = self.solve()
        self._inverse = root.T @ root

    def solve(self) -> tuple[Array, Array]:
        """θ (d,) and a root (d, d) of A⁻¹ = rootᵀ root.

        Raises:
            NumericalError: A cannot be factored.
        """
        eye = np.eye(self.d)
        root = np.linalg.solve(psd_cholesky(self._outer / self._weight + self.ridge * eye), eye)
        return root.T @ (root @ (self._b / self._weight)), root

    @property
    def mass(self) -> float:
        """How many events all the evidence is worth."""
        return self._mass / self._weight

    def state(self) -> Arrays:
        return {
            "outer": self._outer.copy(),
            "b": self._b.copy(),
            "inverse": self._inverse.copy(),
            "theta": self._theta.copy(),
            "weights": np.array([self._mass, self._weight]),
            "events": np.array([self.events]),
        }

    def load(self, state: Arrays) -> None:
        self._outer, self._b = state["outer"].copy(), state["b"].copy()
        self._inverse, self._theta = state["inverse"].copy(), state["theta"].copy()
        self._mass, self._weight = state["weights"].tolist()
        self.events = int(state["events"][0])
