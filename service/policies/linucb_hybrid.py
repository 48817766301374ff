"""LinUCB with hybrid linear models (Li, Chu, Langford & Schapire 2010, arXiv:1003.0146, Algorithm 2)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import numpy as np
from pydantic import BaseModel, Field

from service.policies._base import Array, Arrays, Candidates, expect
from service.policies._linalg import matvec, root_of_inverse, unpack
from service.policies.linucb import LinUCB, LinUCBParams, LinUCBScorer


class LinUCBHybridParams(LinUCBParams):
    """The knobs of `LinUCBHybrid`."""

    # Found by search, through a change of tastes on stale snapshots (docs/policies.md).
    alpha: float = Field(default=1.8, ge=0, le=100)
    # Prior precision of an item's departures from what all share; in the paper both are 1. On the pet shop, where
    # categories say it all, more of it helps.
    ridge: float = Field(default=21.0, gt=0, le=1e9)
    shared_ridge: float = Field(default=8.8, gt=0, le=1e9)  # prior precision of what all share


class LinUCBHybrid(LinUCB):
    """Reward of item a at x = xᵀ(β + θ_a): β (d,) is shared by all items, θ_a (d,) is what sets one apart.

    Algorithm 2 with z = x, the encoder's whole row for either part: it already holds the crosses of context and item
    that the paper builds z from, and the context that it takes as x. With λ = `ridge`, λ₀ = `shared_ridge` and
    A_a = λ I + Σ x xᵀ, b_a = Σ r x over a's own events, the paper's B_a is then Σ x xᵀ = A_a - λ I, and all that it
    adds up into A₀ and b₀ event by event follows from `LinUCB`'s sums, with nothing more to keep:

        A₀ = λ₀ I + λ² Σ_a (I / λ - A_a⁻¹),   b₀ = λ Σ_a A_a⁻¹ b_a,   β = A₀⁻¹ b₀.

    The state is `LinUCB`'s, 8 (d (d + 1) / 2 + d + 1) bytes per item. So is the work of a snapshot, O(d³) per item seen
    since the one before, and O(m d²) to add up m items.
    """

    kind = "linucb_hybrid"
    Params = LinUCBHybridParams
    params: LinUCBHybridParams

    def snapshot(self) -> Arrays:
        """`LinUCB`'s, in which theta is A_a⁻¹ b_a, with beta (d,) and root (d, d), for which A₀⁻¹ = rootᵀ root.

        Raises:
            NumericalError: an A cannot be factored.
        """
        snapshot = super().snapshot()
        ridge, inverse = self.params.ridge, snapshot["inverse"]
        learned: Array = (inverse[0] - inverse[1:]).sum(axis=0)  # (P,)
        A0 = self.params.shared_ridge * np.eye(self.d) + ridge**2 * unpack(learned[None], self.d)[0]
        root = root_of_inverse(A0)
        beta = ridge * (root.T @ (root @ snapshot["theta"].sum(axis=0)))
        return {**snapshot, "beta": beta, "root": root}

    @classmethod
    def scorer(cls, snapshot: Mapping[str, Array], *, d: int, params: BaseModel) -> LinUCBHybridScorer:
        return LinUCBHybridScorer(snapshot, d, cast(LinUCBHybridParams, params))


class LinUCBHybridScorer(LinUCBScorer):
    """score = xᵀ(β + θ_a) + alpha √s; pmf puts all mass on the best, ties shared.

    With y = A_a⁻¹ x and B_a = A_a - λ I, the paper's θ_a is A_a⁻¹ b_a - (I - λ A_a⁻¹) β, and the four terms of s are

        xᵀA₀⁻¹x - 2 xᵀA₀⁻¹(x - λ y) + xᵀy + (x - λ y)ᵀA₀⁻¹(x - λ y) = xᵀy + λ² yᵀA₀⁻¹y,

    so the score is xᵀA_a⁻¹(b_a + λ β) + alpha √(xᵀy + λ² yᵀA₀⁻¹y): no difference that rounding could turn negative.
    """

    def __init__(self, snapshot: Mapping[str, Array], d: int, params: LinUCBHybridParams) -> None:
        super().__init__(snapshot, d, params)
        self._model[:, -1] += params.ridge * (self._model[:, :-1] @ expect(snapshot.get("beta"), "beta", (d,)))
        self._root = params.ridge * expect(snapshot.get("root"), "root", (d, d))

    def estimate(self, candidates: Candidates) -> Array:
        find = self._row.get
        rows = np.array([find(item, 0) for item in candidates.item], dtype=np.intp)
        x = candidates.x.astype(np.float64)  # (n, d)
        model = matvec(self._model, rows, x)  # (n, d + 1): y, and the expected reward
        y = model[:, :-1]
        shared = np.matvec(self._root, y)  # (n, d)
        variance = np.maximum(np.vecdot(y, x), 0.0) + np.vecdot(shared, shared)
        score: Array = model[:, -1] + self._alpha * np.sqrt(variance)
        return score[:, None]
