"""Implements uniform choice: a lower bound for other policies, and a source of unbiased logs."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from service.policies.base import Array, Arrays, Batch, Candidates, LinearScore, Params, Policy, Scorer


class Random(Policy[Params]):
    """Gives every candidate the same probability and learns nothing."""

    kind = "random"

    def update(self, batch: Batch) -> None:
        """Do nothing."""

    def forget(self, keep: float) -> None:
        """Do nothing."""

    def state(self) -> Arrays:
        return {}

    def load(self, state: Arrays) -> None:
        pass

    def snapshot(self) -> Arrays:
        return {}

    @classmethod
    def scorer(cls, snapshot: Mapping[str, Array], *, d: int, params: Params) -> RandomScorer:
        return RandomScorer()


class RandomScorer(Scorer):
    """score = 0, pmf = 1 / n. It also serves before a policy's first snapshot."""

    def estimate(self, candidates: Candidates) -> Array:
        return np.zeros((len(candidates.item), 1))

    def explain(self, candidates: Candidates) -> LinearScore:
        return LinearScore(np.zeros(0), np.zeros(len(candidates.item)))

    def pmf(self, estimates: Array) -> Array:
        n = len(estimates)
        return np.full(n, 1.0 / n)
