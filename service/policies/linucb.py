"""Implements LinUCB with disjoint linear models (Li, Chu, Langford & Schapire 2010, arXiv:1003.0146, Algorithm 1)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Self

import numpy as np
from pydantic import Field

from service.policies.base import (
    Array,
    Arrays,
    Batch,
    Bounds,
    Candidates,
    LinearScore,
    Params,
    Policy,
    Scorer,
    expect,
    greedy_pmf,
)
from service.policies.item_index import ItemIndex
from service.policies.item_ridge import ItemRidge
from service.policies.linalg import matvec, unpack


class LinUCBParams(Params):
    """Parameters of `LinUCB`."""

    # Found by search, through a change of tastes on stale snapshots (docs/policies.md). In the paper, ridge is 1.
    alpha: float = Field(
        default=0.99, ge=0, le=100, description="Width of the confidence bound, in standard deviations."
    )
    ridge: float = Field(
        default=8.3,
        ge=1e-9,
        le=1e9,
        description="Prior precision of every coefficient of an item; on rows of a fitted schema a seventh of it.",
    )

    def on_fitted_rows(self) -> Self:
        """Return a ridge that means the same there: columns are √(variance/10) long, about 1/√7 of declared ones."""
        return self.model_copy(update={"ridge": self.ridge / 7})


class LinUCB(Policy[LinUCBParams]):
    """Fits a linear model per item and chooses the item with the highest upper confidence bound.

    The models are `ItemRidge`'s: A = ridge I + Σ x xᵀ (d, d), θ = A⁻¹ Σ r x (d,), over the item's own events.
    """

    kind = "linucb"
    Params = LinUCBParams

    def __init__(self, d: int, params: LinUCBParams, *, seed: int = 0) -> None:
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
        """Compute `theta` (m + 1, d) and `inverse` (m + 1, P), the packed A⁻¹, as `ItemRidge.solve` does."""
        return self._models.solve()

    @classmethod
    def scorer(cls, snapshot: Mapping[str, Array], *, d: int, params: LinUCBParams) -> LinUCBScorer:
        return LinUCBScorer(snapshot, d, params)


class LinUCBScorer(Scorer):
    """score = xᵀθ + alpha √(xᵀ A⁻¹ x); pmf puts all mass on the best, ties shared.

    Holds A⁻¹ unpacked, with θ as one more row: 8 d (d + 1) bytes per item.
    """

    def __init__(self, snapshot: Mapping[str, Array], d: int, params: LinUCBParams) -> None:
        items = list(ItemIndex.from_array(expect(snapshot, "items", (None,))))
        m = len(items)
        order = sorted(range(m), key=items.__getitem__)  # the order of catalogues: `matvec` then copies no rows
        self._alpha = params.alpha
        self._items = ItemIndex(items[i] for i in order)
        self._pulls = expect(snapshot, "pulls", (m,))[order].tolist()
        theta = expect(snapshot, "theta", (m + 1, d))
        inverse = expect(snapshot, "inverse", (m + 1, d * (d + 1) // 2))
        stored = [*(i + 1 for i in order), 0]  # rows of the snapshot; the last is the item never seen
        self._model = np.concatenate([unpack(inverse[stored], d), theta[stored, None]], axis=1)  # (m + 1, d + 1, d)

    def estimate(self, candidates: Candidates) -> Array:
        x = candidates.x.astype(np.float64)  # (n, d)
        y = matvec(self._model, self._items.rows(candidates.item), x)  # (n, d + 1): A⁻¹ x, and θᵀx
        variance = np.maximum(np.vecdot(y[:, :-1], x), 0.0)  # rounding may leave it just below 0
        score: Array = y[:, -1] + self._alpha * np.sqrt(variance)
        return score[:, None]

    def explain(self, candidates: Candidates) -> LinearScore:
        x, models = candidates.x.astype(np.float64), self._model[self._items.rows(candidates.item)]
        sd = np.sqrt(np.maximum(np.vecdot(np.matvec(models[:, :-1], x), x), 0.0))
        return LinearScore(models[:, -1], np.zeros(len(x)), sd=sd, width=self._alpha, by_item=True)

    def bounds(self, items: Sequence[str]) -> Bounds | None:
        return Bounds(self._model, self._items.rows(items), self._alpha)

    def pmf(self, estimates: Array) -> Array:
        return greedy_pmf(estimates[:, 0])

    def summary(self) -> dict[str, Any]:
        """Count the items seen and their events, and list the 20 items seen most."""
        pulls = dict(zip(self._items, self._pulls, strict=True))
        most = sorted(pulls, key=lambda item: (-pulls[item], item))[:20]
        return {"items": len(pulls), "pulls": sum(pulls.values()), "most_pulled": {item: pulls[item] for item in most}}
