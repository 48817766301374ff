"""Implements epsilon-greedy (Sutton & Barto 2018, section 2.2) on discounted click rates (Garivier & Moulines 2011,
arXiv:0805.3415, the discounted mean). It ignores who asks.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from pydantic import Field

from service.policies.base import (
    HALF_LIFE,
    Array,
    Arrays,
    Batch,
    Candidates,
    LinearScore,
    Params,
    Policy,
    Scorer,
    expect,
    fade,
    finite_batch,
    greedy_pmf,
)
from service.policies.item_index import ItemIndex


class PopularityParams(Params):
    """Parameters of `Popularity`."""

    epsilon: float = Field(
        default=0.1, ge=0, le=1, description="Probability mass that is spread evenly over the candidates."
    )
    half_life: float | None = Field(default=10_000, gt=0, description=HALF_LIFE)
    prior_clicks: float = Field(
        default=1, ge=0, le=1e9, description="Clicks that every item starts with, as a pseudo-count."
    )
    prior_impressions: float = Field(
        default=10, ge=1e-9, le=1e9, description="Impressions that every item starts with, as a pseudo-count."
    )


class Popularity(Policy[PopularityParams]):
    """Ranks items by their discounted click rate and explores with epsilon.

        rate = (prior_clicks + Σ w r) / (prior_impressions + Σ w),

    over the item's own events: r is the event's reward, w its weight after `forget`. The two sums are kept in units of
    `_weight`. Beside them stand the raw counts of each item: impressions, and clicks = Σ r.
    """

    kind = "popularity"
    Params = PopularityParams

    def __init__(self, d: int, params: PopularityParams, *, seed: int = 0) -> None:
        super().__init__(d, params, seed=seed)
        self._items = ItemIndex()
        self._impressions: list[int] = []
        self._clicks: list[float] = []
        self._weight = 1.0  # of one event in the two sums below
        self._weighed_impressions: list[float] = []
        self._weighed_clicks: list[float] = []

    def update(self, batch: Batch) -> Array:
        finite_batch(batch, self.d)
        expected = np.empty(len(batch.item))
        for at, (item, reward) in enumerate(zip(batch.item, batch.reward.tolist(), strict=True)):
            row = self._items.add(item)
            if row == len(self._clicks):
                self._impressions.append(0)
                self._clicks.append(0.0)
                self._weighed_impressions.append(0.0)
                self._weighed_clicks.append(0.0)
            expected[at] = self._rate(self._weighed_clicks[row], self._weighed_impressions[row])
            self._impressions[row] += 1
            self._clicks[row] += reward
            self._weighed_impressions[row] += self._weight
            self._weighed_clicks[row] += self._weight * reward
        return expected

    def _rate(self, clicks: Any, impressions: Any) -> Any:
        """Compute the rate from the two weighed sums, numbers or arrays."""
        prior = self.params
        return (prior.prior_clicks + clicks / self._weight) / (prior.prior_impressions + impressions / self._weight)

    def forget(self, keep: float) -> None:
        self._weight, scale = fade(self._weight, keep)
        if scale != 1:
            self._weighed_impressions = [scale * impressions for impressions in self._weighed_impressions]
            self._weighed_clicks = [scale * clicks for clicks in self._weighed_clicks]

    def forget_items(self, gone: Collection[str]) -> None:
        kept = self._items.forget(gone)
        if kept is not None:
            rows = kept.tolist()
            self._impressions = [self._impressions[row] for row in rows]
            self._clicks = [self._clicks[row] for row in rows]
            self._weighed_impressions = [self._weighed_impressions[row] for row in rows]
            self._weighed_clicks = [self._weighed_clicks[row] for row in rows]

    def state(self) -> Arrays:
        return {
            "items": self._items.to_array(),
            "impressions": np.array(self._impressions, dtype=np.int64),
            "clicks": np.array(self._clicks, dtype=np.float64),
            "weight": np.array([self._weight]),
            "weighed_impressions": np.array(self._weighed_impressions, dtype=np.float64),
            "weighed_clicks": np.array(self._weighed_clicks, dtype=np.float64),
        }

    def load(self, state: Arrays) -> None:
        self._items = ItemIndex.from_array(state["items"])
        self._impressions = state["impressions"].tolist()
        self._clicks = state["clicks"].tolist()
        self._weight = float(state["weight"][0])
        self._weighed_impressions = state["weighed_impressions"].tolist()
        self._weighed_clicks = state["weighed_clicks"].tolist()

    def snapshot(self) -> Arrays:
        """Copy the ids and the raw counts, and compute the present rates: row i is item i."""
        return {
            "items": self._items.to_array(),
            "impressions": np.array(self._impressions, dtype=np.int64),
            "clicks": np.array(self._clicks, dtype=np.float64),
            "rate": self._rate(np.array(self._weighed_clicks), np.array(self._weighed_impressions)),
        }

    @classmethod
    def scorer(cls, snapshot: Mapping[str, Array], *, d: int, params: PopularityParams) -> PopularityScorer:
        return PopularityScorer(snapshot, params)


class PopularityScorer(Scorer):
    """score = rate; pmf = (1 - epsilon) on the best, ties shared, + epsilon / n.

    An item never seen has the prior's rate.
    """

    def __init__(self, snapshot: Mapping[str, Array], params: PopularityParams) -> None:
        self._items = ItemIndex.from_array(expect(snapshot, "items", (None,)))
        shape = (len(self._items),)
        self._epsilon = params.epsilon
        self._rate = np.append(expect(snapshot, "rate", shape), params.prior_clicks / params.prior_impressions)
        self._impressions = expect(snapshot, "impressions", shape).tolist()
        self._clicks = expect(snapshot, "clicks", shape).tolist()

    def estimate(self, candidates: Candidates) -> Array:
        rates: Array = self._rate[self._items.rows(candidates.item), None]
        return rates

    def explain(self, candidates: Candidates) -> LinearScore:
        prior = float(self._rate[-1])
        return LinearScore(np.zeros(0), self._rate[self._items.rows(candidates.item)] - prior, bias=prior)

    def pmf(self, estimates: Array) -> Array:
        pmf: Array = (1.0 - self._epsilon) * greedy_pmf(estimates[:, 0]) + self._epsilon / len(estimates)
        return pmf

    def summary(self) -> dict[str, Any]:
        """Show per item: impressions, clicks, rate = clicks / impressions, and the discounted rate it is ranked by."""
        counts = zip(self._items, self._impressions, self._clicks, self._rate[:-1].tolist(), strict=True)
        return {
            "items": {
                item: {
                    "impressions": impressions,
                    "clicks": clicks,
                    "rate": clicks / impressions,
                    "discounted_rate": discounted,
                }
                for item, impressions, clicks, discounted in counts
            }
        }
