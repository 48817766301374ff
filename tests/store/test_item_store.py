"""The catalogue in Redis: all or nothing, and every version that the log of changes covers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from service.errors import Conflict, NotFound
from service.records import LoopRecord
from service.store import codec, item_store, loop_store
from service.store.connection import connect
from service.store.item_store import change_items, read_changes, read_items, read_items_at, read_written
from service.store.keys import Keys
from tests.builders import loop_of, store_loop

pytestmark = pytest.mark.anyio


async def test_items_come_back_sorted_with_the_version(redis: Redis, keys: Keys) -> None:
    assert await read_items(redis, keys) == (0, {})
    assert await change_items(redis, keys, {"b": {"price": 1}, "a": {}, "é": {"x": None}}) == 2
    version, items = await read_items(redis, keys)
    assert version == 1
    assert list(items.items()) == [("a", {}), ("b", {"price": 1}), ("é", {"x": None})]
    assert await change_items(redis, keys, {"a": None, "b": {"price": 2}, "never there": None}) == 3
    assert await read_items(redis, keys) == (2, {"b": {"price": 2}, "é": {"x": None}})


async def test_the_change_is_announced(redis: Redis, keys: Keys) -> None:
    async with redis.pubsub() as channel:
        await channel.subscribe("rebound:changes")
        await change_items(redis, keys, {"a": {}})
        message = None
        while message is None or message["type"] == "subscribe":
            message = await channel.get_message(timeout=20)
    assert message["data"].decode() == keys.loop


async def test_an_item_that_must_be_there_and_is_not_changes_nothing(redis: Redis, keys: Keys) -> None:
    await change_items(redis, keys, {"a": {}})
    with pytest.raises(NotFound, match="there is no item 'b'"):
        await change_items(redis, keys, {"b": None}, must_exist=True)
    assert await read_items(redis, keys) == (1, {"a": {}})
    await change_items(redis, keys, {"a": None}, must_exist=True)
    assert await read_items(redis, keys) == (2, {})


async def test_a_loop_that_is_gone_or_another_takes_no_items(redis: Redis, loop: LoopRecord) -> None:
    keys = Keys(loop.name, loop.id)
    for other in (Keys("never", loop.id), Keys(loop.name, "another")):
        with pytest.raises(NotFound, match="PUT /loops/"):
            await change_items(redis, other, {"a": {}})
        assert await read_items(redis, other) == (0, {}) or other.record == keys.record
        assert not await redis.exists(other.items, other.item_log)
    await redis.hset(keys.record, mapping=codec.loop_fields(replace(loop, id="another")))
    with pytest.raises(NotFound):
        await change_items(redis, keys, {"a": {}})


CHANGES = st.dictionaries(st.sampled_from("abcdé"), st.none() | st.fixed_dictionaries({"x": st.integers(0, 3)}))


@given(changes=st.lists(CHANGES.filter(bool), max_size=8))
@hypothesis_settings(deadline=None, max_examples=40)
def test_every_version_can_be_had_back(redis_url: str, changes: list[dict[str, Any]]) -> None:
    import anyio

    async def run() -> None:
        redis = connect(redis_url, name="test", timeout_s=5)
        loop = loop_of()
        keys = await store_loop(redis, loop)
        items: dict[str, Any] = {}
        was: list[dict[str, Any]] = [{}]
        for change in changes:
            await change_items(redis, keys, change)
            items = {item: features for item, features in {**items, **change}.items() if features is not None}
            was.append(items)
        for version, then in enumerate(was):
            found = await read_items_at(redis, keys, version)
            assert found == then
            assert list(found) == sorted(then, key=str.encode)
        await redis.delete(keys.record)
        await loop_store.remove_keys(redis, keys)
        await redis.aclose()

    anyio.run(run)


async def test_a_version_that_is_no_longer_covered_says_so(
    redis: Redis, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis drops whole nodes of the log, of a hundred changes or so: what is left may begin within a version."""
    monkeypatch.setattr(item_store, "ITEM_LOG", 50)
    was: list[dict[str, Any]] = [{}]
    for number in range(60):
        await change_items(redis, keys, {f"p{i}": {"x": number} for i in range(7)})
        was.append({f"p{i}": {"x": number} for i in range(7)})
    oldest = (await redis.xrange(keys.item_log, count=1))[0][0].decode()
    first, sequence = map(int, oldest.split("-"))
    assert first > 1, "nothing was dropped"
    assert sequence > 1, "the log happens to begin with a whole version; another number of items is needed"
    with pytest.raises(Conflict, match=r"version 0 of loop 't-[0-9a-f]+' is no longer kept"):
        await read_items_at(redis, keys, 0)
    with pytest.raises(Conflict):  # some of what the first change in the log did cannot be undone
        await read_items_at(redis, keys, first - 1)
    for version in range(first, 61):
        assert await read_items_at(redis, keys, version) == was[version]


async def test_a_version_that_never_was_is_refused(redis: Redis, keys: Keys) -> None:
    await change_items(redis, keys, {"a": {}})
    with pytest.raises(Conflict):
        await read_items_at(redis, keys, 2)


async def test_what_changed_is_read_alone(redis: Redis, keys: Keys) -> None:
    await change_items(redis, keys, {"a": {"x": 1}, "b": {}, "c": {}})
    await change_items(redis, keys, {"a": {"x": 2}, "b": None})
    await change_items(redis, keys, {"b": {"x": 3}, "c": None})
    assert await read_changes(redis, keys, 1) == (3, {"a": b'{"x":2}', "b": b'{"x":3}', "c": None})
    assert await read_changes(redis, keys, 3) == (3, {})
    assert await read_changes(redis, keys, 4) is None, "a version that never was"


async def test_who_is_too_far_behind_is_told_so(redis: Redis, keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(3):
        await change_items(redis, keys, {f"p{number}": {}, f"q{number}": {}})
    monkeypatch.setattr(item_store, "MOST_CHANGES", 4)
    assert await read_changes(redis, keys, 0) is None
    assert (await read_changes(redis, keys, 1) or (0,))[0] == 3
    monkeypatch.undo()
    await redis.xtrim(keys.item_log, minid="2-2", approximate=False)
    assert await read_changes(redis, keys, 1) is None, "the log begins within version 2"
    assert await read_changes(redis, keys, 2) == (3, {"p2": b"{}", "q2": b"{}"})
    await redis.delete(keys.item_log)
    assert await read_changes(redis, keys, 2) is None


@pytest.mark.parametrize("log", ["kept", "gone"])
async def test_items_that_change_while_they_are_read(
    redis: Redis, keys: Keys, log: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All come as they were at one instant. Redis keeps a hash of more than 512 items so that it is read in parts."""
    await change_items(redis, keys, {f"p{number:03}": {"x": 0} for number in range(600)})
    monkeypatch.setattr(item_store, "AT_ONCE", 10)
    inner, parts = redis.hscan, 0

    async def meanwhile(*args: Any, **options: Any) -> Any:
        nonlocal parts
        parts += 1
        if parts == 20:
            await change_items(redis, keys, {"p000": None, "p001": {"x": 1}, "p599": {"x": 1}, "p6": {"x": 1}})
            if log == "gone":
                await redis.delete(keys.item_log)
        return await inner(*args, **options)

    monkeypatch.setattr(redis, "hscan", meanwhile)
    version, items = await read_written(redis, keys)
    assert (version, parts > 20) == (2, True)
    assert list(items) == sorted([*(f"p{number:03}" for number in range(1, 600)), "p6"])
    assert {item for item, features in items.items() if features == b'{"x":1}'} == {"p001", "p599", "p6"}
