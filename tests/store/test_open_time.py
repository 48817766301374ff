"""The clock of deadlines, on a real Redis: it stands still while no worker beats, and nobody settles beyond it."""

from __future__ import annotations

import asyncio

import pytest
from redis.asyncio import Redis

from service.loop import LoopSettings
from service.store import open_time
from service.store.decisions import join_feedback, next_due_in, read_ledger, settle_due
from service.store.group_commit import GroupCommit
from service.store.keys import OPEN, STORE, Keys
from service.store.open_time import OpenTime, closed_since, open_times, read_opening
from service.store.workers import store_identity
from tests.builders import decision_of, loop_of, store_decisions, store_loop
from tests.waiting import until_async

pytestmark = pytest.mark.anyio

SETTINGS = LoopSettings()


async def silence(redis: Redis, ms: int) -> None:
    """Have the newest heartbeat lie so much further back."""
    await redis.hincrby(OPEN, "beat", -ms)


async def join(commit: GroupCommit, keys: Keys, decision_id: str = "d") -> str:
    return await join_feedback(commit, keys, SETTINGS, decision_id=decision_id, item="", reward=1.0, feedback_id="")


async def test_silence_is_no_open_time(quiet_redis: Redis) -> None:
    worker, other = OpenTime(quiet_redis, "one"), OpenTime(quiet_redis, "two")
    await worker.refresh()
    await silence(quiet_redis, open_time.LIMIT_MS // 2)
    await other.refresh()
    assert (await read_opening(quiet_redis)).outages == 0, "a worker that skips a few beats is no outage"
    for ms in (5_000, 60_000):
        await silence(quiet_redis, ms)
        before = await read_opening(quiet_redis)
        await worker.refresh()
        found = await read_opening(quiet_redis)
        assert ms <= found.closed_ms - before.closed_ms < ms + 500
        assert 0 <= found.known_ms - before.known_ms < 500, "it goes on where it stood"
    assert found.outages == 2
    assert found.last is not None
    assert 60.0 <= found.last.until - found.last.since < 60.5
    assert await closed_since(quiet_redis, round(1000 * found.last.since) - 1) == found.closed_ms
    assert await closed_since(quiet_redis, round(1000 * found.last.until)) == 0


async def test_a_beat_tells_the_identity_of_the_data(quiet_redis: Redis) -> None:
    """On a server that has not seen the script as well, and on one that holds none of our data."""
    worker = OpenTime(quiet_redis, "one")
    await worker.refresh()
    await quiet_redis.script_flush()
    identity = await store_identity(quiet_redis)
    for known in (identity, identity, None):
        if known is None:
            await quiet_redis.delete(STORE)
        await silence(quiet_redis, 100)
        before = await read_opening(quiet_redis)
        assert await worker.beat() == known
        assert (await read_opening(quiet_redis)).known_ms > before.known_ms


async def test_open_time_of_then_stands_still_during_an_outage(quiet_redis: Redis) -> None:
    worker = OpenTime(quiet_redis, "one")
    await worker.refresh()
    await silence(quiet_redis, 60_000)
    await worker.refresh()
    last = (await read_opening(quiet_redis)).last
    assert last is not None
    since, until = round(1000 * last.since), round(1000 * last.until)
    found = await open_times(quiet_redis, [since - 7, since, until - 9, until, until + 5])
    assert found == [since - 7, since, since, since, since + 5]


async def test_the_outages_that_are_told_one_by_one_are_bounded(quiet_redis: Redis) -> None:
    worker = OpenTime(quiet_redis, "one")
    await worker.refresh()
    for _ in range(110):
        await silence(quiet_redis, 2_000)
        await worker.refresh()
    found = await read_opening(quiet_redis)
    assert found.outages == 110
    assert found.closed_ms >= 220_000 > await closed_since(quiet_redis, 0)


async def test_nothing_is_settled_beyond_the_newest_heartbeat(quiet_redis: Redis) -> None:
    keys, worker = await store_loop(quiet_redis, loop_of()), OpenTime(quiet_redis, "one")
    await worker.refresh()
    await silence(quiet_redis, 500)  # and from now on nobody beats
    await store_decisions(quiet_redis, keys, decision_of("d"), wait_ms=1)
    commit = GroupCommit(quiet_redis)

    async def due() -> bool:
        due_in = await next_due_in(quiet_redis, keys)
        return due_in is not None and due_in < 0

    async def settled() -> int:
        return await settle_due(quiet_redis, commit, keys, SETTINGS)

    await asyncio.sleep(0)
    assert not await due()
    assert await settled() == 0

    async def due_after_a_beat() -> bool:
        await worker.refresh()  # one beat in the very millisecond of the deadline would not do
        return await due()

    await until_async(due_after_a_beat, "the deadline is over")
    assert await settled() == 1


@pytest.mark.parametrize("another_beats", [False, True])
async def test_a_worker_looks_again_before_it_calls_a_report_late(
    quiet_redis: Redis, monkeypatch: pytest.MonkeyPatch, another_beats: bool
) -> None:
    """It is late if somebody took feedback all the time, and in time if nobody did."""
    monkeypatch.setattr(open_time, "LIMIT_MS", 100)
    keys, worker, other = (
        await store_loop(quiet_redis, loop_of()),
        OpenTime(quiet_redis, "one"),
        OpenTime(quiet_redis, "two"),
    )
    commit = GroupCommit(quiet_redis, worker)
    await worker.refresh()
    await store_decisions(quiet_redis, keys, decision_of("d"), wait_ms=150)
    deadline = (await read_ledger(quiet_redis, keys, "d"))["deadline"]

    async def over() -> bool:
        if another_beats:
            await other.refresh()
        seconds, micros = await quiet_redis.time()
        return bool(seconds + micros / 1e6 > deadline + 0.02)

    await until_async(over, "the deadline is over by the clock of Redis")
    assert await join(commit, keys) == ("late" if another_beats else "accepted")
    moved = (await read_ledger(quiet_redis, keys, "d"))["deadline"] - deadline
    assert (moved == 0) if another_beats else (moved > 0.1)
    assert await join(commit, keys, "nobody") == "unknown"
