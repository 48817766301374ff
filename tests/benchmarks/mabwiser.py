"""Runs the LinUCB of MABWiser (Strong, Kleynhans & Kadıoğlu 2021) in a simulated world.

It is called as its documentation shows: one `predict` and one `partial_fit` a decision. Its arms share one context and
have no features, so its context is the encoder's columns of the context.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from mabwiser.mab import MAB, LearningPolicy
from numpy.typing import NDArray

from service.represent.encoder import Encoder
from service.represent.schema import FeatureSchema
from simulator.world import World
from tests.benchmarks.in_process import CatalogueEncoder

Array = NDArray[Any]


class Rival:
    """LinUCB with a model for each arm (Li et al. 2010, Algorithm 1)."""

    def __init__(self, arms: list[str], d: int, *, alpha: float, seed: int) -> None:
        self._mab = MAB(arms, LearningPolicy.LinUCB(alpha=alpha), seed=seed)
        self._mab.fit([arms[0]], [0], np.zeros((1, d)))  # makes the matrices; the features of 0 teach nothing

    def choose(self, x: Array) -> str:
        """Choose the arm for a context (d,)."""
        arm: str = self._mab.predict(x[None])
        return arm

    def learn(self, x: Array, arm: str, reward: float) -> None:
        """Learn one event with its context (d,)."""
        self._mab.partial_fit([arm], [reward], x[None])


def context_columns(encoder: Encoder) -> list[int]:
    """List the columns that are the same for every item: the bias and the context's."""
    return [at for at, name in enumerate(encoder.columns) if "item." not in name]


def run_rival(world: World[Any], *, steps: int, alpha: float) -> Array:
    """Return the expected click rates (steps,). Every click is learned before the next decision."""
    encoder = Encoder(FeatureSchema.model_validate(world.schema))
    encode_catalogue, shared = CatalogueEncoder(encoder), context_columns(encoder)
    rival = Rival(list(world.at(0).catalogue.row), len(shared), alpha=alpha, seed=world.seed)
    expected = np.zeros(steps)
    for step in range(steps):
        moment = world.at(step)
        row = encode_catalogue(moment.catalogue).block.take([0])
        x = encoder.encode(moment.visit.context, row)[0, shared].astype(np.float64)
        item = rival.choose(x)
        expected[step], clicked = moment.outcome(item)
        rival.learn(x, item, float(clicked))
    return expected
