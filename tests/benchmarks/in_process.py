"""Runs a policy in a simulated world in one process, without HTTP and Redis.

Encoding, decisions and learning are the service's own code: `Encoder`, `Catalogue`, `decide` and `Trainer`. This file
simulates what lies between them: the time until a reward enters the log, and the time from one snapshot to the next.
One decision takes one second of simulated time.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from heapq import heappop, heappush
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from service.decide.active import ActiveLoop, ServedPolicy, serving
from service.decide.catalogue import Catalogue
from service.decide.decision import Request, decide
from service.learn.trainer import Trainer
from service.loop import LoopSettings
from service.policies import KINDS, Candidates, Ranked, Scorer
from service.records import Entry, Event, PolicyRecord, Successor, Training
from service.represent.encoder import Encoder
from service.represent.fit import WINDOW, Raw, fit
from service.represent.graph import GRAPH, NEWEST, Take
from service.represent.learned import LearnedEncoder, LearnedSchema
from service.represent.notices import notices_of
from service.represent.profile import Profile
from service.represent.schedule import Schedule
from service.represent.schema import FeatureSchema
from service.represent.user_state import OF_OTHER_TYPES, USER, WEIGHTS, Activity, ItemFields, user_state
from simulator import world as worlds

Array = NDArray[Any]
Job = TypeVar("Job")
Outcome = TypeVar("Outcome")

LOOK = 100  # events from one look at the notices to the next
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
    fits: bool = False,
    states: Collection[str] = (),
    reward_activity: bool = False,
    describe: Describe | None = None,
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
        fits: whether schemas are fitted to the log, as the service does where nobody declares one.
        states: parts of the states of users (`represent/user_state.py`) that their contexts hold; (): none.
        reward_activity: whether rewards count as activity, as with the loop's setting of this name.
        describe: makes the fields of a visitor's neighbourhood, which are as old as the snapshot; None: there are none.

    Raises:
        ValueError: the trainer refused an event.
        NumericalError: a training or a snapshot failed.
    """
    encoder = Encoder(FeatureSchema.model_validate(world.schema) if schema is None else schema)
    settings = LoopSettings(exploration_floor=floor, reward_range=world.reward_range)
    record = PolicyRecord(name=kind, id=kind, kind=kind, params=params, seed=world.seed)
    trainer = Trainer(
        record,
        d=encoder.d,
        reward_range=settings.reward_range,
        encoder=encoder.version,
        schema=encoder.schema.model_dump(mode="json"),
    )
    fitting = Fitting() if fits else None
    encode_catalogue = CatalogueEncoder(encoder)

    log = list(past_entries(world, history, record, encode_catalogue(world.catalogue(0)), encoder)) if history else []
    apply(trainer, log, 0)

    version = 1
    served, scorer = timed(record, version, trainer)
    active = ActiveLoop(
        name=LOOP,
        id=LOOP,
        settings=settings,
        encoder=encoder,
        catalogue=encode_catalogue(world.catalogue(0)),
        traffic={kind: 1.0},
        served={kind: served},
        epoch=1,
    )
    on_the_way: list[tuple[int, int, Event]] = []  # a heap of (step of arrival, step of the decision, event)
    alarms: list[int] = []
    expected = np.zeros(steps)
    users, neighbours = Users(states), Neighbours(world, describe)
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
                if fitting is not None and (successor := fitting.successor(log)) is not None:
                    log.append(successor)
                    alarms += [step] * apply(trainer, log, len(log) - 1)
                learning += time.perf_counter() - started
                events += len(log) - known
                deciding += scorer.seconds
                version += 1
                served, scorer = timed(record, version, trainer)
                active = replace(active, served={kind: served})
        if step % snapshot_period == 0:
            neighbours.refresh(step)
        moment = world.at(step)
        catalogue = encode_catalogue(moment.catalogue)
        if catalogue.version == active.catalogue.version:
            catalogue = active.catalogue
        catalogue = catalogue.encoded([active.encoder, trainer.current_encoder])
        if catalogue is not active.catalogue:
            active = replace(active, catalogue=catalogue)
        decision, rows = decide(
            Request(
                decision_id=f"{world.seed}-{step}",
                user_id=moment.visit.user_id,
                context={
                    **users.context(moment.visit, catalogue, step),
                    **neighbours.context(moment.visit, catalogue, step),
                },
                candidates=None,
                exclude=(),
                k=1,
            ),
            active,
            at=float(step),
        )
        [shown] = decision.items
        expected[step], reward = moment.outcome(shown.id)
        if reward_activity and reward > 0:
            users.take(moment.visit.user_id, shown.id, "reward", step)
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
            features=catalogue.features[shown.id],
            encoder=decision.encoder,
        )
        heappush(on_the_way, (arrival, step, event))
    deciding += scorer.seconds
    decide_us, update_us = 1e6 * deciding / steps, 1e6 * learning / max(events, 1)
    return InProcessRun(expected, alarms, trainer, record, log, decide_us, update_us)


