"""Loops in Redis: whole or not at all, changed by nobody who did not see the last change, and gone for good."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import orjson
import pytest
from redis.asyncio import Redis

from service.errors import NotFound, StaleEpoch, UnreadableRecord
from service.records import LoopRecord
from service.store import loop_store
from service.store.codec import FORMAT, NewerFormat
from service.store.connection import now
from service.store.keys import CHANGES, DELETED, LOOPS, Keys, loop_record
from service.store.loop_store import (
    change_loop,
    create_loop,
    delete_loop,
    forget_deleted,
    loop_names,
    read_loop,
    remove_keys,
)
from tests.builders import loop_of

pytestmark = pytest.mark.anyio


@pytest.fixture
def redis(quiet_redis: Redis) -> Redis:
    """Return a Redis without a learner: the loops here are loop."""
    return quiet_redis


@pytest.fixture
async def loop(redis: Redis) -> LoopRecord:
    """Make a loop as the service does."""
    record = loop_of("shop")
    assert await create_loop(redis, record)
    return record


def keys_of(loop: LoopRecord) -> Keys:
    return Keys(loop.name, loop.id)


async def fill(redis: Redis, keys: Keys) -> None:
    """Write some keys of a loop, at home and in its partition."""
    await redis.set(keys.state("p"), b"")
    await redis.hset(keys.items, "a", "{}")
    await redis.hset(keys.partition().decision("d"), "n", 1)


async def left(redis: Redis, loop: LoopRecord) -> set[str]:
    """Return what is left of a loop, by the ends of the keys."""
    return {key.decode().rpartition(":")[2] for key in await redis.keys(f"rebound:{{{loop.name}*")}


# ---- making


async def test_a_loop_comes_back_and_is_listed(redis: Redis, loop: LoopRecord) -> None:
    assert await read_loop(redis, loop.name) == loop
    assert loop.name in await loop_names(redis)


async def test_a_name_that_is_taken_changes_nothing(redis: Redis, loop: LoopRecord) -> None:
    other = loop_of(loop.name, wait_time=1.0)
    assert not await create_loop(redis, other)
    assert await read_loop(redis, loop.name) == loop


async def test_of_many_that_make_one_loop_one_does(redis: Redis, loop: LoopRecord) -> None:
    records = [loop_of("shared" + loop.id) for _ in range(10)]
    made = await asyncio.gather(*(create_loop(redis, record) for record in records))
    assert sum(made) == 1
    assert await read_loop(redis, records[0].name) == records[made.index(True)]


async def test_a_listed_name_without_a_loop_is_passed_over(redis: Redis, loop: LoopRecord) -> None:
    await redis.sadd(LOOPS, "a start that was cut off")
    assert await loop_names(redis) == [loop.name]


async def test_there_is_no_loop(redis: Redis) -> None:
    with pytest.raises(NotFound, match=r"there is no loop 'never'; PUT /loops/never makes it"):
        await read_loop(redis, "never")


@pytest.mark.parametrize("change", [{"v": str(FORMAT + 1)}])
async def test_a_loop_of_a_newer_version_is_not_read(redis: Redis, loop: LoopRecord, change: dict[str, str]) -> None:
    await redis.hset(loop_record(loop.name), mapping=change)
    with pytest.raises(NewerFormat, match=f"loop '{loop.name}' has format 3"):
        await read_loop(redis, loop.name)


# ---- changing


async def test_a_change_is_made_by_who_saw_the_loop_as_it_is(redis: Redis, loop: LoopRecord) -> None:
    assert await change_loop(redis, loop, {"traffic": '{"p":1.0}'}) == 2
    seen = await read_loop(redis, loop.name)
    assert seen == replace(loop, epoch=2, traffic={"p": 1.0})
    with pytest.raises(StaleEpoch, match="send it again"):
        await change_loop(redis, loop, {"traffic": "{}", "pins": '{"p":3}'})
    assert await read_loop(redis, loop.name) == seen, "half of a stale change was written"
    assert await change_loop(redis, seen, {}) == 3, "a change of nothing is a change all the same"


async def test_no_concurrent_change_is_lost(redis: Redis, loop: LoopRecord) -> None:
    async def add(number: int) -> None:
        while True:
            seen = await read_loop(redis, loop.name)
            pins = orjson.dumps({**seen.pins, f"p{number}": number})
            try:
                await change_loop(redis, seen, {"pins": pins})
                return
            except StaleEpoch:
                continue

    await asyncio.gather(*(add(number) for number in range(30)))
    found = await read_loop(redis, loop.name)
    assert found.pins == {f"p{number}": number for number in range(30)}
    assert found.epoch == 31


async def test_a_loop_that_was_made_again_is_another_one(redis: Redis, loop: LoopRecord) -> None:
    await delete_loop(redis, loop.name)
    with pytest.raises(NotFound):
        await change_loop(redis, loop, {"pins": "{}"})
    again = loop_of(loop.name)
    assert await create_loop(redis, again)
    with pytest.raises(NotFound):
        await change_loop(redis, loop, {"pins": "{}"})
    assert await read_loop(redis, loop.name) == again


async def test_every_change_is_announced(redis: Redis, loop: LoopRecord) -> None:
    async with redis.pubsub() as channel:
        await channel.subscribe(CHANGES)

        async def heard() -> str:
            while True:
                message = await channel.get_message(timeout=20)
                if message["type"] == "message" and message["data"].decode() in (loop.name, "new" + loop.name):
                    return str(message["data"].decode())

        await create_loop(redis, loop_of("new" + loop.name))
        assert await heard() == "new" + loop.name
        await change_loop(redis, loop, {})
        assert await heard() == loop.name
        await delete_loop(redis, loop.name)
        assert await heard() == loop.name


# ---- deleting


async def test_a_deleted_loop_is_gone_and_its_keys_can_be_removed(redis: Redis, loop: LoopRecord) -> None:
    await fill(redis, keys_of(loop))
    keys = await delete_loop(redis, loop.name)
    assert keys == keys_of(loop)
    assert await loop_names(redis) == []
    assert await delete_loop(redis, loop.name) is None
    await remove_keys(redis, keys)
    assert await left(redis, loop) == set()


@pytest.mark.parametrize(
    "record",
    [
        {"d": 4},  # half a loop, as a start of version 0.1 could leave it
        {"id": "x", "settings": '{"reward_range":[1,5],"default_reward":0}'},
        {"id": "x", "v": str(FORMAT + 1)},
        {"id": "x", "settings": "{"},
    ],
)
async def test_what_cannot_be_read_can_be_deleted(redis: Redis, loop: LoopRecord, record: dict[str, Any]) -> None:
    name = f"broken-{loop.id}"
    await redis.hset(loop_record(name), mapping=record)
    with pytest.raises((UnreadableRecord, NewerFormat)) as raised:
        await read_loop(redis, name)
    assert isinstance(raised.value, NewerFormat) or f"DELETE /loops/{name}" in raised.value.detail
    assert await delete_loop(redis, name)
    with pytest.raises(NotFound):
        await read_loop(redis, name)
    again = loop_of(name)
    assert await create_loop(redis, again)
    assert await read_loop(redis, name) == again
    assert await delete_loop(redis, name)


async def test_a_loop_that_is_made_while_a_missing_one_is_deleted_stays_whole(
    redis: Redis, loop: LoopRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looked for, not found, and made by somebody else before the deletion came: it must not go without its keys."""
    new = loop_of("new" + loop.name)
    real = now

    async def make_first(redis: Redis) -> float:
        assert await create_loop(redis, new)
        await fill(redis, keys_of(new))
        return await real(redis)

    monkeypatch.setattr(loop_store, "now", make_first)
    assert await delete_loop(redis, new.name) is None
    assert await read_loop(redis, new.name) == new
    monkeypatch.setattr(loop_store, "now", real)
    await remove_keys(redis, await delete_loop(redis, new.name) or keys_of(loop))


