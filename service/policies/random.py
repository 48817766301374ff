"""Uniform choice: the floor that every other policy must clear, and the logger of unbiased history."""

from collections.abc import Mapping

import numpy as np

from service.policies._base import Array, Arrays, Batch, Candidates, Params, Policy, Scorer


class Random(Policy):
    """Learns nothing: every candidate has probability 1/n."""

    kind = "random"

    def update(self, batch: Batch) -> None:
        """Nothing to learn."""

    def state(self) -> Arrays:
        return {}

    def load(self, state: Arrays) -> None:
        pass

    def forget(self, keep: float) -> None:
        pass

    def snapshot(self) -> Arrays:
        return {}

    @classmethod
    def scorer(cls, snapshot: Mapping[str, Array], *, d: int, params: Params) -> Scorer:
        return RandomScorer()


class RandomScorer(Scorer):
    """score = 0, pmf = 1/n; also what serves before a policy's first snapshot."""

    def estimate(self, candidates: Candidates) -> Array:
        return np.zeros((len(candidates.item), 1))

    def pmf(self, estimates: Array) -> Array:
        n = len(estimates)
        return np.full(n, 1.0 / n)
