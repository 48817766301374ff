"""The learner: a runner for every policy, a sweeper for every loop, and none for what cannot be read."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from redis.asyncio import Redis

from service.admin.audit import audit_learning
from service.learn import learner
from service.records import LoopRecord
from service.run.embedded import EmbeddedRedis
from service.settings import Settings
from service.store import event_log, loop_store, policy_store, workers
from service.store.codec import FORMAT
from service.store.connection import connect
from service.store.keys import LOOPS, STORE, Keys, loop_record
from tests.builders import decision_of, event_of, import_of, loop_of, policy_of, store_decisions
from tests.learn.running import running
from tests.waiting import until_async

pytestmark = pytest.mark.anyio


@pytest.fixture
async def redis(quiet_redis: Redis) -> Redis:
    """Return a Redis on which no other learner is at work, with an identity as the first worker gives it."""
    await workers.store_identity(quiet_redis)
    return quiet_redis


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learner, "PERIOD_S", 0.02)


async def make(redis: Redis, *kinds: str, events: int = 0) -> tuple[LoopRecord, Keys]:
    """Make a loop with policies and events."""
    loop = loop_of()
    keys = Keys(loop.name, loop.id)
    await loop_store.create_loop(redis, loop)
    for kind in kinds:
        await policy_store.create_policy(redis, keys, policy_of(kind))
    if events:
        await event_log.append_imported(redis, keys, import_of([event_of(n) for n in range(events)]), remember=1000)
    return loop, keys


async def learned(redis: Redis, keys: Keys, policy: str, n: int) -> None:
    async def there() -> bool:
        return (await policy_store.read_policy(redis, keys, policy)).events == n

    await until_async(there, f"{policy} has learned {n} events")


async def test_every_policy_of_every_loop_is_learned_and_every_loop_swept(redis: Redis, settings: Settings) -> None:
    _, one = await make(redis, "linucb", "popularity", events=10)
    async with running(redis, settings):
        await learned(redis, one, "linucb", 10)
        assert await workers.learner_alive(redis)
        await learned(redis, one, "popularity", 10)
        _, two = await make(redis, "linucb", events=5)  # while it runs
        await learned(redis, two, "linucb", 5)
        await policy_store.create_policy(redis, one, policy_of("lin_ts"))
        await learned(redis, one, "lin_ts", 10)
        await store_decisions(redis, two, decision_of("d"), wait_ms=1)
        await learned(redis, two, "linucb", 6)
    assert await audit_learning(redis, one.loop) == {"lin_ts": True, "linucb": True, "popularity": True}

    async def free() -> bool:  # what is let go has a time to live of a millisecond
        return not await redis.exists(*(one.lease(name) for name in ("linucb", "popularity", "lin_ts")))

    await until_async(free, "every lease is let go", within_s=2)


async def test_two_learners_share_and_one_takes_over(redis: Redis, settings: Settings) -> None:
    _, keys = await make(redis, "linucb", events=10)
    async with running(redis, settings):
        async with running(redis, settings):
            await learned(redis, keys, "linucb", 10)
        await event_log.append_imported(redis, keys, import_of([event_of(n) for n in range(10, 15)]), remember=1000)
        await learned(redis, keys, "linucb", 15)
    assert await audit_learning(redis, keys.loop) == {"linucb": True}


async def test_a_loop_that_was_deleted_and_made_again_is_learned_anew(redis: Redis, settings: Settings) -> None:
    loop, keys = await make(redis, "linucb", events=10)
    async with running(redis, settings):
        await learned(redis, keys, "linucb", 10)
        await loop_store.delete_loop(redis, loop.name)
        again = loop_of(loop.name)
        await loop_store.create_loop(redis, again)
        new = Keys(again.name, again.id)
        await policy_store.create_policy(redis, new, policy_of("linucb"))
        await event_log.append_imported(redis, new, import_of([event_of(0)]), remember=1000)
        await learned(redis, new, "linucb", 1)
    assert await audit_learning(redis, loop.name) == {"linucb": True}


@pytest.mark.parametrize(
    "fault",
    [{"settings": '{"reward_range":[1,5],"default_reward":0}'}, {"d": "many"}, {"v": str(FORMAT + 1)}, {"schema": "{"}],
)
async def test_a_loop_that_cannot_be_read_is_told_once_and_stops_no_other(
    redis: Redis, settings: Settings, fault: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    loop, _ = await make(redis, "linucb", events=3)
    await redis.hset(loop_record(loop.name), mapping=fault)
    _, good = await make(redis, "linucb", events=3)
    async with running(redis, settings) as found:
        await learned(redis, good, "linucb", 3)
        await found.follow(asyncio.Event())
        said = capsys.readouterr().out
        assert said.count("loop cannot be read") == 1
        assert loop.name in said
        assert f"DELETE /loops/{loop.name}" in said or "start the newer version again" in said
        assert not any(keys.loop == loop.name for keys, _ in found._tasks)
        assert await loop_store.delete_loop(redis, loop.name), "it cannot be deleted"


async def test_half_a_loop_is_told_and_can_be_deleted(redis: Redis, settings: Settings) -> None:
    await redis.sadd(LOOPS, "half")
    await redis.hset(loop_record("half"), "d", 4)
    async with running(redis, settings) as found:

        async def told() -> bool:
            return "half" in found._unreadable

        await until_async(told, "the learner has met it")
        assert await loop_store.delete_loop(redis, "half")
        assert await loop_store.loop_names(redis) == []


async def test_lost_data_is_not_papered_over(
    redis: Redis, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    _, keys = await make(redis, "linucb", events=3)
    async with running(redis, settings):
        await learned(redis, keys, "linucb", 3)
        await redis.flushall()
        await redis.set(STORE, "another")
        _, other = await make(redis, "linucb", events=3)
        await says(capsys, "redis lost its data")
        assert (await policy_store.read_policy(redis, other, "linucb")).version == 0


async def says(capsys: pytest.CaptureFixture[str], what: str) -> None:
    """Wait for a line of the log."""
    said = ""

    async def there() -> bool:
        nonlocal said
        said += capsys.readouterr().out
        return what in said

    await until_async(there, f"the log says: {what}")


async def test_without_data_it_waits_for_the_first_worker(
    redis: Redis, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    await redis.delete(STORE)
    _, keys = await make(redis, "linucb", events=3)
    read, looks = workers.read_identity, 0

    async def counted(redis: Redis) -> str | None:
        nonlocal looks
        looks += 1
        return await read(redis)

    async def looked() -> bool:
        return looks > 3

    monkeypatch.setattr(workers, "read_identity", counted)
    async with running(redis, settings) as found:
        await until_async(looked, "it has looked several times")
        assert found._tasks == {}
        await workers.store_identity(redis)
        await learned(redis, keys, "linucb", 3)


async def test_what_deleted_loops_left_behind_goes(
    redis: Redis, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop_store, "SWEPT_AGAIN_S", 0.0)
    loop, keys = await make(redis, "linucb", events=3)
    await loop_store.delete_loop(redis, loop.name)
    async with running(redis, settings):

        async def gone() -> bool:
            return not await redis.keys(f"*{{{loop.name}*") and not await redis.sismember(LOOPS, loop.name)

        await until_async(gone, "nothing of the loop is left")
    assert not await redis.exists(keys.policy("linucb"))


async def test_a_redis_that_goes_away_and_comes_back_is_waited_for(
    settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Shut down and started again on the same data, while a learner is at work."""
    embedded = EmbeddedRedis(tmp_path / "data", fsync="always")
    embedded.start()
    try:
        redis = connect(embedded.url, name="test", timeout_s=1)
        await workers.store_identity(redis)
        _, keys = await make(redis, "linucb", events=3)
        async with running(redis, settings):
            await learned(redis, keys, "linucb", 3)
            await asyncio.to_thread(embedded.stop)
            await says(capsys, "redis does not answer; going on from the checkpoint later")
            await asyncio.to_thread(embedded.start)
            rows = import_of([event_of(n) for n in range(3, 8)])
            await event_log.append_imported(redis, keys, rows, remember=1000)
            await learned(redis, keys, "linucb", 8)
        assert await audit_learning(redis, keys.loop) == {"linucb": True}
        await redis.aclose()
    finally:
        embedded.stop()
