"""Runs a policy in a simulated world in one process, without HTTP and Redis.

Encoding, decisions and learning are the service's own code: `Encoder`, `Catalogue`, `decide` and `Trainer`. This file
simulates what lies between them: the time until a reward enters the log, and the time from one snapshot to the next.
One decision takes one second of simulated time.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from heapq import heappop, heappush
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.decide.active import ActiveLoop, ServedPolicy, build_scorer
from service.decide.catalogue import Catalogue
from service.decide.decision import Request, decide
from service.learn.trainer import Trainer
from service.loop import LoopSettings
from service.policies import KINDS, Candidates, Scorer
from service.records import Entry, Event, PolicyRecord, Training
from service.represent.encoder import Encoder
from service.represent.schema import FeatureSchema
from simulator import world as worlds

Array = NDArray[Any]

LOOP = "twin"  # seeds the draws: another name would change every published figure


class InProcessRun(NamedTuple):
    """The outcome of a run."""

    expected: Array  # (steps,): the expected reward of the item shown at each step
    alarms: list[int]  # steps of the snapshots before which a change was detected, one for each alarm
    trainer: Trainer  # as it was at the end
    record: PolicyRecord  # of the policy, before it had learned anything
    log: list[Entry]  # all that the trainer has applied
    decide_us: float  # microseconds of scoring and pmf, mean over the decisions
    update_us: float  # microseconds of learning, mean over the events after the history


def run_in_process(
    kind: str,
    params: Mapping[str, Any],
    *,
    world: worlds.World[Any],
    steps: int,
    snapshot_period: int,
    reward_delay: int,
    silence_delay: int | None = None,
    history: int = 0,
    floor: float = 0.01,
    schema: FeatureSchema | None = None,
) -> InProcessRun:
    """Run one policy through `steps` decisions.

    Args:
        kind: a kind of `service.policies`, with its `params`.
        world: with its shocks; its seed also seeds the policy and the draws.
        snapshot_period: decisions from one snapshot to the next.
        reward_delay: decisions that are made between a decision and the arrival of its reward.
        silence_delay: the same for decisions without a reward; None: as `reward_delay`.
        history: number of uniformly random impressions in the log at the start. A batch-trained policy then trains.
        floor: the loop's exploration floor.
        schema: the loop's features; None: those that the world declares.

    Raises:
        ValueError: the trainer refused an event.
        NumericalError: a training or a snapshot failed.
    """
    encoder = Encoder(FeatureSchema.model_validate(world.schema) if schema is None else schema)
    settings = LoopSettings(exploration_floor=floor, reward_range=world.reward_range)
    record = PolicyRecord(name=kind, id=kind, kind=kind, params=params, seed=world.seed)
    trainer = Trainer(record, d=encoder.d, reward_range=settings.reward_range)
    encode_catalogue = CatalogueEncoder(encoder)

    log = list(past_entries(world, history, record, encode_catalogue(world.catalogue(0)), encoder)) if history else []
    apply(trainer, log, 0)

    scorer = TimedScorer(build_scorer(record, trainer.policy.snapshot(), encoder.d))
    version = 1
    active = ActiveLoop(
        name=LOOP,
        id=LOOP,
        settings=settings,
        encoder=encoder,
        catalogue=encode_catalogue(world.catalogue(0)),
        traffic={kind: 1.0},
        served={kind: ServedPolicy(kind, record.id, version, scorer)},
        epoch=1,
    )
    on_the_way: list[tuple[int, int, Event]] = []  # a heap of (step of arrival, step of the decision, event)
    alarms: list[int] = []
    expected = np.zeros(steps)
    events = 0
    deciding = learning = 0.0
    for step in range(steps):
        if step % snapshot_period == 0:
            known = len(log)
            while on_the_way and on_the_way[0][0] < step:
                log.append(heappop(on_the_way)[2])
            if len(log) > known:
                started = time.perf_counter()
                alarms += [step] * apply(trainer, log, known)
                learning += time.perf_counter() - started
                events += len(log) - known
                deciding += scorer.seconds
                scorer = TimedScorer(build_scorer(record, trainer.policy.snapshot(), encoder.d))
                version += 1
                active = replace(active, served={kind: ServedPolicy(kind, record.id, version, scorer)})
        moment = world.at(step)
        catalogue = encode_catalogue(moment.catalogue)
        if catalogue is not active.catalogue:
            active = replace(active, catalogue=catalogue)
        decision, rows = decide(
            Request(
                decision_id=f"{world.seed}-{step}",
                user_id=moment.visit.user_id,
                context=moment.visit.context,
                candidates=None,
                exclude=(),
                k=1,
            ),
            active,
            at=float(step),
        )
        [shown] = decision.items
        expected[step], reward = moment.outcome(shown.id)
        arrival = step + (reward_delay if reward or silence_delay is None else silence_delay)
        event = Event(
            position=f"{1000 * (1 + arrival)}-{step}",
            decision_id=decision.decision_id,
            item=shown.id,
            user=decision.user_id,
            context=decision.context,
            x=rows[0],
            n=decision.n,
            propensity=shown.propensity,
            policy=decision.policy,
            version=decision.version,
            reward=reward,
            source="feedback",
            slate_position=step,
        )
        heappush(on_the_way, (arrival, step, event))
    deciding += scorer.seconds
    decide_us, update_us = 1e6 * deciding / steps, 1e6 * learning / max(events, 1)
    return InProcessRun(expected, alarms, trainer, record, log, decide_us, update_us)


def apply(trainer: Trainer, log: Sequence[Entry], start: int) -> int:
    """Learn log[start:] as the service's runner does: stop where a training is due, train on the log so far, go on.

    Returns:
        The number of alarms.

    Raises:
        ValueError: the trainer refused an event.
        NumericalError: a training failed.
    """
    alarms = 0
    while start < len(log):
        done = trainer.apply(log[start:])
        if done.refused:
            raise ValueError(f"the trainer refused {done.refused[0]}")
        start += done.read
        alarms += len(done.alarms)
        if done.training_due:
            trainer.train([log[:start]])
    return alarms


def past_entries(
    world: worlds.World[Any], size: int, record: PolicyRecord, catalogue: Catalogue, encoder: Encoder
) -> Iterator[Entry]:
    """Generate the log of an import of `size` random impressions, and a request to train if the policy needs one."""
    block_of = {item: catalogue.block.take([row]) for item, row in catalogue.index.items()}
    for number, impression in enumerate(world.history(size), start=1):
        [row] = encoder.encode(impression["context"], block_of[impression["item_id"]])
        yield Event(
            position=f"0-{number}",
            decision_id=impression["event_id"],
            item=impression["item_id"],
            user=impression["user_id"],
            context=impression["context"],
            x=row,
            n=None,
            propensity=impression["propensity"],
            policy=None,
            version=0,
            reward=impression["reward"],
            source="import",
        )
    if KINDS[record.kind].batch_trained:
        yield Training(f"0-{size + 1}", record.name, record.id)


class CatalogueEncoder:
    """Makes a world's catalogue the loop's. Encodes it anew only when it changes."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._on_offer: worlds.Catalogue | None = None
        self._encoded = Catalogue.of(0, {}, encoder)

    def __call__(self, on_offer: worlds.Catalogue) -> Catalogue:
        """Return the encoded catalogue, in the world's order of items; the same object while nothing changes."""
        if on_offer is not self._on_offer:
            features = {item.id: item.features for item in on_offer.items}
            self._on_offer = on_offer
            self._encoded = Catalogue.of(self._encoded.version + 1, features, self._encoder)
        return self._encoded


class TimedScorer(Scorer):
    """Adds up the time that a scorer takes, in `seconds`."""

    def __init__(self, scorer: Scorer) -> None:
        self._scorer = scorer
        self.seconds = 0.0

    def estimate(self, candidates: Candidates) -> Array:
        started = time.perf_counter()
        estimates = self._scorer.estimate(candidates)
        self.seconds += time.perf_counter() - started
        return estimates

    def pmf(self, estimates: Array) -> Array:
        started = time.perf_counter()
        pmf = self._scorer.pmf(estimates)
        self.seconds += time.perf_counter() - started
        return pmf


def oracle(world: worlds.World[Any], steps: int) -> Array:
    """Compute the largest click rate at each step: (steps,)."""
    return np.array([world.at(step).oracle for step in range(steps)])
