"""What the history of a loop costs: the learner an event, Redis its bytes, a worker a reply of a year.

make bench ARGS=tests/benchmarks/test_history.py

CPU time of the whole process, reading the log and checkpoints included, beside that of the profile and
of a policy on the same log: 20 000 events of a world at 100 a second.
"""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
from redis.asyncio import Redis

from service.admin.history import read_history
from service.evaluate.history import KEPT, BinId, Sums, dump
from service.learn.historian import Historian
from service.learn.profiler import Profiler
from service.learn.runner import PolicyRunner
from service.settings import Settings
from service.store import history_store, policy_store
from service.store.keys import Keys
from simulator.world.shapes import make
from tests.benchmarks.data_notices import events
from tests.builders import event_of, fields_of, loop_of, policy_of, store_loop

EVENTS = 20_000
D = 32


async def store_log(redis: Redis, keys: Keys, size: int = EVENTS) -> None:
    rng = np.random.default_rng(0)
    async with redis.pipeline(transaction=False) as pipe:
        for number, one in enumerate(events(make("age-price", 1), size)):
            came = 1_700_000_000 + number / 100
            shown = event_of(
                item=one["item"],
                user=one["user"],
                context=one["context"],
                features=one["features"],
                reward=one["reward"],
                x=rng.normal(size=D),
                encoder="test",
            )
            made = {"source": "feedback", "policy": "pq"[number % 2], "decided": came - float(rng.exponential(5))}
            pipe.xadd(keys.partition().events, fields_of(replace(shown, **made)), id=f"{round(1000 * came)}-{number}")  # type: ignore[arg-type]
        await pipe.execute()


@pytest.mark.anyio
async def test_cost_of_an_event(redis: Redis, settings: Settings) -> None:
    keys = await store_loop(redis, loop_of(retention=1_000_000, d=D))
    await store_log(redis, keys)
    await policy_store.create_policy(redis, keys, policy_of("adaptive"))

    async def cost(one: Historian | Profiler | PolicyRunner) -> float:
        assert await one.open()
        await redis.persist(keys.lease("adaptive"))  # nobody renews it here
        started = time.process_time()
        while await one.step():
            pass
        return time.process_time() - started

    history = await cost(Historian(redis, keys))
    profile = await cost(Profiler(redis, keys))
    learning = await cost(PolicyRunner(redis, keys, "adaptive", settings))
    each = 1e6 / EVENTS
    print(f"\nhistory {history * each:.0f} µs an event, profile {profile * each:.0f}, adaptive {learning * each:.0f};")
    print(f"  history's part {history / (history + profile + learning):.1%}")
    await redis.delete(keys.record)


@pytest.mark.anyio
@pytest.mark.parametrize("policies", [1, 9])
async def test_bytes_and_a_reply_of_a_year(redis: Redis, policies: int) -> None:
    keys = await store_loop(redis, loop_of(retention=1_000_000))
    now = time.time()
    rng = np.random.default_rng(0)
    bins = {}
    for step, kept in KEPT.items():
        for back in range(kept):
            sums = {
                (f"policy-{p}", "ok"): Sums(1000 * step, 1000 * step, *(rng.random(7) * step).tolist())
                for p in range(policies)
            }
            bins[BinId(step, int(now // step) - back).name] = dump(sums)
    await history_store.save(redis, keys, seen="0-0", position="1-0", gone=[], bins=bins)
    count, used = await history_store.size(redis, keys)
    print(
        f"\n{policies} policies: {count} bins, {used / 1e6:.1f} MB of Redis, {used / count / policies:.0f} bytes each"
    )
    for span in (600, 3600, 7 * 86_400, 365 * 86_400):
        took = []
        for _ in range(5):
            started = time.process_time()
            found = await read_history(redis, keys.loop, since=now - span, until=now, step=None)
            took.append(time.process_time() - started)
        size = len(found.model_dump_json())
        print(f"  {span} s: {len(found.bins)} bins, {1e3 * min(took):.0f} ms of CPU, {size / 1000:.0f} kB")
    await redis.delete(keys.record, keys.bins)
