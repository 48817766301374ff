"""Compare policies over HTTP, each in a loop of its own.

All loops take the same steps together, with the same users and the same draws. The decisions of a window of steps are
requested at once, then the rewards are sent as one batch. So every policy learns while it serves.
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

from simulator.client import BATCH, ServiceClient
from simulator.contestants import Contestant, PolicySpec
from simulator.errors import InvalidExperiment
from simulator.kinds import Kinds, check_kinds
from simulator.progress import Advance, Stages
from simulator.shocks import find_shock
from simulator.world import WORLDS, Catalogue, Item, Moment, Tie, Visit, World

Array = NDArray[Any]

TRAINING_TIMEOUT_S = 300.0
POLL_S = 0.2
AT_ONCE = 16  # items that are deleted at once: each waits until all workers know
HISTORY, TRAINING, STEPS = "importing the history", "training on the history", "taking the steps"


@dataclass(frozen=True)
class ArenaPlan:
    """Settings of an arena.

    Args:
        shocks: (name, step as an int, or share of the run in [0, 1) as a float).
        window: requests in flight for each loop.
        history: random impressions for the policies that are trained in batches.
        keep: leave the loops in the service.
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

    @property
    def specs(self) -> list[PolicySpec]:
        """Every policy, successors included."""
        return [spec for contestant in self.contestants for spec in contestant.policies]


@dataclass
class Trajectory:
    """The decisions of one contestant in one run, step by step."""

    contestant: Contestant
    loop: str
    expected: Array  # (T,): expected reward of the item shown
    rewards: Array  # (T,)
    latency_ms: Array  # (T,), of /recommend
    version: Array  # (T,)
    policy: list[str]  # (T,): the policy that served
    delayed: list[tuple[int, dict[str, Any]]] = field(default_factory=list)  # (step to send it at, report)
    swap: asyncio.Task[None] | None = None
    alarms: list[dict[str, Any]] = field(default_factory=list)  # changes noticed: policy, step, reaction
    swapped_at: int | None = None  # first step that the successor served
    adopted_at: int | None = None  # first step requested after every worker had adopted the successor

    @classmethod
    def empty(cls, contestant: Contestant, loop: str, steps: int) -> Trajectory:
        rates, rewards, latency = np.zeros((3, steps))
        return cls(contestant, loop, rates, rewards, latency, np.zeros(steps, np.int64), [""] * steps)


@dataclass
class SeedRun:
    """All contestants through one seed."""

    seed: int
    oracle: Array  # (T,): best expected reward at each step
    random: Array  # (T,): expected reward of a uniform choice
    trajectories: list[Trajectory]
    seconds: float = 0.0
    training_s: dict[str, float] = field(default_factory=dict)  # label → seconds
    person: Array = field(init=False)  # (T,) bool: False for the requests of robots

    def __post_init__(self) -> None:
        self.person = np.ones(len(self.oracle), bool)


@dataclass(frozen=True)
class ArenaResult:
    """One run for each seed.

    Args:
        baseline: label of the first contestant that is trained in batches; None: there is none.
    """

    plan: ArenaPlan
    runs: Sequence[SeedRun]
    baseline: str | None = None


async def run_arena(client: ServiceClient, plan: ArenaPlan, stages: Stages) -> ArenaResult:
    """Run every seed of the plan.

    Raises:
        ServiceError: a request failed; none is repeated.
        InvalidExperiment: a decision was made from memory, or shows an item that is not on offer.
        UsageError: there is no such shock, or the service has no such kind of policy.
    """
    kinds = await client.kinds()
    check_kinds(plan.specs, kinds)
    baseline = next((c.label for c in plan.contestants if not c.successor and kinds[c.policy.kind].batch_trained), None)
    runs = [await _run_seed(client, plan, seed, kinds, stages) for seed in plan.seeds]
    return ArenaResult(plan, runs, baseline)


