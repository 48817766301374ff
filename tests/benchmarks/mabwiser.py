"""MABWiser's LinUCB (Strong, Kleynhans & Kadıoğlu 2021) in the twin's loop, asked and taught as its users do: one
`predict` and one `partial_fit` a decision. It has arms with one shared context, no features of items: its contexts are
the encoder's columns of the context.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from mabwiser.mab import MAB, LearningPolicy
from numpy.typing import NDArray

from service.decide.features import Encoder
from service.decide.schema import FeatureSchema
from simulator.world import World
from tests.twin import Shelf

Array = NDArray[Any]


class Rival:
    """LinUCB of the paper's Algorithm 1, on arms."""

    def __init__(self, arms: list[str], d: int, *, alpha: float, seed: int) -> None:
        self._mab = MAB(arms, LearningPolicy.LinUCB(alpha=alpha), seed=seed)
        self._mab.fit([arms[0]], [0], np.zeros((1, d)))  # an event of no features: it makes the matrices, no more

    def choose(self, x: Array) -> str:
        """The arm for a context (d,)."""
        arm: str = self._mab.predict(x[None])
        return arm

    def learn(self, x: Array, arm: str, reward: float) -> None:
        """One event with its context (d,)."""
        self._mab.partial_fit([arm], [reward], x[None])


def context_columns(encoder: Encoder) -> list[int]:
    """The columns that are the same for every item: the bias and the context's."""
    return [at for at, name in enumerate(encoder.columns) if "item." not in name]


def run_rival(world: World[Any], *, steps: int, alpha: float) -> Array:
    """Expected click rates (steps,), with every click learned before the next decision."""
    encoder = Encoder(FeatureSchema.model_validate(world.schema))
    encode, shared = Shelf(encoder).rows, context_columns(encoder)
    rival = Rival(list(world.at(0).catalogue.row), len(shared), alpha=alpha, seed=world.seed)
    expected = np.zeros(steps)
    for step in range(steps):
        moment = world.at(step)
        x = encode(moment.visit.context, moment.catalogue)[0, shared].astype(np.float64)
        item = rival.choose(x)
        expected[step], clicked = moment.outcome(item)
        rival.learn(x, item, float(clicked))
    return expected
