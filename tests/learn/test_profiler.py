"""The profiler on a real Redis: each event counts once, whatever crashes and however many are at work."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from typing import Any

import pytest
from redis.asyncio import Redis

from service.admin.profile import read_profile, read_proposal
from service.admin.status import loop_status
from service.errors import NotFound
from service.learn import log_fold
from service.learn.bell import Bell
from service.learn.log_fold import CountedElsewhere
from service.learn.profiler import Profiler
from service.records import LoopRecord
from service.represent.profile import Profile
from service.store import codec, encoders, event_log, loop_store, profile_store
from service.store.codec import NewerFormat, unpack
from service.store.keys import Keys
from service.store.profile_store import LEASE
from tests.builders import event_of, import_of, loop_of, store_loop
from tests.waiting import until_async

pytestmark = pytest.mark.anyio

PROCESS = """
import asyncio, sys
from service.learn import log_fold
from service.learn.bell import Bell
from service.learn.profiler import Profiler
from service.store.connection import connect
from service.store.keys import Keys

Profiler.period_s, log_fold.POLL_S, log_fold.RETRY_S, log_fold.LEASE_MS = 0.0, 0.01, 0.05, 200
redis = connect(sys.argv[1], name="test", timeout_s=5)
asyncio.run(Profiler(redis, Keys(*sys.argv[2:])).run(asyncio.Event(), Bell(awake=True)))
"""


async def append(redis: Redis, keys: Keys, n: int, *, first: int = 0) -> None:
    """Import n events."""
    events = [
        event_of(
            number,
            item=f"p{number % 5}",
            context={"segment": f"s{number % 3}", "request": f"{number * 7919 % 1_000_003}x"},
            features={"price": float(number % 5)},
            user=f"u{number % 40}",
            at=1e9 + number,
        )
        for number in range(first, first + n)
    ]
    assert await event_log.append_imported(redis, keys, import_of(events), remember=10_000) == n


async def opened(redis: Redis, keys: Keys) -> Profiler:
    """Open a profiler, as if the one before had died."""
    await redis.delete(keys.lease(LEASE))
    found = Profiler(redis, keys)
    assert await found.open()
    return found


async def stored(redis: Redis, keys: Keys) -> dict[str, Any]:
    record = await profile_store.read_profile(redis, keys)
    assert record.state is not None
    return unpack(record.state)


async def counted(redis: Redis, keys: Keys) -> int:
    return (await profile_store.read_profile(redis, keys)).events


async def test_it_goes_on_from_the_checkpoint(redis: Redis, keys: Keys) -> None:
    await append(redis, keys, 30)
    assert await (await opened(redis, keys)).drain() == 30
    await append(redis, keys, 300, first=30)
    second = await opened(redis, keys)
    second.due_at = 1e18  # it counts, and "crashes" before it writes that down
    assert await second.step() == 300
    assert await counted(redis, keys) == 30
    assert await (await opened(redis, keys)).drain() == 300
    assert await counted(redis, keys) == 330
    whole = loop_of(retention=1000)
    other = await store_loop(redis, whole)
    await append(redis, other, 330)
    await (await opened(redis, other)).drain()
    one, two = await stored(redis, keys), await stored(redis, other)
    assert {name: array.tobytes() for name, array in one.items()} == {name: two[name].tobytes() for name in two}
    await loop_store.remove_keys(redis, other)
    await redis.delete(other.record)


async def test_of_two_that_count_the_same_one_is_kept(redis: Redis, keys: Keys) -> None:
    await append(redis, keys, 20)
    slow, fast = await opened(redis, keys), await opened(redis, keys)  # the lease of the first has run out
    await append(redis, keys, 5, first=20)
    assert await fast.drain() == 25
    with pytest.raises(CountedElsewhere):
        await slow.drain()
    assert await counted(redis, keys) == 25
    late = Profiler(redis, keys)
    assert not await late.open(), "the lease is the second one's"


async def test_many_at_once_count_each_event_once(redis: Redis, keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Profiler, "period_s", 0.0)
    monkeypatch.setattr(log_fold, "POLL_S", 0.01)
    monkeypatch.setattr(log_fold, "RETRY_S", 0.01)
    stop = asyncio.Event()
    tasks = [asyncio.create_task(Profiler(redis, keys).run(stop, Bell(awake=True))) for _ in range(3)]
    for first in range(0, 600, 60):
        await append(redis, keys, 60, first=first)
        await redis.delete(keys.lease(LEASE))  # whoever has it does not know that it is lost
        await asyncio.sleep(0.03)

    async def all_counted() -> bool:
        return await counted(redis, keys) == 600

    await until_async(all_counted, "600 events are counted")
    stop.set()
    await asyncio.gather(*tasks)
    assert await counted(redis, keys) == 600
    assert Profile.load(await stored(redis, keys)).events == 600


@pytest.mark.slow
async def test_a_learner_that_is_killed_loses_and_doubles_nothing(redis_url: str, redis: Redis) -> None:
    record = loop_of(retention=10_000)
    keys = await store_loop(redis, record)
    total = 0
    for kill in range(4):
        process = subprocess.Popen([sys.executable, "-c", PROCESS, redis_url, keys.loop, keys.id])
        before = await counted(redis, keys)
        await append(redis, keys, 700, first=total)
        total += 700

        async def at_work(before: int = before) -> bool:
            return await counted(redis, keys) > before

        await until_async(at_work, "it counts", within_s=30)
        if kill < 3:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()

    async def all_counted() -> bool:
        return await counted(redis, keys) == total

    await until_async(all_counted, "all events are counted", within_s=30)
    process.kill()
    process.wait()
    assert Profile.load(await stored(redis, keys)).events == total
    assert Profile.load(await stored(redis, keys)).records("context") == total
    await redis.delete(keys.record)
    await loop_store.remove_keys(redis, keys)


async def test_it_ends_with_the_loop_and_goes_with_it(redis: Redis) -> None:
    keys = await store_loop(redis, loop_of())
    await append(redis, keys, 10)
    found = await opened(redis, keys)
    await found.drain()
    await append(redis, keys, 10, first=10)
    await found.step()
    await loop_store.delete_loop(redis, keys.loop)
    await loop_store.remove_keys(redis, keys)
    with pytest.raises(NotFound):
        await found.save()
    assert not await redis.exists(keys.profile)
    await asyncio.wait_for(Profiler(redis, keys).run(asyncio.Event(), Bell(awake=True)), timeout=5)


async def test_a_profile_of_another_format_is_made_again_from_the_log(redis: Redis, keys: Keys) -> None:
    await append(redis, keys, 40)
    await (await opened(redis, keys)).drain()
    await redis.hset(keys.profile, "state", codec.pack({}))
    assert (await read_profile(redis, keys.loop)).events == 0
    assert await (await opened(redis, keys)).drain() == 40
    assert (await read_profile(redis, keys.loop)).events == 40


async def test_a_newer_profile_is_left_alone(redis: Redis, keys: Keys) -> None:
    await append(redis, keys, 4)
    await (await opened(redis, keys)).drain()
    await redis.hset(keys.profile, "v", codec.FORMAT + 1)
    await redis.delete(keys.lease(LEASE))
    with pytest.raises(NewerFormat):
        await Profiler(redis, keys).open()


async def test_what_it_finds_is_in_the_reply_and_in_the_status(redis: Redis, keys: Keys) -> None:
    assert (await read_profile(redis, keys.loop)).fields == []
    with pytest.raises(NotFound, match="no events yet"):
        await read_proposal(redis, keys.loop)
    await append(redis, keys, 600)
    await (await opened(redis, keys)).drain()
    reply = await read_profile(redis, keys.loop)
    assert (reply.events, reply.requests, reply.items.distinct, reply.users.distinct) == (600, 600, 5, 40)
    kinds = {(field.side, field.path): (field.kind, field.reason) for field in reply.fields}
    assert kinds == {
        ("context", "segment"): ("levels", None),
        ("context", "request"): ("left_out", "new_each_time"),
        ("item", "price"): ("levels", None),
    }
    assert [(notice.code, notice.path) for notice in reply.notices] == [("new_each_time", "request")]
    status = await loop_status(redis, keys.loop)
    assert [(notice.code, notice.field, notice.needs_person) for notice in status.notices] == [
        ("new_each_time", "context/request", False)
    ]
    assert (status.profiled, status.profile_bytes) == (600, reply.bytes)
    assert set((await read_proposal(redis, keys.loop))["context"]) == {"segment"}


async def test_values_are_compared_with_the_declared_schema(redis: Redis, loop: LoopRecord, keys: Keys) -> None:
    schema = '{"context": {"segment": {"type": "categorical", "levels": ["s0", "s1"]}}}'
    await redis.hset(keys.record, "schema", schema)
    await append(redis, keys, 600)
    await (await opened(redis, keys)).drain()
    assert (await unseen(redis, keys)) == 200
    # Declared anew in the log, with all levels: the notice goes.
    whole = {"context": {"segment": {"type": "categorical", "levels": ["s0", "s1", "s2"]}}}
    await encoders.append_successor(redis, keys, whole, encoder="other", events=0, why="declared", declared=True)
    await append(redis, keys, 300, first=600)
    await (await opened(redis, keys)).drain()
    assert (await unseen(redis, keys)) == 0


async def unseen(redis: Redis, keys: Keys) -> int:
    found = (await read_profile(redis, keys.loop)).notices
    return sum(notice.count for notice in found if (notice.code, notice.path) == ("unseen_levels", "segment"))
