"""A complete policy in one file."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np

from service.policies import (
    Array,
    Arrays,
    Batch,
    Candidates,
    ItemIndex,
    Params,
    Policy,
    Scorer,
    expect,
    finite_batch,
    greedy_pmf,
)


class Greedy(Policy[Params]):
    """Always chooses the item with the highest mean reward, in which every item starts with one reward of 0."""

    kind = "greedy"

    def __init__(self, d: int, params: Params, *, seed: int = 0) -> None:
        super().__init__(d, params, seed=seed)
        self.sums: dict[str, list[float]] = {}  # of each item: its number of events, and the sum of their rewards

    def update(self, batch: Batch) -> None:
        finite_batch(batch, self.d)
        for item, reward in zip(batch.item, batch.reward.tolist(), strict=True):
            sums = self.sums.setdefault(item, [0.0, 0.0])
            sums[0] += 1.0
            sums[1] += reward

    def forget(self, keep: float) -> None:
        self.sums = {item: [keep * number, keep * total] for item, (number, total) in self.sums.items()}

    def forget_items(self, gone: Collection[str]) -> None:
        for item in gone:
            self.sums.pop(item, None)

    def state(self) -> Arrays:
        return {"items": ItemIndex(self.sums).to_array(), "sums": np.array([*self.sums.values()]).reshape(-1, 2)}

    def load(self, state: Arrays) -> None:
        self.sums = dict(zip(ItemIndex.from_array(state["items"]), state["sums"].tolist(), strict=True))

    def snapshot(self) -> Arrays:
        return self.state()

    @classmethod
    def scorer(cls, snapshot: Mapping[str, Array], *, d: int, params: Params) -> GreedyScorer:
        return GreedyScorer(snapshot)


class GreedyScorer(Scorer):
    """score = the mean reward; all probability goes to the best, ties share it."""

    def __init__(self, snapshot: Mapping[str, Array]) -> None:
        self.items = ItemIndex.from_array(expect(snapshot, "items", (None,)))
        sums = expect(snapshot, "sums", (len(self.items), 2))
        self.mean = np.append(sums[:, 1] / (1.0 + sums[:, 0]), 0.0)  # the last row is an item never seen

    def estimate(self, candidates: Candidates) -> Array:
        means: Array = self.mean[self.items.rows(candidates.item), None]
        return means

    def pmf(self, estimates: Array) -> Array:
        return greedy_pmf(estimates[:, 0])
