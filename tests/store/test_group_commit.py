"""Group commit: every request gets its own result, whatever becomes of the others and of Redis."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from hashlib import sha1
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from service.errors import StoreUnavailable
from service.run.embedded import EmbeddedRedis
from service.store.connection import Script, answering, connect, exchange, packed
from service.store.group_commit import GroupCommit
from service.store.keys import USED, Keys
from tests.waiting import until_async

pytestmark = pytest.mark.anyio


def script_of(text: str) -> Script:
    return Script(text, sha1(text.encode()).hexdigest())


APPEND = script_of("return redis.call('RPUSH', KEYS[1], ARGV[1])")
FAIL = script_of("return redis.call('LPOP', KEYS[1], ARGV[1], 'one too many')")
SLOW = script_of("local until_ = ARGV[1] * 1 for i = 1, until_ do redis.call('GET', KEYS[1]) end return 1")


@pytest.fixture
def key(keys: Keys) -> str:
    """A list of the test's own."""
    return keys.partition().prefix + "list"


@pytest.fixture
async def own(tmp_path: Path) -> AsyncIterator[tuple[EmbeddedRedis, Redis]]:
    """A Redis that the test may kill."""
    embedded = EmbeddedRedis(tmp_path / "data", fsync="always")
    embedded.start()
    redis = connect(embedded.url, name="test", timeout_s=2)
    yield embedded, redis
    await redis.aclose()
    embedded.stop()


class Counted:
    """A Redis whose round trips are counted: each takes a connection."""

    def __init__(self, redis: Redis) -> None:
        self._pool, self.trips = redis.connection_pool, 0

    @property
    def connection_pool(self) -> Any:
        return self

    async def get_connection(self) -> Any:
        self.trips += 1
        return await self._pool.get_connection()

    async def release(self, connection: Any) -> None:
        await self._pool.release(connection)


async def test_concurrent_requests_share_a_round_trip_and_get_their_own_results(redis: Redis, key: str) -> None:
    await redis.script_load(APPEND.text)
    counted = Counted(redis)
    commit = GroupCommit(counted, most=64)
    results = await asyncio.gather(*(commit.run(APPEND, (key,), (number,)) for number in range(100)))
    assert results == list(range(1, 101))
    assert await redis.lrange(key, 0, -1) == [b"%d" % number for number in range(100)]
    assert counted.trips == 2, "64 and 36"


async def test_a_request_by_itself_waits_for_no_other(redis: Redis, key: str) -> None:
    commit = GroupCommit(redis)
    assert [await commit.run(APPEND, (key,), (number,)) for number in range(3)] == [1, 2, 3]


async def test_a_script_that_the_server_has_not_seen_runs_once_for_each_request(redis: Redis, key: str) -> None:
    await redis.script_flush()
    commit = GroupCommit(redis)
    assert await asyncio.gather(*(commit.run(APPEND, (key,), (n,)) for n in range(10))) == list(range(1, 11))
    assert await redis.script_exists(APPEND.sha) == [True]


@pytest.mark.parametrize("known", [True, False])
async def test_a_script_that_fails_fails_for_its_own_request_alone(redis: Redis, key: str, known: bool) -> None:
    """Whether or not the server knows the scripts: after a restart it knows none."""
    await redis.script_flush()
    if known:
        for script in (APPEND, FAIL):
            await redis.script_load(script.text)
    commit = GroupCommit(redis)
    answers = await asyncio.gather(
        commit.run(APPEND, (key,), ("a",)),
        commit.run(FAIL, (key,), ("b",)),
        commit.run(APPEND, (key,), ("c",)),
        return_exceptions=True,
    )
    assert isinstance(answers[1], ResponseError)
    assert [answers[0], answers[2]] == [1, 2]
    assert await redis.lrange(key, 0, -1) == [b"a", b"c"]


async def test_a_request_that_was_cancelled_holds_up_no_other(redis: Redis, key: str) -> None:
    commit = GroupCommit(redis)
    first, second, third = (asyncio.create_task(commit.run(APPEND, (key,), (n,))) for n in "abc")
    await asyncio.sleep(0)  # they wait now
    second.cancel()
    assert await first == 1
    assert await third >= 2
    with pytest.raises(asyncio.CancelledError):
        await second
    assert await asyncio.wait_for(commit.run(APPEND, (key,), ("d",)), 10)


async def test_all_requests_can_be_cancelled_and_the_next_one_is_served(redis: Redis, key: str) -> None:
    commit = GroupCommit(redis)
    tasks = [asyncio.create_task(commit.run(APPEND, (key,), (n,))) for n in range(5)]
    await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert all(task.cancelled() for task in tasks)
    assert await asyncio.wait_for(commit.run(APPEND, (key,), ("d",)), 10)