async def _run_seed(client: ServiceClient, plan: ArenaPlan, seed: int, kinds: Kinds, stages: Stages) -> SeedRun:
    schedule = [(step, find_shock(plan.world, name)) for name, step in plan.shock_steps]
    world = WORLDS[plan.world](seed, schedule)
    token = uuid4().hex[:8]
    trajectories = [
        Trajectory.empty(contestant, f"arena-{token}-{number}-{contestant.policy.kind}"[:64], plan.steps)
        for number, contestant in enumerate(plan.contestants)
    ]
    run = SeedRun(seed, np.zeros(plan.steps), np.zeros(plan.steps), trajectories)
    async with AsyncExitStack() as created:
        for trajectory in trajectories:
            await client.put_loop(trajectory.loop, world.settings)
            if not plan.keep:
                created.push_async_callback(client.delete_loop, trajectory.loop)
            if not world.inline:
                await client.put_items(trajectory.loop, world.catalogue(0).items)
            for spec in trajectory.contestant.policies:
                if not kinds[spec.kind].batch_trained:  # those wait for the history
                    await client.create_policy(trajectory.loop, spec.kind, spec.kind, spec.params)
        await _train(client, world, plan, run, kinds, stages)
        for trajectory in trajectories:
            await client.activate(trajectory.loop, trajectory.contestant.policy.kind)
        title = STEPS if len(plan.seeds) == 1 else f"{STEPS}, seed {seed}"
        with stages.stage(title, plan.steps) as advance:
            started = time.perf_counter()
            await _take_steps(client, world, plan, run, advance)
            run.seconds = time.perf_counter() - started
        for trajectory in trajectories:
            past = plan.history if _needs_history(trajectory.contestant, kinds) else 0
            trajectory.alarms = await _alarms(client, trajectory, past)
    return run


def _needs_history(contestant: Contestant, kinds: Kinds) -> bool:
    return any(kinds[spec.kind].batch_trained for spec in contestant.policies)


async def _train(
    client: ServiceClient, world: World[Any], plan: ArenaPlan, run: SeedRun, kinds: Kinds, stages: Stages
) -> None:
    """Import the history into the loops that need it; train the policies that learn from it."""
    for trajectory in run.trajectories:
        if not _needs_history(trajectory.contestant, kinds):
            continue
        with stages.stage(HISTORY, plan.history) as advance:
            await client.import_events(trajectory.loop, world.history(plan.history), progress=advance)
        for spec in trajectory.contestant.policies:
            if kinds[spec.kind].batch_trained:
                with stages.stage(TRAINING):
                    run.training_s[trajectory.contestant.label] = await _trained(client, trajectory.loop, spec)


async def _trained(client: ServiceClient, loop: str, spec: PolicySpec) -> float:
    """Create a policy, wait for its first version, and return the seconds that this took.

    Raises:
        InvalidExperiment: there is no version after 300 s.
    """
    started = time.monotonic()
    await client.create_policy(loop, spec.kind, spec.kind, spec.params)
    while (await client.policy(loop, spec.kind)).version < 1:
        if time.monotonic() - started > TRAINING_TIMEOUT_S:
            raise InvalidExperiment(
                f"{spec.kind} is not trained after {TRAINING_TIMEOUT_S:.0f} s: is a learner running?"
            )
        await asyncio.sleep(POLL_S)
    return time.monotonic() - started


async def _alarms(client: ServiceClient, trajectory: Trajectory, past: int) -> list[dict[str, Any]]:
    """Return the changes that the policies of a loop noticed.

    Args:
        past: events of the history. Every later event of the log is one step.
    """
    return [
        {"policy": spec.kind, "step": alarm.events - past, "reaction": alarm.reaction}
        for spec in trajectory.contestant.policies
        for alarm in (await client.policy(trajectory.loop, spec.kind)).alarms
    ]


async def _take_steps(
    client: ServiceClient, world: World[Any], plan: ArenaPlan, run: SeedRun, advance: Advance
) -> None:
    """Take all steps, window by window. A shock, and a change of catalogue or ties, always start a new window."""
    shocks = {step for _, step in plan.shock_steps}
    start = 0
    offered = world.catalogue(0)
    ties: frozenset[Tie] = frozenset()
    while start < plan.steps:
        before, offered = offered, world.catalogue(start)
        if offered is not before and not world.inline:
            await asyncio.gather(*(change_catalogue(client, one.loop, before, offered) for one in run.trajectories))
        knew, ties = ties, world.ties(start)
        if ties is not knew:
            await asyncio.gather(*(client.move_edges(one.loop, knew, ties) for one in run.trajectories))
        moments = [world.at(start)]
        for step in range(start + 1, min(start + plan.window, plan.steps)):
            if step in shocks or world.catalogue(step) is not offered or world.ties(step) is not ties:
                break
            moments.append(world.at(step))
        end = start + len(moments)
        for moment in moments:
            run.oracle[moment.step], run.random[moment.step] = moment.oracle, moment.random
            run.person[moment.step] = moment.person
        for trajectory in run.trajectories:
            _swap_when_due(client, trajectory, start, plan.steps)
        await asyncio.gather(*(_take_window(client, world, one, moments) for one in run.trajectories))
        advance(end - start)
        start = end
    for trajectory in run.trajectories:
        if trajectory.swap is not None:
            await trajectory.swap


