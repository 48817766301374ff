"""Policies head to head over HTTP, each in a loop of its own.

All loops go through the same steps together: the same users, the same luck. A window of steps is asked for at once, and
its rewards are sent as one batch, so a policy learns while it serves, as it does in life.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from simulator.client import Service
from simulator.contestants import BATCH_TRAINED, Contestant, PolicySpec
from simulator.errors import Unplayable
from simulator.progress import Advance, Stages
from simulator.shocks import find_shock
from simulator.world import WORLDS, Catalogue, Moment, Visit, World

Array = NDArray[Any]

TRAINING_S = 300.0
REPORTS = 1000  # in one request, at most
HISTORY, TRAINING, PLAY = "importing the history", "training embedding_mlp", "playing"


@dataclass(frozen=True)
class Plan:
    """What is to be played.

    Args:
        shocks: (name, step as an int, or share of the run in [0, 1) as a float).
        window: requests in flight for each loop.
        history: random impressions that the batch-trained policies get.
        keep: leave the loops in the service, to be looked at.
    """

    contestants: Sequence[Contestant]
    world: str = "petshop"
    steps: int = 20_000
    seeds: Sequence[int] = (1,)
    shocks: Sequence[tuple[str, int | float]] = (("taste-swap", 0.5),)
    window: int = 16
    history: int = 200_000
    keep: bool = False

    @property
    def shock_steps(self) -> list[tuple[str, int]]:
        """(name, step), in order of step."""
        steps = ((name, at if isinstance(at, int) else int(at * self.steps)) for name, at in self.shocks)
        return sorted(steps, key=lambda entry: entry[1])


@dataclass
class Track:
    """What one contestant did, step by step."""

    contestant: Contestant
    loop: str
    expected: Array  # (T,): the click rate of the item that was shown
    clicks: Array  # (T,) bool
    latency_ms: Array  # (T,), of /recommend
    version: Array  # (T,)
    policy: list[str]  # (T,): what served
    held: list[tuple[int, dict[str, Any]]] = field(default_factory=list)  # (step, report that is sent then)
    swap: asyncio.Task[None] | None = None
    alarms: list[dict[str, Any]] = field(default_factory=list)  # changes noticed: policy, step, reaction
    swapped_at: int | None = None  # the first step that the successor served
    adopted_at: int | None = None  # the first step that was asked after every worker had adopted it

    @classmethod
    def empty(cls, contestant: Contestant, loop: str, steps: int) -> Track:
        rates, latency = np.zeros(steps), np.zeros(steps)
        return cls(contestant, loop, rates, np.zeros(steps, bool), latency, np.zeros(steps, np.int64), [""] * steps)


@dataclass
class Run:
    """All contestants through one seed."""

    seed: int
    oracle: Array  # (T,)
    random: Array  # (T,)
    tracks: list[Track]
    seconds: float = 0.0
    training_s: dict[str, float] = field(default_factory=dict)


async def play(service: Service, plan: Plan, stages: Stages) -> list[Run]:
    """One run for each seed.

    Raises:
        ServiceError: a request failed; none is tried again.
        Unplayable: the service answered from memory, or with something that is not on offer.
        UnknownName: there is no such shock.
    """
    return [await _play_seed(service, plan, seed, stages) for seed in plan.seeds]


async def _play_seed(service: Service, plan: Plan, seed: int, stages: Stages) -> Run:
    schedule = [(step, find_shock(plan.world, name)) for name, step in plan.shock_steps]
    world = WORLDS[plan.world](seed, schedule)
    token = uuid4().hex[:8]
    tracks = [
        Track.empty(contestant, f"arena-{token}-{number}-{contestant.policy.kind}"[:64], plan.steps)
        for number, contestant in enumerate(plan.contestants)
    ]
    run = Run(seed, np.zeros(plan.steps), np.zeros(plan.steps), tracks)
    async with AsyncExitStack() as made:
        for track in tracks:
            await service.put_loop(track.loop, {"schema": world.schema})
            if not plan.keep:
                made.push_async_callback(service.delete_loop, track.loop)
            await _prepare(service, world, track)
        await _train(service, world, plan, run, stages)
        for track in tracks:
            await service.activate(track.loop, track.contestant.policy.kind)
        title = PLAY if len(plan.seeds) == 1 else f"{PLAY} seed {seed}"
        with stages.stage(title, plan.steps) as advance:
            started = time.perf_counter()
            await _steps(service, world, plan, run, advance)
            run.seconds = time.perf_counter() - started
        for track in tracks:
            track.alarms = await _alarms(service, plan, track)
    return run


async def _alarms(service: Service, plan: Plan, track: Track) -> list[dict[str, Any]]:
    """What the policies of a loop noticed; a step is one event of its log, after those of the history."""
    past = plan.history if track.contestant.needs_history else 0
    return [
        {"policy": policy.kind, "step": alarm["events"] - past, "reaction": alarm["reaction"]}
        for policy in track.contestant.policies
        for alarm in (await service.policy(track.loop, policy.kind))["alarms"]
    ]


async def _prepare(service: Service, world: World[Any], track: Track) -> None:
    """The catalogue, and the policies but for those that wait for the history."""
    await service.put_items(track.loop, world.catalogue(0).items)
    for policy in track.contestant.policies:
        if policy.kind not in BATCH_TRAINED:
            await service.create_policy(track.loop, policy.kind, policy.kind, policy.params)


async def _train(service: Service, world: World[Any], plan: Plan, run: Run, stages: Stages) -> None:
    """Import the history where one is needed, and train on it."""
    needy = [track for track in run.tracks if track.contestant.needs_history]
    for track in needy:
        with stages.stage(HISTORY, plan.history) as advance:
            await service.import_events(track.loop, world.history(plan.history), progress=advance)
        for policy in track.contestant.policies:
            if policy.kind in BATCH_TRAINED:
                with stages.stage(TRAINING):
                    run.training_s[track.contestant.label] = await _trained(service, track.loop, policy)


async def _trained(service: Service, loop: str, policy: PolicySpec) -> float:
    """Create a batch-trained policy and wait for its first version; the seconds that took.

    Raises:
        Unplayable: there is none after 300 s.
    """
    started = time.monotonic()
    await service.create_policy(loop, policy.kind, policy.kind, policy.params)
    while (await service.policy(loop, policy.kind))["version"] < 1:
        if time.monotonic() - started > TRAINING_S:
            raise Unplayable(f"{policy.kind} is not trained after {TRAINING_S:.0f} s: is a learner running?")
        await asyncio.sleep(0.2)
    return time.monotonic() - started


async def _steps(service: Service, world: World[Any], plan: Plan, run: Run, advance: Advance) -> None:
    """All steps, window by window; a window never reaches over a shock."""
    shocks = {step for _, step in plan.shock_steps}
    cuts = sorted(shocks | {plan.steps})
    start = 0
    while start < plan.steps:
        if start in shocks and start > 0:
            before, after = world.catalogue(start - 1), world.catalogue(start)
            await asyncio.gather(*(change_catalogue(service, track.loop, before, after) for track in run.tracks))
        end = min(start + plan.window, next(cut for cut in cuts if cut > start))
        moments = [world.at(step) for step in range(start, end)]
        for moment in moments:
            run.oracle[moment.step], run.random[moment.step] = moment.oracle, moment.random
        for track in run.tracks:
            _swap(service, track, start, plan.steps)
        await asyncio.gather(*(_window(service, world, track, moments) for track in run.tracks))
        advance(end - start)
        start = end
    for track in run.tracks:
        if track.swap is not None:
            await track.swap


async def change_catalogue(service: Service, loop: str, before: Catalogue, after: Catalogue) -> None:
    """Tell the service which items came and which left."""
    came = [item for item in after.items if item.id not in before.row]
    if came:
        await service.put_items(loop, came)
    for item in before.items:
        if item.id not in after.row:
            await service.delete_item(loop, item.id)


def _swap(service: Service, track: Track, step: int, steps: int) -> None:
    """When it is time, ask for the successor while the traffic goes on; note from when on all workers have it."""
    successor = track.contestant.successor
    if successor is None:
        return
    if track.swap is None and step >= track.contestant.swap_at * steps:
        track.swap = asyncio.create_task(service.activate(track.loop, successor.kind))
    elif track.swap is not None and track.swap.done() and track.adopted_at is None:
        track.swap.result()
        track.adopted_at = step


async def _window(service: Service, world: World[Any], track: Track, moments: Sequence[Moment]) -> None:
    """Decide for all moments at once, and for their bots, then report the rewards that are due."""
    people = [_step(service, track, moment) for moment in moments]
    bots = [_bot(service, track, visit) for moment in moments for visit in world.bots(moment.step)]
    reports = await asyncio.gather(*people, *bots)
    for moment, report in zip(moments, reports, strict=False):
        traffic = world.traffic(moment.step)
        if not traffic.silent:
            track.held.append((moment.step + traffic.delay, report))
    now = moments[-1].step
    due = [report for step, report in track.held if step <= now] + reports[len(moments) :]
    track.held = [entry for entry in track.held if entry[0] > now]
    for start in range(0, len(due), REPORTS):
        for result in await service.feedback(track.loop, due[start : start + REPORTS]):
            if result["status"] != "accepted":
                raise Unplayable(f"{track.contestant.label}: a reward was not accepted: {result}")


async def _bot(service: Service, track: Track, visit: Visit) -> dict[str, Any]:
    """It clicks whatever it is shown, and is in no figure."""
    reply = await service.recommend(track.loop, visit.user_id, visit.context)
    return {"decision_id": reply["decision_id"], "item_id": reply["items"][0]["id"], "reward": 1.0}


async def _step(service: Service, track: Track, moment: Moment) -> dict[str, Any]:
    """One decision, noted; returns the report of its reward."""
    started = time.perf_counter()
    reply = await service.recommend(track.loop, moment.visit.user_id, moment.visit.context)
    step = moment.step
    track.latency_ms[step] = (time.perf_counter() - started) * 1000
    item = reply["items"][0]["id"]
    if reply["degraded"]:
        raise Unplayable(f"{track.contestant.label}: step {step} was answered from memory; see `GET /status`")
    if item not in moment.catalogue.row:
        raise Unplayable(f"{track.contestant.label}: {item!r} was recommended at step {step} and is not on offer")
    if reply["policy"] not in {policy.kind for policy in track.contestant.policies}:
        raise Unplayable(f"{track.contestant.label}: step {step} was served by {reply['policy']!r}")
    track.expected[step], track.clicks[step] = moment.outcome(item)
    track.version[step], track.policy[step] = reply["version"], reply["policy"]
    successor = track.contestant.successor
    if successor is not None and reply["policy"] == successor.kind:
        track.swapped_at = step if track.swapped_at is None else min(step, track.swapped_at)
    elif track.adopted_at is not None:
        raise Unplayable(f"{track.contestant.label}: step {step} was served by the old policy after the swap")
    return {"decision_id": reply["decision_id"], "item_id": item, "reward": float(track.clicks[step])}
