"""Implements LinUCB with hybrid linear models (Li, Chu, Langford & Schapire 2010, arXiv:1003.0146, Algorithm 2)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Self

import numpy as np
from pydantic import Field

from service.policies.base import Array, Arrays, Batch, Bounds, Candidates, LinearScore, Policy, expect
from service.policies.item_ridge import ItemRidge
from service.policies.linalg import matvec, root_of_inverse, unpack
from service.policies.linucb import LinUCBParams, LinUCBScorer


class LinUCBHybridParams(LinUCBParams):
    """Parameters of `LinUCBHybrid`."""

    # Found by search, through a change of tastes on stale snapshots (docs/policies.md). In the paper, both ridges
    # are 1. On the pet shop, where categories explain everything, more of the items' own ridge helps.
    alpha: float = Field(
        default=1.8, ge=0, le=100, description="Width of the confidence bound, in standard deviations."
    )
    ridge: float = Field(
        default=21.0,
        ge=1e-9,
        le=1e9,
        description="Prior precision of an item's departure from the shared coefficients.",
    )
    shared_ridge: float = Field(
        default=8.8, ge=1e-9, le=1e9, description="Prior precision of the coefficients that all items share."
    )

    def on_fitted_rows(self) -> Self:
        """Return the same: weaker priors learned later there (docs/benchmarks/shapes.md)."""
        return self


class LinUCBHybrid(Policy[LinUCBHybridParams]):
    """Fits a linear model with a part shared by all items and a part per item, and chooses the highest upper bound.

    The expected reward of item a at x is xᵀ(β + θ_a): β (d,) is shared, θ_a (d,) is the item's own. This is Algorithm 2
    with z = x: the encoder's row serves for either part, because it holds the crosses of context and item that the
    paper builds z from, and the context that the paper takes as x.

    With λ = `ridge`, λ₀ = `shared_ridge`, A_a = λ I + Σ x xᵀ and b_a = Σ r x over the events of a, the paper's B_a is
    A_a - λ I. Its A₀ and b₀ then follow from the sums of `ItemRidge`, without statistics of their own:

        A₀ = λ₀ I + λ² Σ_a (I / λ - A_a⁻¹),   b₀ = λ Σ_a A_a⁻¹ b_a,   β = A₀⁻¹ b₀.

    A snapshot costs O(d³) per item seen since the one before, and O(m d²) to add up m items. Forgetting an item takes
    its evidence out of β, too.
    """

    kind = "linucb_hybrid"
    Params = LinUCBHybridParams

    def __init__(self, d: int, params: LinUCBHybridParams, *, seed: int = 0) -> None:
        super().__init__(d, params, seed=seed)
        self._models = ItemRidge(d, params.ridge)

    def update(self, batch: Batch) -> None:
        self._models.update(batch)

    def forget(self, keep: float) -> None:
        self._models.forget(keep)

    def forget_items(self, gone: Collection[str]) -> None:
        self._models.forget_items(gone)

    def state(self) -> Arrays:
        return self._models.state()

    def load(self, state: Arrays) -> None:
        self._models.load(state)

    def snapshot(self) -> Arrays:
        """Compute what `ItemRidge.solve` does, with `beta` (d,) and `root` (d, d): A₀⁻¹ = rootᵀ root.

        Raises:
            NumericalError: an A cannot be factored.
        """
        solved = self._models.solve()
        ridge, inverse = self.params.ridge, solved["inverse"]
        learned: Array = (inverse[0] - inverse[1:]).sum(axis=0)  # (P,)
        A0 = self.params.shared_ridge * np.eye(self.d) + ridge**2 * unpack(learned[None], self.d)[0]
        root = root_of_inverse(A0)
        beta = ridge * (root.T @ (root @ solved["theta"].sum(axis=0)))
        return {**solved, "beta": beta, "root": root}

    @classmethod
    def scorer(cls, snapshot: Mapping[str, Array], *, d: int, params: LinUCBHybridParams) -> LinUCBHybridScorer:
        return LinUCBHybridScorer(snapshot, d, params)


class LinUCBHybridScorer(LinUCBScorer):
    """score = xᵀ(β + θ_a) + alpha √s; pmf puts all mass on the best, ties shared.

    With y = A_a⁻¹ x and B_a = A_a - λ I, the paper's θ_a is A_a⁻¹ b_a - (I - λ A_a⁻¹) β, and the four terms of s are

        xᵀA₀⁻¹x - 2 xᵀA₀⁻¹(x - λ y) + xᵀy + (x - λ y)ᵀA₀⁻¹(x - λ y) = xᵀy + λ² yᵀA₀⁻¹y.

    So the score is xᵀA_a⁻¹(b_a + λ β) + alpha √(xᵀy + λ² yᵀA₀⁻¹y). It has no difference that rounding could turn
    negative.
    """

    def __init__(self, snapshot: Mapping[str, Array], d: int, params: LinUCBHybridParams) -> None:
        super().__init__(snapshot, d, params)
        self._beta = expect(snapshot, "beta", (d,)).copy()
        self._model[:, -1] += params.ridge * (self._model[:, :-1] @ self._beta)
        self._root = params.ridge * expect(snapshot, "root", (d, d))

    def bounds(self, items: Sequence[str]) -> Bounds | None:
        return None

    def explain(self, candidates: Candidates) -> LinearScore:
        expected, variance = self._moments(candidates)
        return LinearScore(
            self._beta, expected - candidates.x.astype(np.float64) @ self._beta, sd=np.sqrt(variance), width=self._alpha
        )

    def estimate(self, candidates: Candidates) -> Array:
        expected, variance = self._moments(candidates)
        score: Array = expected + self._alpha * np.sqrt(variance)
        return score[:, None]

    def _moments(self, candidates: Candidates) -> tuple[Array, Array]:
        """Compute each candidate's expected reward and its variance, (n,) both."""
        x = candidates.x.astype(np.float64)  # (n, d)
        model = matvec(self._model, self._items.rows(candidates.item), x)  # (n, d + 1): y, and the expected reward
        y = model[:, :-1]
        shared = np.matvec(self._root, y)  # (n, d)
        return model[:, -1], np.maximum(np.vecdot(y, x), 0.0) + np.vecdot(shared, shared)
