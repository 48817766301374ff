"""How fast the learner is: events a second by kind, the log learned again, the profile, a fit, a snapshot, its reads.

make bench ARGS=tests/benchmarks/test_learner_rates.py       # about 3 minutes

All is CPU of one thread, that of reads of the whole process, the best of a few rounds: what else the machine does makes
a round longer, never shorter.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from redis.asyncio import Redis

from service.learn.historian import Historian
from service.learn.profiler import Profiler
from service.learn.runner import PolicyRunner
from service.learn.tail import Tail
from service.learn.trainer import Trainer
from service.policies import KINDS, new_policy
from service.policies.linucb import LinUCB, LinUCBParams
from service.records import Event, PolicyRecord, Successor
from service.represent.fit import Raw, fit
from service.represent.learned import LearnedEncoder, LearnedSchema
from service.represent.profile import Profile
from service.settings import Settings
from service.store import loop_store, policy_store
from service.store.codec import pack, read_entries
from simulator.world.shapes import make
from tests.benchmarks.test_history import store_log
from tests.builders import batch_of, loop_of, parts_of, policy_of, store_loop

D, ITEMS, USERS = 32, 50, 500
READ = 1000  # entries that the learner reads at once
ROUNDS = 5
LINEAR = ("adaptive", "linucb", "linucb_hybrid", "lin_ts", "squarecb", "popularity")
NEURAL = ("neural_ucb", "neural_linear")


def best(rounds: int, work: Callable[[int], object]) -> float:
    """Return the seconds of CPU of the quickest round; each is given its number."""
    seconds = []
    for number in range(rounds):
        started = time.thread_time()
        work(number)
        seconds.append(time.thread_time() - started)
    return min(seconds)


def event(number: int, x: np.ndarray[Any, Any], rng: np.random.Generator, **said: Any) -> Event:
    """Make an event; what is not said is drawn."""
    drawn: dict[str, Any] = {
        "item": f"item-{rng.integers(ITEMS)}",
        "user": f"user-{rng.integers(USERS)}",
        "context": {},
        "reward": float(rng.random() < 0.3),
    }
    return Event(
        position=f"{1_700_000_000_000 + number}-0",
        decision_id=f"d-{number}",
        x=x,
        n=50,
        propensity=0.1,
        policy="p",
        version=1,
        source="policy",
        slate_position=number,
        **{**drawn, **said},
    )


def random_events(size: int, d: int) -> list[Event]:
    rng = np.random.default_rng(1)
    rows = rng.uniform(-0.25, 0.25, (size, d)).astype(np.float32)
    return [event(number, x, rng) for number, x in enumerate(rows)]


def shaped(world: str, size: int) -> list[Event]:
    """Return random impressions of a world whose fields nobody declared; rows of no columns, which nobody reads."""
    rng, made, events = np.random.default_rng(1), make(world, 1, declared=False), []
    for step in range(size):
        moment = made.at(step)
        item = moment.catalogue.items[int(rng.integers(len(moment.catalogue.items)))]
        _, reward = moment.outcome(item.id)
        said = {"item": item.id, "user": moment.visit.user_id, "context": moment.visit.context, "reward": reward}
        events.append(event(step, np.zeros(1, dtype=np.float32), rng, features=item.features, **said))
    return events


@pytest.mark.parametrize("kind", [*LINEAR, *NEURAL])
def test_events_a_second(kind: str, quick: bool) -> None:
    """Of a trainer, which is what a learner does with an event once it is read; and of `Policy.update` alone."""
    size = READ if quick else 4 * READ
    events = random_events(ROUNDS * size, D)
    trainer = Trainer(PolicyRecord(kind, kind, kind, {}, seed=1), d=D, reward_range=(0.0, 1.0))

    def apply(number: int) -> None:
        for start in range(number * size, (number + 1) * size, READ):
            trainer.apply(events[start : start + READ])

    whole = size / best(ROUNDS, apply)
    policy = new_policy(kind, D, None, KINDS[kind].Params(), seed=1)
    every = batch_of(
        np.stack([one.x for one in events]),
        [one.reward for one in events],
        [one.item for one in events],
        user=[one.user for one in events],
    )
    parts = parts_of(every, size)
    alone = size / best(ROUNDS, lambda number: policy.update(parts[number]))
    print(f"\n{kind}, d = {D}: {whole:,.0f} events/s, `update` alone {alone:,.0f}")


@pytest.mark.parametrize("world", ["noise-15", "ids"])
def test_a_log_without_a_schema(world: str, quick: bool) -> None:
    """A profile, a fit, and the log learned again through what was fitted, by `adaptive`."""
    size = 200 if quick else 1500
    events = shaped(world, size)
    profile = Profile()

    def count(number: int) -> None:
        counted = Profile()
        for one in events:
            counted.add(
                context=one.context,
                item=one.item,
                features=one.features,
                user=one.user,
                reward=one.reward,
                at=one.time,
                request=one.decision_id,
            )
        nonlocal profile
        profile = counted

    profiling = best(ROUNDS, count) / size
    records = [Raw(one.context, one.item, one.features or {}, one.user, one.reward) for one in events]
    found: list[LearnedSchema] = []
    fitting = best(ROUNDS, lambda _: found.append(fit(records, profile).schema))
    encoder = LearnedEncoder(found[0])
    end = f"{1_800_000_000_000}-0"
    successor = Successor(end, encoder.version, found[0].model_dump(mode="json"), size, "")
    trainer = Trainer(PolicyRecord("p", "p", "adaptive", {}, seed=1), d=1, reward_range=(0.0, 1.0))

    def relearn(_: int) -> None:
        trainer.apply([successor])
        trainer.relearn([events])

    again = best(ROUNDS, relearn) / size
    print(f"\n{world}: a profile {1e6 * profiling:.0f} µs an event, a fit of {size} events {fitting:.2f} s")
    print(f"  {encoder.layout}: {1e6 * again:.0f} µs for an event learned again")


def test_a_snapshot_of_many_items(quick: bool) -> None:
    """`linucb` on 10 000 items at d = 64, of which one in a hundred changed since the snapshot before."""
    items, d = (200, 8) if quick else (10_000, 64)
    rng = np.random.default_rng(1)
    policy = LinUCB(d, LinUCBParams())
    x = rng.uniform(-0.25, 0.25, (items, d))
    policy.update(batch_of(x, rng.random(items), [f"item-{i}" for i in range(items)]))
    policy.snapshot()
    changed = items // 100
    batches = [
        batch_of(x[:changed], rng.random(changed), [f"item-{i}" for i in rng.permutation(items)[:changed]])
        for _ in range(ROUNDS)
    ]
    solving, packing = [], []
    for batch in batches:
        policy.update(batch)
        started = time.thread_time()
        arrays = policy.snapshot()
        middle = time.thread_time()
        size = len(pack(arrays))
        solving.append(middle - started)
        packing.append(time.thread_time() - middle)
    print(
        f"\nlinucb, {items} items, d = {d}, {changed} changed: a snapshot {1e3 * min(solving):.0f} ms, "
        f"packed {1e3 * min(packing):.0f} ms, {size / 1e6:.0f} MB"
    )


class Apart(Tail):
    """Shares nothing: every task decodes what it reads."""

    _decode = staticmethod(read_entries)


@pytest.mark.anyio
@pytest.mark.parametrize("kinds", [("adaptive",), ("adaptive", "linucb", "popularity")])
async def test_a_log_that_several_tasks_read(
    redis: Redis, settings: Settings, kinds: tuple[str, ...], quick: bool
) -> None:
    """A policy's runner, or three, the profiler and the historian take turns at one log, with and without sharing."""
    size = READ if quick else 10 * READ
    written = await store_loop(redis, loop_of(retention=1_000_000, d=D))
    await store_log(redis, written, size)

    async def cost(tail: type[Tail]) -> dict[str, float]:
        """Return the µs of each task an event. Where they share, the one that reads first pays for the others."""
        keys = await store_loop(redis, loop_of(retention=1_000_000, d=D))
        await redis.copy(written.partition().events, keys.partition().events)
        shared = tail(redis, keys)
        tasks: dict[str, PolicyRunner | Profiler | Historian] = {}
        for kind in kinds:
            await policy_store.create_policy(redis, keys, policy_of(kind))
            tasks[kind] = PolicyRunner(redis, keys, kind, settings, shared)
        tasks |= {"profile": Profiler(redis, keys, shared), "history": Historian(redis, keys, shared)}
        spent = dict.fromkeys(tasks, 0.0)
        for name, one in tasks.items():
            assert await one.open()
            if name in kinds:
                await redis.persist(keys.lease(name))  # nobody renews it here
        for _ in range(size // READ):
            for name, one in tasks.items():
                started = time.process_time()
                assert await one.step() == READ
                spent[name] += time.process_time() - started
        await loop_store.remove_keys(redis, keys)
        await redis.delete(keys.record)
        return {name: 1e6 * seconds / size for name, seconds in spent.items()}

    rounds = [(await cost(Apart), await cost(Tail)) for _ in range(ROUNDS)]
    for what, found in zip(("each decodes", "decoded once"), zip(*rounds, strict=True), strict=True):
        best_of = {name: min(one[name] for one in found) for name in found[0]}
        whole = sum(best_of.values())
        parts = ", ".join(f"{name} {each:.0f}" for name, each in best_of.items())
        print(f"\n{what}: {whole:.0f} µs an event ({parts}); history's part {best_of['history'] / whole:.1%}")
    await loop_store.remove_keys(redis, written)
    await redis.delete(written.record)