async def test_the_keys_of_a_loop_of_the_same_name_stay(redis: Redis, loop: LoopRecord) -> None:
    await fill(redis, keys_of(loop))
    keys = await delete_loop(redis, loop.name)
    again = loop_of(loop.name)
    await create_loop(redis, again)
    await fill(redis, keys_of(again))
    assert keys is not None
    await remove_keys(redis, keys)
    assert await redis.exists(keys_of(again).state("p"), keys_of(again).items) == 2
    assert not await redis.exists(keys.state("p"), keys.items)


async def test_a_name_that_begins_like_another_is_another(redis: Redis, loop: LoopRecord) -> None:
    longer = loop_of(loop.name + ".x")
    await create_loop(redis, longer)
    await fill(redis, keys_of(longer))
    keys = await delete_loop(redis, loop.name)
    assert keys is not None
    await remove_keys(redis, keys)
    assert await left(redis, longer) == {"loop", "items", "p", "d"}
    await remove_keys(redis, await delete_loop(redis, longer.name) or keys)


# ---- what a deletion leaves behind


async def forget(redis: Redis, monkeypatch: pytest.MonkeyPatch, *, later_s: float) -> None:
    """Look for what deleted loops left, so much later."""
    real = now

    async def later(redis: Redis) -> float:
        return await real(redis) + later_s

    with monkeypatch.context() as patch:
        patch.setattr(loop_store, "now", later)
        await forget_deleted(redis)