async def change_catalogue(client: ServiceClient, loop: str, before: Catalogue, after: Catalogue) -> None:
    """Add the new items to the service's catalogue and delete the others."""
    new = [item for item in after.items if item.id not in before.row]
    if new:
        await client.put_items(loop, new)
    gone = [item.id for item in before.items if item.id not in after.row]
    for start in range(0, len(gone), AT_ONCE):
        await asyncio.gather(*(client.delete_item(loop, item) for item in gone[start : start + AT_ONCE]))


def _swap_when_due(client: ServiceClient, trajectory: Trajectory, step: int, steps: int) -> None:
    """Activate the successor under traffic when its share of the run is over; note when all workers have it."""
    successor = trajectory.contestant.successor
    if successor is None:
        return
    if trajectory.swap is None and step >= trajectory.contestant.swap_at * steps:
        trajectory.swap = asyncio.create_task(client.activate(trajectory.loop, successor.kind))
    elif trajectory.swap is not None and trajectory.swap.done() and trajectory.adopted_at is None:
        trajectory.swap.result()
        trajectory.adopted_at = step


async def _take_window(
    client: ServiceClient, world: World[Any], trajectory: Trajectory, moments: Sequence[Moment]
) -> None:
    """Decide for all users and bots of the window at once, then send the rewards that are due."""
    users = [_decide(client, trajectory, moment, inline=world.inline) for moment in moments]
    bots = [
        _bot(client, trajectory, visit, moment.catalogue.items if world.inline else None)
        for moment in moments
        for visit in world.bots(moment.step)
    ]
    reports = await asyncio.gather(*users, *bots)
    for moment, report in zip(moments, reports, strict=False):
        effect = world.traffic_effect(moment.step)
        if not effect.silent:
            trajectory.delayed.append((moment.step + effect.delay, report))
    now = moments[-1].step
    due = [report for step, report in trajectory.delayed if step <= now] + reports[len(moments) :]
    trajectory.delayed = [entry for entry in trajectory.delayed if entry[0] > now]
    for start in range(0, len(due), BATCH):
        for status in await client.feedback(trajectory.loop, due[start : start + BATCH]):
            if status != "accepted":
                raise InvalidExperiment(f"{trajectory.contestant.label}: a reward was not accepted, but {status}")


async def _bot(
    client: ServiceClient, trajectory: Trajectory, visit: Visit, candidates: Sequence[Item] | None
) -> dict[str, Any]:
    """Request one decision for a bot, which clicks any item; it is in no figure."""
    return (await client.recommend(trajectory.loop, visit.user_id, visit.context, candidates)).report(1.0)


async def _decide(client: ServiceClient, trajectory: Trajectory, moment: Moment, *, inline: bool) -> dict[str, Any]:
    """Send what the user did before, request one decision and record it; return the report of its reward."""
    if moment.visit.deeds:
        await client.activity(trajectory.loop, moment.visit.activity)
    started = time.perf_counter()
    candidates = moment.catalogue.items if inline else None
    reply = await client.recommend(trajectory.loop, moment.visit.user_id, moment.visit.context, candidates)
    step, contestant = moment.step, trajectory.contestant
    trajectory.latency_ms[step] = (time.perf_counter() - started) * 1000
    if reply.degraded:
        raise InvalidExperiment(f"{contestant.label}: step {step} was answered from memory; see `GET /status`")
    if reply.item_id not in moment.catalogue.row:
        raise InvalidExperiment(
            f"{contestant.label}: {reply.item_id!r} was recommended at step {step} and is not on offer"
        )
    if reply.policy is None or reply.policy not in {spec.kind for spec in contestant.policies}:
        raise InvalidExperiment(f"{contestant.label}: step {step} was served by {reply.policy!r}")
    trajectory.expected[step], trajectory.rewards[step] = moment.outcome(reply.item_id)
    trajectory.version[step], trajectory.policy[step] = reply.version, reply.policy
    if contestant.successor is not None and reply.policy == contestant.successor.kind:
        trajectory.swapped_at = step if trajectory.swapped_at is None else min(step, trajectory.swapped_at)
    elif trajectory.adopted_at is not None:
        raise InvalidExperiment(f"{contestant.label}: step {step} was served by the old policy after the swap")
    return reply.report(float(trajectory.rewards[step]))