async def test_redis_that_dies_in_flight_is_told_to_all_and_the_next_ones_go_on(
    own: tuple[EmbeddedRedis, Redis],
) -> None:
    embedded, redis = own
    commit = GroupCommit(redis, most=2)
    assert await commit.run(APPEND, ("list",), ("before",)) == 1
    slow = [asyncio.create_task(commit.run(SLOW, ("list",), (10**9,))) for _ in range(2)]
    behind = [asyncio.create_task(commit.run(APPEND, ("list",), (n,))) for n in "abc"]

    async def sent() -> bool:
        return not commit._waiting or len(commit._waiting) == len(behind)

    await until_async(sent, "the first batch is in flight")
    assert embedded.process is not None
    embedded.process.kill()
    answers = await asyncio.wait_for(asyncio.gather(*slow, *behind, return_exceptions=True), 30)
    assert [type(answer) for answer in answers] == [StoreUnavailable] * 5
    assert isinstance(answers[0], StoreUnavailable)
    assert isinstance(answers[0].__cause__, (RedisConnectionError, OSError))
    await asyncio.to_thread(embedded.process.wait)
    await asyncio.to_thread(embedded.start)
    assert await commit.run(APPEND, ("list",), ("after",)) == 2
    assert await redis.lrange("list", 0, -1) == [b"before", b"after"]


async def test_redis_that_hangs_is_given_up(own: tuple[EmbeddedRedis, Redis]) -> None:
    embedded, _ = own
    redis = connect(embedded.url, name="test", timeout_s=0.2)
    commit = GroupCommit(redis)
    with pytest.raises(StoreUnavailable):
        await asyncio.wait_for(commit.run(SLOW, ("list",), (10**9,)), 20)
    await redis.aclose()
    assert embedded.process is not None
    embedded.process.kill()


async def test_whatever_goes_wrong_nobody_waits_for_ever(redis: Redis, key: str) -> None:
    class Broken:
        @property
        def connection_pool(self) -> Any:
            raise RuntimeError("out of file descriptors, say")

    commit = GroupCommit(Broken())
    answers = await asyncio.wait_for(
        asyncio.gather(*(commit.run(APPEND, (key,), (n,)) for n in range(3)), return_exceptions=True), 10
    )
    assert [type(answer) for answer in answers] == [RuntimeError] * 3


async def test_the_use_of_a_loop_is_announced_with_the_writes(redis: Redis, key: str) -> None:
    """Once, however many writes; and the results are those of the writes alone."""
    commit = GroupCommit(redis)
    async with redis.pubsub() as channel:
        await channel.subscribe(USED)
        await channel.get_message(timeout=5)
        results = await asyncio.gather(*(commit.run(APPEND, (key,), (n,), uses=key) for n in range(10)))
        assert results == list(range(1, 11))
        assert await commit.run(APPEND, (key,), ("again",), uses=key) == 11
        await redis.publish(USED, "the end")
        heard = []
        while "the end" not in heard:
            message = await channel.get_message(timeout=5)
            assert message is not None
            heard.append(message["data"].decode())
    assert [loop for loop in heard if loop == key] == [key]


async def test_a_connection_with_answers_that_nobody_read_is_not_used_again(redis: Redis, key: str) -> None:
    """A flush that is cut off must not leave its answers to the next one."""
    await redis.script_load(APPEND.text)
    slow = [packed("EVALSHA", SLOW.sha, 0)] + [packed("ECHO", "old")] * 50
    cut = asyncio.create_task(exchange(redis, slow))
    await asyncio.sleep(0.001)
    cut.cancel()
    await asyncio.gather(cut, return_exceptions=True)
    assert await exchange(redis, [packed("ECHO", n) for n in (1, 2.5, "é", b"\xff")]) == [
        b"1",
        b"2.5",
        "é".encode(),
        b"\xff",
    ]


@pytest.mark.parametrize(
    ("setting", "bad", "good"),
    [("maxmemory", "1", "0"), ("min-replicas-to-write", "1", "0")],
    ids=["full", "without its replicas"],
)
async def test_a_redis_that_takes_no_writes_is_unavailable(
    quiet_redis: Redis, keys: Keys, setting: str, bad: str, good: str
) -> None:
    """By itself, in a flush, and in a script that is called alone; then it takes them again."""
    key, commit = keys.partition().prefix + "list", GroupCommit(quiet_redis)
    assert await commit.run(APPEND, (key,), ("a",)) == 1
    await quiet_redis.config_set(setting, bad)
    try:
        with pytest.raises(StoreUnavailable, match="takes no writes"):
            await commit.run(APPEND, (key,), ("b",))
        with pytest.raises(StoreUnavailable, match="takes no writes"):
            await APPEND(quiet_redis, (key,), ("b",))
        with pytest.raises(StoreUnavailable, match="takes no writes"):
            async with answering():
                await quiet_redis.set(key + "2", 1)
    finally:
        await quiet_redis.config_set(setting, good)
    assert await commit.run(APPEND, (key,), ("c",)) == 2
