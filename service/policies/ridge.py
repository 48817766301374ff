"""Fits one ridge regression for all items, for the policies whose expected rewards are linear."""

from __future__ import annotations

from contextlib import suppress

import numpy as np

from service.policies.base import Array, Arrays, NumericalError, fade
from service.policies.information import REFRESH, Information
from service.policies.linalg import root_of_inverse


class Ridge:
    """Ridge regression of rewards on rows, learned one event after the other.

    Over all events, each with its present weight w:

        A = ridge I + Σ w x xᵀ (d, d),   b = Σ w r x (d,),   θ = A⁻¹ b (d,).

    The sums are kept without the prior, in units of `_weight`. A⁻¹ and θ are updated beside them by the
    Sherman-Morrison formula. They give the expected reward of each event; `solve` works from the sums.

    Args:
        d: number of features.
        ridge: prior precision of every coefficient, positive.
    """

    def __init__(self, d: int, ridge: float) -> None:
        self.d, self.ridge = d, ridge
        self._b, self._mass = np.zeros(d), 0.0
        self._information = Information(np.zeros((d, d)), np.eye(d) / ridge)  # Σ w x xᵀ without the prior, and A⁻¹
        self._weight = 1.0  # of one event in the sums
        self.events = 0

    def update(self, x: Array, reward: Array) -> Array:
        """Learn rows (B, d), float64 and finite, with rewards (B,).

        Returns:
            The reward (B,) expected of each event before it was learned.
        """
        expected: list[float] = []
        information, weight, rewards = self._information, self._weight, reward.tolist()
        for rows in information.parts(len(x), self.events):
            information.enter(x[rows])
            for r in rewards[rows]:
                e, variance = information.look()
                g = 1.0 / (1.0 + variance)
                information.learn(g * (r - e), g, weight)
                expected.append(e)
                self._mass += weight
            information.leave()
            for row in (weight * reward[rows])[:, None] * x[rows]:  # one by one: the sum may not depend on the batches
                self._b += row
            self.events += rows.stop - rows.start
            if self.events % REFRESH == 0:
                with suppress(NumericalError):  # the updated inverse is then the best there is
                    self._restart(information.matrix)
        return np.array(expected, dtype=np.float64)

    def forget(self, keep: float) -> None:
        """Multiply the weight of all events by `keep`, in [0, 1)."""
        self._weight, scale = fade(self._weight, keep)
        self._b *= scale
        self._mass *= scale
        self._restart(scale * self._information.matrix)

    def _restart(self, sums: Array) -> None:
        theta, root = self._solve(sums)
        self._information.set(sums, root.T @ root)
        self._information.mean = theta

    def solve(self) -> tuple[Array, Array]:
        """Solve for θ (d,) and a root (d, d) with A⁻¹ = rootᵀ root.

        Raises:
            NumericalError: A cannot be factored.
        """
        return self._solve(self._information.matrix)

    def _solve(self, sums: Array) -> tuple[Array, Array]:
        root = root_of_inverse(sums / self._weight + self.ridge * np.eye(self.d))
        return root.T @ (root @ (self._b / self._weight)), root

    @property
    def mass(self) -> float:
        """The sum of the events' weights."""
        return self._mass / self._weight

    def state(self) -> Arrays:
        """Copy all that learning needs to go on, bit for bit."""
        return {
            **self._information.state(),
            "b": self._b.copy(),
            "theta": self._information.mean.copy(),
            "weights": np.array([self._mass, self._weight]),
            "events": np.array([self.events]),
        }

    def load(self, state: Arrays) -> None:
        """Replace what was learned by a `state()` with the same d and ridge."""
        self._information.load(state)
        self._information.mean, self._b = state["theta"].copy(), state["b"].copy()
        self._mass, self._weight = state["weights"].tolist()
        self.events = int(state["events"][0])
