"""What the profile of a loop costs the learner: microseconds an event, a checkpoint, a look at it.

make bench ARGS=tests/benchmarks/test_profile.py

CPU time of the whole process, reading the log included; 20 000 events of a world, items shown at random.
"""

from __future__ import annotations

import time

import numpy as np
import pytest
from redis.asyncio import Redis

from service.admin.profile import read_profile
from service.learn.profiler import Profiler
from service.records import Event
from service.store import event_log, profile_store
from service.store.keys import Keys
from simulator.world.shapes import make
from tests.benchmarks.data_notices import events
from tests.builders import import_of, loop_of, store_loop

EVENTS = 20_000


@pytest.mark.anyio
@pytest.mark.parametrize("world", ["ids", "kinds", "age-price", "nested", "noise-15", "noise-50", "embeddings"])
async def test_profile(redis: Redis, world: str) -> None:
    keys: Keys = await store_loop(redis, loop_of(retention=1_000_000))
    rows = [
        Event(
            position="",
            decision_id=one["request"],
            item=one["item"],
            user=one["user"],
            context=one["context"],
            x=np.zeros(32, np.float32),
            n=None,
            propensity=0.1,
            policy=None,
            version=0,
            reward=one["reward"],
            source="import",
            at=one["at"],
            features=one["features"],
            encoder="e",
        )
        for one in events(make(world, 1), EVENTS)
    ]
    for first in range(0, EVENTS, 1000):
        await event_log.append_imported(redis, keys, import_of(rows[first : first + 1000]), remember=1000)
    profiler = Profiler(redis, keys)
    assert await profiler.open()
    started = time.process_time()
    while await event_log.read(redis, keys, profiler.position):
        profiler.due_at = float("inf")
        await profiler.step()
    read_twice = time.process_time()
    position = "0-0"
    while entries := await event_log.read(redis, keys, position):
        position = entries[-1].position
    reading = time.process_time() - read_twice
    counting = read_twice - started - reading
    started = time.process_time()
    await profiler.save()
    saved = time.process_time()
    await read_profile(redis, keys.loop)
    looked = time.process_time()
    size = len((await profile_store.read_profile(redis, keys)).state or b"")
    print(f"\n{world}: {1e6 * counting / EVENTS:.0f} µs an event ({1e6 * reading / EVENTS:.0f} of it reading the log),")
    print(f"  checkpoint {1e3 * (saved - started):.0f} ms, look {1e3 * (looked - saved):.0f} ms, {size / 1000:.0f} kB")
    await redis.delete(keys.record, keys.profile)
