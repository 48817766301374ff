"""The loop in one process: the same policies on the same worlds as the arena, without HTTP, Redis or learner.

It does by hand what the service promises: encode, pmf, floor, one draw; a reward arrives `reward_delay` decisions after
its decision; every `snapshot_period` decisions all that has arrived is learned and served. So its figures are those
that the service must reach, whatever lies between.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from heapq import heappop, heappush
from typing import Any, NamedTuple

import numpy as np
import orjson
from numpy.typing import NDArray

from service.decide.decision import draw_slate, seed_of
from service.decide.features import Encoder
from service.decide.schema import FeatureSchema
from service.learn.drift import Drift
from service.policies import KINDS, Batch, Candidates
from service.policies._base import part
from simulator.world import Catalogue, World

Array = NDArray[Any]


class Row(NamedTuple):
    """One event, as the log would hold it."""

    x: Array
    item_id: str
    user_id: str
    reward: float
    propensity: float


class Twin(NamedTuple):
    """What a run came to."""

    expected: Array  # (steps,): the click rate of the item shown at each step
    alarms: list[int]  # the steps at which a change was noticed
    drift: Drift  # as it was at the end
    decide_us: float  # scoring and pmf, mean over the decisions
    update_us: float  # learning, mean over the events


def run_twin(
    policy_kind: str,
    params: Mapping[str, Any],
    *,
    world: World[Any],
    steps: int,
    snapshot_period: int,
    reward_delay: int,
    silence_delay: int | None = None,
    history: int = 0,
    floor: float = 0.01,
) -> Twin:
    """One policy through `steps` decisions.

    Args:
        policy_kind: a kind of `service.policies`, with its `params`.
        world: with its shocks; its seed is also the policy's and that of the draws.
        snapshot_period: decisions from one snapshot to the next.
        reward_delay: decisions that are made between a decision and the arrival of its reward.
        silence_delay: the same where nobody clicked, if that is told by the end of the wait only.
        history: uniformly random impressions to learn from, or train on, beforehand.
        floor: the loop's exploration floor.
    """
    encoder = Encoder(FeatureSchema.model_validate(world.schema))
    shelf = Shelf(encoder)
    kind = KINDS[policy_kind]
    policy = kind(encoder.d, kind.Params.model_validate(params), seed=world.seed)
    drift = Drift(policy)
    past: list[Batch] = []
    if history:
        on_offer = world.catalogue(0)
        rows = (
            Row(
                shelf.rows(e["context"], on_offer)[on_offer.row[e["item_id"]]].copy(),
                *(e[name] for name in Row._fields[1:]),
            )
            for e in world.history(history)
        )
        past = [batch_of(rows)]
        learn(drift, past[0], at=0.0)
        if policy.batch_trained:
            policy.train(past)

    log: list[Row] = []
    places: list[int] = []  # of the events in `log`, as their decisions were made
    coming: list[tuple[int, int, Row]] = []  # (when it arrives, its place, the event)
    alarms: list[int] = []
    expected = np.zeros(steps)
    learned = 0
    deciding = learning = 0.0
    for step in range(steps):
        if step % snapshot_period == 0:
            while coming and coming[0][0] < step:
                _, place, row = heappop(coming)
                log.append(row)
                places.append(place)
            if len(log) > learned:
                batch, started = batch_of(log[learned:]), time.perf_counter()
                alarms += [step] * learn(drift, batch, at=float(step), places=places[learned:])
                if any(policy.train_due(events) for events in range(learned + 1, len(log) + 1)):
                    policy.train([*past, batch_of(log)])
                learning += time.perf_counter() - started
                learned = len(log)
            scorer = kind.scorer(policy.snapshot(), d=encoder.d, params=policy.params)
        moment = world.at(step)
        x = shelf.rows(moment.visit.context, moment.catalogue)
        ids, user = list(moment.catalogue.row), moment.visit.user_id
        started = time.perf_counter()
        estimates = scorer.estimate(Candidates(x, ids, user))
        [pick] = draw_slate(scorer, estimates, k=1, floor=floor, seed=seed_of("twin", f"{world.seed}-{step}"))
        deciding += time.perf_counter() - started
        expected[step], clicked = moment.outcome(ids[pick.row])
        delay = reward_delay if clicked or silence_delay is None else silence_delay
        row = Row(x[pick.row].copy(), ids[pick.row], user, float(clicked), pick.propensity)
        heappush(coming, (step + delay, step, row))
    return Twin(expected, alarms, drift, deciding / steps * 1e6, learning / max(learned, 1) * 1e6)


class Shelf:
    """What is on offer, encoded; remembers the contexts that it met lately."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._catalogue: Catalogue | None = None
        self._rows = lru_cache(maxsize=100)(self._encode)

    def rows(self, context: Mapping[str, Any], catalogue: Catalogue) -> Array:
        """x (n, d) of the whole catalogue."""
        if catalogue is not self._catalogue:
            self._catalogue = catalogue
            self._block = self._encoder.items([item.features for item in catalogue.items])
            self._rows.cache_clear()
        return self._rows(orjson.dumps(context))

    def _encode(self, context: bytes) -> Array:
        return self._encoder.encode(orjson.loads(context), self._block)


def learn(drift: Drift, batch: Batch, *, at: float, places: Sequence[int] | None = None) -> int:
    """Learn B events that came at the time `at`; the number of alarms."""
    return sum(
        drift.update(part(batch, rows), at, places and places[rows]) is not None
        for rows in drift.parts(len(batch.item))
    )


def oracle(world: World[Any], steps: int) -> Array:
    """The best expected click rate at each step: (steps,)."""
    return np.array([world.at(step).oracle for step in range(steps)])


def batch_of(rows: Iterable[Row]) -> Batch:
    """Events in log order."""
    x, item, user, reward, propensity = zip(*rows, strict=True)
    return Batch(np.stack(x), item, user, np.array(reward), np.array(propensity))
