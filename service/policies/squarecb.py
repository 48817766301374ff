"""Implements SquareCB: inverse gap weighting on a regression (Foster & Rakhlin 2020, arXiv:2002.04926, Algorithm 1)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from pydantic import Field

from service.policies.base import (
    DETECT_CHANGE,
    Array,
    Arrays,
    Batch,
    Candidates,
    LinearScore,
    Params,
    Policy,
    Scorer,
    expect,
    finite_batch,
)
from service.policies.ridge import Ridge


class SquareCBParams(Params):
    """Parameters of `SquareCB`."""

    # The paper's γ is of the order √(n T / d).
    gamma: float = Field(default=30.0, ge=0, le=1e9, description="Scale of γ: the larger, the less is explored.")
    rho: float = Field(
        default=0.5, ge=0, le=1, description="Exponent with which γ grows with the number of learned events."
    )
    ridge: float = Field(default=1.0, ge=1e-9, le=1e9, description="Prior precision of every coefficient.")
    detect_change: bool = Field(default=True, description=DETECT_CHANGE)


class SquareCB(Policy[SquareCBParams]):
    """Fits one linear model for all items and chooses each with a probability that falls with its gap from the best.

    The expected reward at x is f(x) = θᵀx by ridge regression: A = ridge I + Σ x xᵀ, θ = A⁻¹ Σ r x.
    """

    kind = "squarecb"
    rows_alone = True
    Params = SquareCBParams

    def __init__(self, d: int, params: SquareCBParams, *, seed: int = 0) -> None:
        super().__init__(d, params, seed=seed)
        self._ridge = Ridge(d, params.ridge)

    def update(self, batch: Batch) -> Array:
        return self._ridge.update(finite_batch(batch, self.d), batch.reward)

    def forget(self, keep: float) -> None:
        self._ridge.forget(keep)

    def state(self) -> Arrays:
        return self._ridge.state()

    def load(self, state: Arrays) -> None:
        self._ridge.load(state)

    def snapshot(self) -> Arrays:
        """Compute `theta` (d,), and `events` (1,): the sum of the events' weights.

        Raises:
            NumericalError: A cannot be factored.
        """
        theta, _ = self._ridge.solve()
        return {"theta": theta, "events": np.array([self._ridge.mass])}

    @classmethod
    def scorer(cls, snapshot: Mapping[str, Array], *, d: int, params: SquareCBParams) -> SquareCBScorer:
        return SquareCBScorer(snapshot, d, params)


class SquareCBScorer(Scorer):
    """score = f(x). With t learned events, γ = gamma √n t^rho and b the best candidate, the pmf is

        pᵢ = 1 / (n + γ (f_b - fᵢ)) for i ≠ b,   p_b = 1 - Σ pᵢ.

    Several best candidates share what the others leave. Every probability is positive, and at t = 0 all are equal.
    Forgotten events do not count in t.
    """

    def __init__(self, snapshot: Mapping[str, Array], d: int, params: SquareCBParams) -> None:
        self._theta = expect(snapshot, "theta", (d,)).copy()
        self._events = float(expect(snapshot, "events", (1,))[0])
        self._gamma = params.gamma * self._events**params.rho

    def estimate(self, candidates: Candidates) -> Array:
        # Rounded to float32, so that equal candidates tie: a matrix product rounds by its rows' positions.
        f = (candidates.x.astype(np.float64) @ self._theta).astype(np.float32)
        return f.astype(np.float64)[:, None]

    def explain(self, candidates: Candidates) -> LinearScore:
        return LinearScore(self._theta.astype(np.float64), np.zeros(len(candidates.item)))

    def pmf(self, estimates: Array) -> Array:
        f = estimates[:, 0]
        gap = f.max() - f
        pmf: Array = 1.0 / (len(f) + self._gamma * np.sqrt(len(f)) * gap)
        best = gap == 0
        pmf[best] = (1.0 - pmf[~best].sum()) / best.sum()
        return pmf

    def summary(self) -> dict[str, Any]:
        """Show the weight of the learned events, and γ / √n at that weight."""
        return {"events": self._events, "gamma": self._gamma}