async def test_what_a_worker_wrote_late_goes_too(
    redis: Redis, loop: LoopRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = await delete_loop(redis, loop.name)
    assert keys is not None
    await remove_keys(redis, keys)
    await fill(redis, keys)  # a worker that did not know yet
    await forget(redis, monkeypatch, later_s=loop_store.SWEPT_AGAIN_S - 1)
    assert await left(redis, loop) == {"items", "p", "d"}
    assert await redis.sismember(LOOPS, loop.name)
    await forget(redis, monkeypatch, later_s=loop_store.SWEPT_AGAIN_S + 1)
    assert await left(redis, loop) == set()
    assert not await redis.sismember(LOOPS, loop.name)
    assert await redis.zcard(DELETED) == 0


async def test_a_deletion_that_was_cut_off_before_it_began_deletes_nothing(
    redis: Redis, loop: LoopRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(redis, keys_of(loop))
    await redis.zadd(DELETED, {f"{loop.name}/{loop.id}": 1.0})
    await forget(redis, monkeypatch, later_s=0)
    assert await left(redis, loop) == {"loop", "items", "p", "d"}
    assert await loop_names(redis) == [loop.name]
    assert await redis.zcard(DELETED) == 0
    await remove_keys(redis, await delete_loop(redis, loop.name) or keys_of(loop))


async def test_a_deletion_that_was_cut_off_half_way_is_finished(
    redis: Redis, loop: LoopRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(redis, keys_of(loop))
    await delete_loop(redis, loop.name)  # and the process dies
    again = loop_of(loop.name)
    await create_loop(redis, again)
    await fill(redis, keys_of(again))
    await forget(redis, monkeypatch, later_s=loop_store.SWEPT_AGAIN_S + 1)
    assert not await redis.exists(keys_of(loop).state("p"))
    assert await redis.exists(keys_of(again).state("p"))
    assert await loop_names(redis) == [loop.name]
    await remove_keys(redis, await delete_loop(redis, loop.name) or keys_of(loop))


async def test_a_loop_without_an_id_leaves_nothing_and_takes_nothing(
    redis: Redis, loop: LoopRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(redis, keys_of(loop))
    await redis.zadd(DELETED, {f"{loop.name}/": 1.0})
    await forget(redis, monkeypatch, later_s=0)
    assert await left(redis, loop) == {"loop", "items", "p", "d"}
    await remove_keys(redis, await delete_loop(redis, loop.name) or keys_of(loop))


async def test_a_record_that_is_no_hash_is_told_and_can_be_deleted(quiet_redis: Redis) -> None:
    record = loop_of()
    await loop_store.create_loop(quiet_redis, record)
    await quiet_redis.set(loop_record(record.name), "garbled")
    with pytest.raises(UnreadableRecord, match="DELETE"):
        await loop_store.read_loop(quiet_redis, record.name)
    assert await loop_store.epochs(quiet_redis, [record.name, "absent"]) == {
        record.name: (b"", None),
        "absent": (None, None),
    }
    assert await loop_store.delete_loop(quiet_redis, record.name) is not None
    assert await loop_store.loop_names(quiet_redis) == []
