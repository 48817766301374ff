"""A policy that writes down what is asked of it. Tests that use it put it among the kinds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from service.policies import Array, Arrays, Batch, NumericalError, Params, Policy, Scorer
from service.policies.random import RandomScorer


class RecorderParams(Params):
    """Parameters of `Recorder`."""

    trains: bool = False
    every: int = 0  # events in the log from one training to the next; 0: only when it is asked for


class Recorder(Policy[RecorderParams]):
    """Writes down what is asked of it, in order. It refuses events of the item `poison`, as the interface says."""

    kind = "recorder"
    Params = RecorderParams
    batch_trained = True

    def __init__(self, d: int, params: RecorderParams, *, seed: int = 0) -> None:
        super().__init__(d, params, seed=seed)
        self.said: list[str] = []

    def update(self, batch: Batch) -> None:
        if "poison" in batch.item:
            raise NumericalError("poison")
        self.said += [f"{item} {reward:g}" for item, reward in zip(batch.item, batch.reward.tolist(), strict=True)]

    def forget(self, keep: float) -> None:
        self.said.append(f"keep {keep:g}")

    def forget_items(self, gone: Any) -> None:
        self.said.append(f"forget {' '.join(gone)}")

    def train_due(self, events: int) -> bool:
        return self.params.every > 0 and events % self.params.every == 0

    def train(self, history: Any) -> None:
        seen = [item for batch in history for item in batch.item]
        if "impossible" in seen:
            raise NumericalError("impossible")
        self.said.append(f"train on {len(seen)}")

    def state(self) -> Arrays:
        return {"said": np.frombuffer("\n".join(self.said).encode(), np.uint8).copy()}

    def load(self, state: Arrays) -> None:
        self.said = state["said"].tobytes().decode().split("\n") if state["said"].size else []

    def snapshot(self) -> Arrays:
        return {}

    @classmethod
    def scorer(cls, snapshot: Mapping[str, Array], *, d: int, params: RecorderParams) -> Scorer:
        return RandomScorer()
