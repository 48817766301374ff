"""SquareCB: inverse gap weighting over a regression oracle (Foster & Rakhlin 2020, arXiv:2002.04926, Algorithm 1)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
from pydantic import BaseModel, Field

from service.policies._base import Array, Arrays, Batch, Candidates, Params, Policy, Scorer, expect
from service.policies._linalg import finite_batch
from service.policies._ridge import Ridge


class SquareCBParams(Params):
    """The knobs of `SquareCB`."""

    # How little is explored, and how fast that wanes with the events learned. The paper's γ is of the order √(n T / d).
    gamma: float = Field(default=30.0, ge=0, le=1e9)
    rho: float = Field(default=0.5, ge=0, le=1)
    ridge: float = Field(default=1.0, gt=0, le=1e9)  # the prior precision of every coefficient
    detect_change: bool = True


class SquareCB(Policy):
    """f(x) = θᵀx by ridge regression, one θ for all items: A = ridge I + Σ x xᵀ, θ = A⁻¹ Σ r x."""

    kind = "squarecb"
    Params = SquareCBParams
    params: SquareCBParams

    def __init__(self, d: int, params: SquareCBParams, *, seed: int = 0) -> None:
        super().__init__(d, params, seed=seed)
        self._oracle = Ridge(d, params.ridge)

    def update(self, batch: Batch) -> Array:
        return self._oracle.update(finite_batch(batch, self.d), batch.reward)

    def forget(self, keep: float) -> None:
        self._oracle.forget(keep)

    def state(self) -> Arrays:
        return self._oracle.state()

    def load(self, state: Arrays) -> None:
        self._oracle.load(state)

    def snapshot(self) -> Arrays:
        """theta (d,), and events (1,): how many all the evidence is worth.

        Raises:
            NumericalError: A cannot be factored.
        """
        theta, _ = self._oracle.solve()
        return {"theta": theta, "events": np.array([self._oracle.mass])}

    @classmethod
    def scorer(cls, snapshot: Mapping[str, Array], *, d: int, params: BaseModel) -> SquareCBScorer:
        return SquareCBScorer(snapshot, d, cast(SquareCBParams, params))


class SquareCBScorer(Scorer):
    """score = f(x); with t events learned, γ = gamma √n t^rho and b the best candidate:

        p_i = 1 / (n + γ (f_b - f_i)) for i ≠ b,   p_b = 1 - Σ p_i.

    Where several are best, they share what the others leave. Every probability is positive; at t = 0 all are equal.
    What is forgotten does not count in t.
    """

    def __init__(self, snapshot: Mapping[str, Array], d: int, params: SquareCBParams) -> None:
        self._theta = expect(snapshot.get("theta"), "theta", (d,)).copy()
        self._events = float(expect(snapshot.get("events"), "events", (1,))[0])
        self._gamma = params.gamma * self._events**params.rho

    def estimate(self, candidates: Candidates) -> Array:
        # In float32, so that equal candidates tie whatever order the matrix product added their rows in.
        f = (candidates.x.astype(np.float64) @ self._theta).astype(np.float32)
        return f.astype(np.float64)[:, None]

    def pmf(self, estimates: Array) -> Array:
        f = estimates[:, 0]
        gap = f.max() - f
        pmf: Array = 1.0 / (len(f) + self._gamma * np.sqrt(len(f)) * gap)
        best = gap == 0
        pmf[best] = (1.0 - pmf[~best].sum()) / best.sum()
        return pmf

    def summary(self) -> dict[str, Any]:
        """What γ / √n has grown to, and the events that it grew with."""
        return {"events": self._events, "gamma": self._gamma}
