"""Implements Thompson sampling with one linear model (Agrawal & Goyal 2013, arXiv:1209.3352, Algorithm 1).

The draws come from an ensemble (Lu & Van Roy 2017, arXiv:1705.07347), so that propensities are exact.
"""

from __future__ import annotations

from collections.abc import Mapping

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
from service.policies.ensemble import MEMBERS, noise, shares
from service.policies.ridge import Ridge


class LinTSParams(Params):
    """Parameters of `LinTS`."""

    # On the pet shop v = .25 is a little quicker, and in some runs stuck with the second best.
    v: float = Field(
        default=0.14, ge=0, le=100, description="Width of the posterior, as a factor of its standard deviations."
    )
    ridge: float = Field(default=0.13, ge=1e-9, le=1e9, description="Prior precision of every coefficient.")
    detect_change: bool = Field(default=True, description=DETECT_CHANGE)


class LinTS(Policy[LinTSParams]):
    """Fits one linear model for all items and explores by Thompson sampling.

    The expected reward at x is θᵀx. The posterior of θ is N(μ, v² A⁻¹) with A = ridge I + Σ x xᵀ and μ = A⁻¹ Σ r x.

    Thompson sampling chooses the best candidate under a draw of θ. The probability that a candidate is best, an orthant
    of an n-dimensional Gaussian, has no closed form. So each snapshot carries an ensemble of MEMBERS draws in ± pairs,
    made from the policy's seed and the number of events. A decision follows one member, each equally likely. A
    candidate's probability is the share of members that rank it first: counted, not estimated. A member is one θ for
    all candidates, so the values of correlated candidates vary together, as in the paper.

    Within one snapshot, probabilities are multiples of 1 / MEMBERS. A candidate that wins more rarely has only the
    loop's exploration floor. Every snapshot has a new ensemble, so each decision by itself is distributed as in the
    paper.
    """

    kind = "lin_ts"
    rows_alone = True
    Params = LinTSParams

    def __init__(self, d: int, params: LinTSParams, *, seed: int = 0) -> None:
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
        """Compute `mean` (d,) = μ, `root` (d, d) with A⁻¹ = rootᵀ root, and `noise` (MEMBERS, d), standard normal.

        Member k is θ = μ + v rootᵀ noise_k.

        Raises:
            NumericalError: A cannot be factored.
        """
        mean, root = self._ridge.solve()
        return {"mean": mean, "root": root, "noise": noise(self.seed, self._ridge.events, self.d)}

    @classmethod
    def scorer(cls, snapshot: Mapping[str, Array], *, d: int, params: LinTSParams) -> LinTSScorer:
        return LinTSScorer(snapshot, d, params)


class LinTSScorer(Scorer):
    """estimates: μᵀx, then v root x (d,); pmf: each member gives 1 / MEMBERS to its best candidate, ties share.

    The inner products of v root x are the covariances of the candidates' rewards. `pmf` works in float32 and takes
    O(n d MEMBERS).
    """

    def __init__(self, snapshot: Mapping[str, Array], d: int, params: LinTSParams) -> None:
        mean = expect(snapshot, "mean", (d,))
        root = expect(snapshot, "root", (d, d))
        members = expect(snapshot, "noise", (MEMBERS, d))
        self._model = np.concatenate([mean[:, None], params.v * root.T], axis=1)  # (d, 1 + d)
        self._members = np.concatenate([np.ones((MEMBERS, 1)), members], axis=1).astype(np.float32)  # (MEMBERS, 1 + d)

    def estimate(self, candidates: Candidates) -> Array:
        estimates: Array = candidates.x.astype(np.float64) @ self._model
        return estimates

    def explain(self, candidates: Candidates) -> LinearScore:
        found = self.estimate(candidates)[:, 1:]
        return LinearScore(self._model[:, 0], np.zeros(len(found)), sd=np.sqrt(np.vecdot(found, found)))

    def pmf(self, estimates: Array) -> Array:
        return shares(estimates.astype(np.float32) @ self._members.T)
