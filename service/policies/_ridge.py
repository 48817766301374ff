"""One ridge regression for all items, for the policies whose expected rewards are linear."""

from __future__ import annotations

from contextlib import suppress

import numpy as np

from service.policies._base import Array, Arrays, NumericalError, fade
from service.policies._linalg import Information, root_of_inverse

REFRESH = 4096  # events after which the running inverse is solved anew from the sums: no drift, however many come


class Ridge:
    """Ridge regression of rewards on rows, one event after the other.

    A = ridge I + Σ w x xᵀ (d, d), b = Σ w r x (d,), θ = A⁻¹ b (d,), over all events, each with what is left of its
    weight w. The sums are kept without the prior and in units of `_weight`. Beside them run A⁻¹ and θ, by the
    Sherman-Morrison formula: they say what each event was expected to bring. What is served is solved from the sums.
    """

    def __init__(self, d: int, ridge: float) -> None:
        self.d, self.ridge = d, ridge
        self._theta, self._b, self._mass = np.zeros(d), np.zeros(d), 0.0
        self._information = Information(np.zeros((d, d)), np.eye(d) / ridge)  # without the prior, and A⁻¹
        self._weight = 1.0  # of one event in the sums
        self.events = 0

    def update(self, x: Array, reward: Array) -> Array:
        """Learn from rows (B, d), float64 and finite, and rewards (B,); the expected reward of each, (B,)."""
        expected = np.empty(len(x))
        for at, (row, r) in enumerate(zip(x, reward.tolist(), strict=True)):
            expected[at] = e = float(self._theta @ row)
            Sx = self._information.inverse_times(row)
            g = 1.0 / (1.0 + max(float(row @ Sx), 0.0))
            self._theta += (g * (r - e)) * Sx
            self._information.add(row, self._weight, Sx, g)
            self._b += (self._weight * r) * row
            self._mass += self._weight
            self.events += 1
            if self.events % REFRESH == 0:
                with suppress(NumericalError):  # then what runs along is as good as can be had
                    self._restart(self._information.matrix)
        return expected

    def forget(self, keep: float) -> None:
        self._weight, scale = fade(self._weight, keep)
        self._b *= scale
        self._mass *= scale
        self._restart(scale * self._information.matrix)

    def _restart(self, sums: Array) -> None:
        self._theta, root = self._solve(sums)
        self._information.set(sums, root.T @ root)

    def solve(self) -> tuple[Array, Array]:
        """θ (d,) and a root (d, d) of A⁻¹ = rootᵀ root.

        Raises:
            NumericalError: A cannot be factored.
        """
        return self._solve(self._information.matrix)

    def _solve(self, sums: Array) -> tuple[Array, Array]:
        root = root_of_inverse(sums / self._weight + self.ridge * np.eye(self.d))
        return root.T @ (root @ (self._b / self._weight)), root

    @property
    def mass(self) -> float:
        """How many events all the evidence is worth."""
        return self._mass / self._weight

    def state(self) -> Arrays:
        return {
            **self._information.state(),
            "b": self._b.copy(),
            "theta": self._theta.copy(),
            "weights": np.array([self._mass, self._weight]),
            "events": np.array([self.events]),
        }

    def load(self, state: Arrays) -> None:
        self._information.load(state)
        self._b, self._theta = state["b"].copy(), state["theta"].copy()
        self._mass, self._weight = state["weights"].tolist()
        self.events = int(state["events"][0])
