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
    greedy,
    ids_from_array,
    ids_to_array,
)
from service.policies._linalg import finite_batch


class PopularityParams(Params):
    """The knobs of `Popularity`."""

    epsilon: float = Field(default=0.1, ge=0, le=1)  # mass spread evenly over the candidates
    half_life: float | None = Field(default=10_000, gt=0)  # in the loop's events; None: never forget
    prior_clicks: float = Field(default=1, ge=0)  # pseudo-counts: a new item starts at
    prior_impressions: float = Field(default=10, gt=0)  # prior_clicks / prior_impressions


class Popularity(Policy):
    """rate = (prior_clicks + Σ γᵃ r) / (prior_impressions + Σ γᵃ), over the item's own events.

    a is how many events of the loop came after one, γ = ½^(1 / half_life), r its reward. The sums are discounted when
    their item is next seen, so an event costs the same whatever the number of items. Beside them stand the item's raw
    counts: impressions and Σ r (the clicks, where rewards are 0 or 1).
    """

    kind = "popularity"
    Params = PopularityParams
    params: PopularityParams

    def __init__(self, d: int, params: PopularityParams, *, seed: int = 0) -> None:
        super().__init__(d, params, seed=seed)
        self._clock = 0  # events of the loop so far
        self._row: dict[str, int] = {}
        self._impressions: list[int] = []
        self._clicks: list[float] = []
        self._seen: list[int] = []  # the clock at the item's last event; the two sums below are as of then
        self._discounted_impressions: list[float] = []
        self._discounted_clicks: list[float] = []

    def update(self, batch: Batch) -> None:
        finite_batch(batch, self.d)
        for item, reward in zip(batch.item, batch.reward.tolist(), strict=True):
            self._clock += 1
            row = self._row.setdefault(item, len(self._row))
            if row == len(self._seen):
                self._impressions.append(0)
                self._clicks.append(0.0)
                self._seen.append(self._clock)
                self._discounted_impressions.append(0.0)
                self._discounted_clicks.append(0.0)
            discount = self._discount(self._clock - self._seen[row])
            self._impressions[row] += 1
            self._clicks[row] += reward
            self._seen[row] = self._clock
            self._discounted_impressions[row] = self._discounted_impressions[row] * discount + 1.0
            self._discounted_clicks[row] = self._discounted_clicks[row] * discount + reward

    def _discount(self, age: int) -> float:
        return 1.0 if self.params.half_life is None else 0.5 ** (age / self.params.half_life)

    def state(self) -> Arrays:
        return {
            "clock": np.array([self._clock], dtype=np.int64),
            "items": ids_to_array(self._row),
            "impressions": np.array(self._impressions, dtype=np.int64),
            "clicks": np.array(self._clicks, dtype=np.float64),
            "seen": np.array(self._seen, dtype=np.int64),
            "discounted_impressions": np.array(self._discounted_impressions, dtype=np.float64),
            "discounted_clicks": np.array(self._discounted_clicks, dtype=np.float64),
        }

    def load(self, state: Arrays) -> None:
        self._clock = int(state["clock"][0])
        self._row = {item: row for row, item in enumerate(ids_from_array(state["items"]))}
        self._impressions = state["impressions"].tolist()
        self._clicks = state["clicks"].tolist()
        self._seen = state["seen"].tolist()
        self._discounted_impressions = state["discounted_impressions"].tolist()
        self._discounted_clicks = state["discounted_clicks"].tolist()

    def snapshot(self) -> Arrays:
        """The counts, and the rates as of now: row i is item i."""
        discount = np.array([self._discount(self._clock - seen) for seen in self._seen], dtype=np.float64)
        clicks = self.params.prior_clicks + discount * self._discounted_clicks
        impressions = self.params.prior_impressions + discount * self._discounted_impressions
        return {
            "items": ids_to_array(self._row),
            "impressions": np.array(self._impressions, dtype=np.int64),
            "clicks": np.array(self._clicks, dtype=np.float64),
            "rate": clicks / impressions,
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