def shares_of_halves(expected: NDArray[np.float64], best: NDArray[np.float64]) -> list[float]:
    """Return the shares of the oracle: of the first half of a run, of that half's last fifth, and so of the second."""
    shock = len(expected) // 2
    halves = [(expected[:shock], best[:shock]), (expected[shock:], best[shock:])]
    return [
        float(shown[start:].sum() / of_best[start:].sum())
        for shown, of_best in halves
        for start in (0, len(shown) * 4 // 5)
    ]


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
        if done.successor is not None:
            trainer.relearn([log[:start]])
        if done.training_due:
            trainer.train([log[:start]])
    return alarms


def timed(record: PolicyRecord, version: int, trainer: Trainer) -> tuple[ServedPolicy, TimedScorer]:
    """Make the policy ready to serve as it is now, with a scorer that adds up its time."""
    served = serving(record, version, trainer.policy.snapshot(), trainer.current_encoder)
    scorer = TimedScorer(served.scorer)
    return replace(served, scorer=scorer), scorer


def past_entries(
    world: worlds.World[Any], size: int, record: PolicyRecord, catalogue: Catalogue, encoder: Encoder
) -> Iterator[Entry]:
    """Generate the log of an import of `size` random impressions, and a request to train if the policy needs one."""
    block_of = {item: catalogue.block.take([row]) for row, item in enumerate(catalogue.ids)}
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


class Users:
    """Keeps the activity of users, as the service does, and shows these parts of their states."""

    def __init__(self, parts: Collection[str]) -> None:
        self._parts = parts
        self._kept: dict[str, list[Activity]] = defaultdict(list)

    def take(self, user: str, item: str, kind: str, step: int) -> None:
        """Keep an activity."""
        kept = self._kept[user]
        number = kept[-1].number + 1 if kept else 1
        kept.append(Activity(number, 1000 * step, item, kind))
        del kept[: -LoopSettings().activity_kept]

    def context(self, visit: worlds.Visit, catalogue: Catalogue, step: int) -> Mapping[str, Any]:
        """Take what was done before a visit, and return the visit's context with the user's state."""
        if not self._parts:
            return visit.context
        for deed in visit.deeds:
            self.take(deed.user_id or visit.user_id, deed.item_id, deed.type, step)
        state = user_state(self._kept[visit.user_id], catalogue.fields, at=1000 * step)
        shown = {part: state[part] for part in state if part in self._parts}
        return {**visit.context, USER: shown} if shown else visit.context


class Around(NamedTuple):
    """What is known of all users, for whoever describes the neighbourhood of one."""

    knows: Mapping[str, Collection[str]]  # user -> whom he knows
    takes: Mapping[str, Sequence[Take]]  # user -> his newest takes
    items: ItemFields


Describe = Callable[[str, Around], Mapping[str, Any]]


class Neighbours:
    """Keeps ties and takes, and describes neighbourhoods from those that were known at the last refresh."""

    def __init__(self, world: worlds.World[Any], describe: Describe | None) -> None:
        self._world, self._describe = world, describe
        self._ties: Collection[worlds.Tie] = ()
        self._knows: dict[str, set[str]] = defaultdict(set)
        self._takes: dict[str, list[Take]] = defaultdict(list)
        self._news: list[tuple[str, Take]] = []
        self._fields: dict[str, Mapping[str, Any]] = {}  # by user, since the last refresh

    def refresh(self, step: int) -> None:
        """Learn what has happened."""
        if self._describe is None:
            return
        self._fields = {}
        for user, take in self._news:
            self._takes[user] = [*self._takes[user], take][-NEWEST:]
        self._news = []
        if (ties := self._world.ties(step)) is not self._ties:
            self._ties, self._knows = ties, defaultdict(set)
            for tie in ties:
                self._knows[tie.user].add(tie.to)

    def context(self, visit: worlds.Visit, catalogue: Catalogue, step: int) -> Mapping[str, Any]:
        """Take note of what was done before a visit, and return the visitor's fields."""
        if self._describe is None:
            return {}
        for deed in visit.deeds:
            take = Take(1000 * step, deed.item_id, WEIGHTS.get(deed.type, OF_OTHER_TYPES))
            self._news.append((deed.user_id or visit.user_id, take))
        if visit.user_id not in self._fields:
            self._fields[visit.user_id] = self._describe(
                visit.user_id, Around(self._knows, self._takes, catalogue.fields)
            )
        fields = self._fields[visit.user_id]
        return {GRAPH: fields} if fields else {}


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
        return self._scorer.estimate(candidates)

    def pmf(self, estimates: Array) -> Array:
        return self._scorer.pmf(estimates)

    def rank(self, candidates: Candidates) -> Ranked:
        started = time.perf_counter()
        ranked = TimedRanked(self, self._scorer.rank(candidates))
        self.seconds += time.perf_counter() - started
        return ranked


class TimedRanked(Ranked):
    """Adds the time of the pmf to its scorer's."""

    def __init__(self, timed: TimedScorer, ranked: Ranked) -> None:
        self._timed, self._ranked = timed, ranked

    def __len__(self) -> int:
        return len(self._ranked)

    def score(self, row: int) -> float:
        return self._ranked.score(row)

    def pmf(self, left: Array | None = None) -> Array:
        started = time.perf_counter()
        pmf = self._ranked.pmf(left)
        self._timed.seconds += time.perf_counter() - started
        return pmf


def in_parallel(
    play: Callable[[Job], Outcome], jobs: Sequence[Job], processes: int | None = None
) -> Iterator[tuple[Job, Outcome]]:
    """Play all jobs in processes of their own; yield each with its outcome as soon as it is over."""
    with ProcessPoolExecutor(processes) as pool:
        running = {pool.submit(play, job): job for job in jobs}
        for done in as_completed(running):
            yield running[done], done.result()


def oracle(world: worlds.World[Any], steps: int) -> Array:
    """Compute the largest click rate at each step: (steps,)."""
    return np.array([world.at(step).oracle for step in range(steps)])


class Fitting:
    """Fits schemas to the log of a run, as the service's learner does, which looks at the notices now and then."""

    def __init__(self) -> None:
        self._profile, self._seen, self._schedule = Profile(), 0, Schedule()
        self._looked = 0
        self._former: LearnedSchema | None = None

    def successor(self, log: Sequence[Entry]) -> Successor | None:
        """Return what is to be appended to a log that has grown, None if no fit is due."""
        events = [entry for entry in log if isinstance(entry, Event)]
        for event in events[self._seen :]:
            self._profile.add(
                context=event.context,
                item=event.item,
                features=event.features or {},
                user=event.user,
                reward=event.reward,
                at=event.time,
            )
        self._seen = len(events)
        if len(events) >= self._looked + LOOK:
            self._looked = len(events)
            self._schedule.heed(notices_of(self._profile, reward_range=(0.0, 1.0), fits=True), len(events))
        if not self._schedule.is_due(len(events)):
            return None
        self._schedule.fitted(len(events))
        records = [
            Raw(event.context, event.item, event.features or {}, event.user, event.reward) for event in events[-WINDOW:]
        ]
        self._former = fit(records, self._profile, self._former).schema
        milliseconds = log[-1].position.partition("-")[0]
        return Successor(
            position=f"{milliseconds}-{10**9 + len(events)}",
            encoder=LearnedEncoder(self._former).version,
            schema=self._former.model_dump(mode="json"),
            events=len(events),
            why="fitted",
        )
