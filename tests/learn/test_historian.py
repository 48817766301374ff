"""The historian on a real Redis: the history equals a fold of the log, whatever crashes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from redis.asyncio import Redis

from service.evaluate import history
from service.evaluate.history import BinId
from service.learn.historian import Historian
from service.learn.log_fold import CountedElsewhere
from service.records import Event
from service.store import event_log, history_store, loop_store
from service.store.codec import FORMAT, NewerFormat
from service.store.history_store import LEASE
from service.store.keys import Keys
from service.store.loop_rows import read_rows, write_rows
from tests.builders import event_of, fields_of, loop_of, store_loop

pytestmark = pytest.mark.anyio

START_S = 1_700_000_000


async def append(redis: Redis, keys: Keys, count: int, *, first: int = 0, apart_s: float = 5.0) -> None:
    """Append events to the log, each decided up to a minute before it came."""
    rng = np.random.default_rng(first)
    async with redis.pipeline(transaction=False) as pipe:
        for number in range(first, first + count):
            came = START_S + number * apart_s
            event = replace(
                event_of(number, reward=float(rng.random())),
                source="feedback",
                policy="pq"[number % 2],
                propensity=float(rng.uniform(0.1, 1)),
                decided=came - float(rng.random() * 60),
            )
            pipe.xadd(keys.partition().events, fields_of(event), id=f"{round(1000 * came)}-1")
        await pipe.execute()


async def opened(redis: Redis, keys: Keys) -> Historian:
    """Open a historian, as if the one before had died."""
    await redis.delete(keys.lease(LEASE))
    found = Historian(redis, keys)
    assert await found.open()
    return found


async def stored(redis: Redis, keys: Keys) -> dict[str, bytes]:
    found = await redis.hgetall(keys.bins)
    return {name.decode(): content for name, content in found.items() if b":" in name}


async def folded(redis: Redis, keys: Keys) -> dict[str, bytes]:
    """Fold the whole log at once."""
    bins: dict[BinId, history.Bin] = {}
    position = ""
    async for entries in event_log.scan(redis, keys):
        for entry in entries:
            assert isinstance(entry, Event)
            for bin in history.bins_of(entry):
                history.count(bins.setdefault(bin, {}), entry)
            position = entry.position
    return {bin.name: history.dump(sums) for bin, sums in bins.items() if history.alive(bin, position)}


async def test_after_twenty_crashes_it_equals_a_fold_of_the_log(redis: Redis, keys: Keys) -> None:
    rng = np.random.default_rng(5)
    total = 0
    for crash in range(20):
        await append(redis, keys, more := int(rng.integers(1, 40)), first=total)
        total += more
        one = await opened(redis, keys)
        one.due_at = 1e18 if crash % 3 else 0.0  # it dies with or without having written down what it counted
        await one.step()
    await (await opened(redis, keys)).drain()
    found = await stored(redis, keys)
    assert found == await folded(redis, keys)
    assert sum(name.startswith("1:") for name in found) <= 125, "bins of a second are gone after ten minutes"
    hours = [history.load(content) for name, content in found.items() if name.startswith("3600:")]
    assert history.whole(history.by_policy(hours).values()).decisions == total


async def test_a_log_of_days_at_once_leaves_no_more_than_is_kept(redis: Redis, keys: Keys) -> None:
    await append(redis, keys, 200, apart_s=1800)
    await (await opened(redis, keys)).drain()
    await append(redis, keys, 200, first=200, apart_s=1800)
    await (await opened(redis, keys)).drain()
    found = await stored(redis, keys)
    assert found == await folded(redis, keys)
    assert sum(name.startswith("60:") for name in found) <= 97, "two days, and an event each half an hour"


async def test_of_two_that_count_the_same_one_is_kept(redis: Redis, keys: Keys) -> None:
    await append(redis, keys, 20)
    slow, fast = await opened(redis, keys), await opened(redis, keys)  # the lease of the first has run out
    await fast.drain()
    with pytest.raises(CountedElsewhere):
        await slow.drain()
    assert await stored(redis, keys) == await folded(redis, keys)


async def test_nothing_is_written_of_a_log_without_decisions(redis: Redis, keys: Keys) -> None:
    one = await opened(redis, keys)
    assert await one.step() == 0
    assert not await redis.exists(keys.bins)
    assert await history_store.size(redis, keys) == (0, 0)


async def test_a_newer_version_s_history_is_left_alone(redis: Redis, keys: Keys) -> None:
    await redis.hset(keys.bins, mapping={"v": FORMAT + 1, "position": "5-0"})
    with pytest.raises(NewerFormat):
        await opened(redis, keys)


async def test_it_goes_on_in_a_copy_of_the_loop(redis: Redis, keys: Keys) -> None:
    await append(redis, keys, 50)
    await (await opened(redis, keys)).drain()
    await history_store.add_mark(redis, keys, at=5.0, text="campaign", by="somebody")
    other = await store_loop(redis, loop_of(retention=1000))
    await write_rows(redis, other, [row async for row in read_rows(redis, keys)], later_ms=0)
    for one in (keys, other):
        await append(redis, one, 30, first=50)
        await (await opened(redis, one)).drain()
    assert await stored(redis, other) == await stored(redis, keys) == await folded(redis, keys)
    assert await history_store.read_marks(redis, other) == [history_store.Mark(5.0, "note", "campaign")]
    bins, used = await history_store.size(redis, other)
    assert bins == len(await stored(redis, other))
    assert used > 100 * bins
    await loop_store.remove_keys(redis, other)
    await redis.delete(other.record)
