"""Epsilon-greedy (Sutton & Barto 2018, section 2.2) on discounted click rates (Garivier & Moulines 2011,
arXiv:0805.3415, the discounted mean): what is liked by all, whoever asks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
from pydantic import BaseModel, Field

from service.policies._base import (
    Array,
    Arrays,
    Batch,
    Candidates,
    Params,
    Policy,
    Scorer,
    expect,
    fade,
    greedy,
    ids_from_array,
    ids_to_array,
)
from service.policies._linalg import finite_batch


class PopularityParams(Params):
    """The knobs of `Popularity`."""

    epsilon: float = Field(default=0.1, ge=0, le=1)  # mass spread evenly over the candidates
    half_life: float | None = Field(default=10_000, gt=0)
    prior_clicks: float = Field(default=1, ge=0)  # pseudo-counts: a new item starts at
    prior_impressions: float = Field(default=10, gt=0)  # prior_clicks / prior_impressions


class Popularity(Policy):
    """rate = (prior_clicks + Σ w r) / (prior_impressions + Σ w), over the item's own events.

    r is an event's reward, w what is left of its weight after `forget`. Beside the two sums, which are kept in units of
    `weight`, stand the item's raw counts: impressions and Σ r (the clicks, where rewards are 0 or 1).
    """

    kind = "popularity"
    Params = PopularityParams
    params: PopularityParams

    def __init__(self, d: int, params: PopularityParams, *, seed: int = 0) -> None:
        super().__init__(d, params, seed=seed)
        self._row: dict[str, int] = {}
        self._impressions: list[int] = []
        self._clicks: list[float] = []
        self._weight = 1.0  # of one event in the two sums below
        self._weighed_impressions: list[float] = []
        self._weighed_clicks: list[float] = []

    def update(self, batch: Batch) -> Array:
        finite_batch(batch, self.d)
        expected = np.empty(len(batch.item))
        for at, (item, reward) in enumerate(zip(batch.item, batch.reward.tolist(), strict=True)):
            row = self._row.setdefault(item, len(self._row))
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
        """From the two weighed sums, numbers or arrays."""
        prior = self.params
        return (prior.prior_clicks + clicks / self._weight) / (prior.prior_impressions + impressions / self._weight)

    def forget(self, keep: float) -> None:
        self._weight, scale = fade(self._weight, keep)
        if scale != 1:
            self._weighed_impressions = [scale * impressions for impressions in self._weighed_impressions]
            self._weighed_clicks = [scale * clicks for clicks in self._weighed_clicks]

    def state(self) -> Arrays:
        return {
            "items": ids_to_array(self._row),
            "impressions": np.array(self._impressions, dtype=np.int64),
            "clicks": np.array(self._clicks, dtype=np.float64),
            "weight": np.array([self._weight]),
            "weighed_impressions": np.array(self._weighed_impressions, dtype=np.float64),
            "weighed_clicks": np.array(self._weighed_clicks, dtype=np.float64),
        }

    def load(self, state: Arrays) -> None:
        self._row = {item: row for row, item in enumerate(ids_from_array(state["items"]))}
        self._impressions = state["impressions"].tolist()
        self._clicks = state["clicks"].tolist()
        self._weight = float(state["weight"][0])
        self._weighed_impressions = state["weighed_impressions"].tolist()
        self._weighed_clicks = state["weighed_clicks"].tolist()

    def snapshot(self) -> Arrays:
        """The counts, and the rates as of now: row i is item i."""
        return {
            "items": ids_to_array(self._row),
            "impressions": np.array(self._impressions, dtype=np.int64),
            "clicks": np.array(self._clicks, dtype=np.float64),
            "rate": self._rate(np.array(self._weighed_clicks), np.array(self._weighed_impressions)),
        }

    @classmethod
    def scorer(cls, snapshot: Mapping[str, Array], *, d: int, params: BaseModel) -> PopularityScorer:
        return PopularityScorer(snapshot, cast(PopularityParams, params))


class PopularityScorer(Scorer):
    """score = rate; pmf = (1 - epsilon) on the best, ties shared, + epsilon / n."""

    def __init__(self, snapshot: Mapping[str, Array], params: PopularityParams) -> None:
        items = ids_from_array(expect(snapshot.get("items"), "items", (None,)))
        shape = (len(items),)
        self._epsilon = params.epsilon
        self._unknown = params.prior_clicks / params.prior_impressions
        self._rate = dict(zip(items, expect(snapshot.get("rate"), "rate", shape).tolist(), strict=True))
        self._impressions = expect(snapshot.get("impressions"), "impressions", shape).tolist()
        self._clicks = expect(snapshot.get("clicks"), "clicks", shape).tolist()

    def estimate(self, candidates: Candidates) -> Array:
        rates = [self._rate.get(item, self._unknown) for item in candidates.item]
        return np.array(rates, dtype=np.float64)[:, None]

    def pmf(self, estimates: Array) -> Array:
        pmf: Array = (1.0 - self._epsilon) * greedy(estimates[:, 0]) + self._epsilon / len(estimates)
        return pmf

    def summary(self) -> dict[str, Any]:
        """Per item: impressions, clicks, rate = clicks / impressions, and the discounted rate that it is ranked by."""
        counts = zip(self._rate.items(), self._impressions, self._clicks, strict=True)
        return {
            "items": {
                item: {
                    "impressions": impressions,
                    "clicks": clicks,
                    "rate": clicks / impressions,
                    "discounted_rate": discounted,
                }
                for (item, discounted), impressions, clicks in counts
            }
        }
