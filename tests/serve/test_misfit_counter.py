"""Counts of values that did not fit, on their way to Redis."""

from __future__ import annotations

import pytest
from redis.asyncio import Redis

from service.errors import StoreUnavailable
from service.serve.misfit_counter import MisfitCounter
from service.store import event_log
from service.store.connection import connect
from service.store.keys import Keys

pytestmark = pytest.mark.anyio


async def test_counts_add_up_in_redis(redis: Redis, keys: Keys) -> None:
    counters = [MisfitCounter(redis), MisfitCounter(redis)]
    for _ in range(2):
        for counter in counters:
            counter.of(keys).add("context", "age", "wrong_type")
            counter.of(keys).add("item", "a/b", "overlong")
            await counter.flush()
    found = await event_log.read_misfits(redis, keys)
    assert found == {"context/age/wrong_type": 4, "item/a/b/overlong": 4}


async def test_loops_are_counted_apart(redis: Redis, keys: Keys) -> None:
    counter = MisfitCounter(redis)
    again = Keys(keys.loop, keys.id + "x")
    counter.of(keys).add("context", "age", "wrong_type")
    assert not counter.of(again)
    await counter.flush()
    assert await event_log.read_misfits(redis, again) == {}


async def test_what_could_not_be_written_is_written_later(redis: Redis, keys: Keys) -> None:
    gone = connect("redis://127.0.0.1:1", name="test", timeout_s=1)
    counter = MisfitCounter(gone)
    counter.of(keys).add("context", "age", "wrong_type")
    with pytest.raises(StoreUnavailable):
        await counter.flush()
    await gone.aclose()
    counter.of(keys).add("context", "age", "wrong_type")
    counter._redis = redis
    await counter.flush()
    assert await event_log.read_misfits(redis, keys) == {"context/age/wrong_type": 2}
    await counter.flush()
    assert await event_log.read_misfits(redis, keys) == {"context/age/wrong_type": 2}


async def test_a_loop_without_misfits_takes_no_memory(redis: Redis, keys: Keys) -> None:
    counter = MisfitCounter(redis)
    counter.of(keys)
    await counter.flush()
    assert counter._of == {}
