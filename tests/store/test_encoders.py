"""The encoders of a loop in Redis: successors are appended once, and kept for as long as something names them."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from redis.asyncio import Redis

from service.errors import InvalidRequest, NotFound
from service.records import START, PolicyRecord, Successor
from service.store import encoders, event_log, loop_store, policy_store
from service.store.encoders import MOST_BYTES, MOST_OF_A_POLICY
from service.store.keys import Keys
from service.store.policy_store import Lease
from tests.builders import loop_of, policy_of, store_loop

pytestmark = pytest.mark.anyio


@pytest.fixture
async def keys(redis: Redis) -> Keys:
    return await store_loop(redis, loop_of())


async def append(redis: Redis, keys: Keys, version: str, events: int = 100, **changes: Any) -> str | None:
    schema = {"hash_dims": 7, "of": version}
    return await encoders.append_successor(redis, keys, schema, encoder=version, events=events, why="a test", **changes)


async def successors(redis: Redis, keys: Keys) -> list[Successor]:
    return [entry for entry in await event_log.read(redis, keys, START) if isinstance(entry, Successor)]


async def test_a_successor_is_in_the_log_and_its_schema_is_kept(redis: Redis, keys: Keys) -> None:
    position = await append(redis, keys, "e1")
    assert position is not None
    [found] = await successors(redis, keys)
    assert found == Successor(position, "e1", {"hash_dims": 7, "of": "e1"}, 100, "a test")
    assert await encoders.read_schemas(redis, keys) == {"e1": found.schema}
    assert await encoders.read_schemas(redis, keys, ["e1", "e2"]) == {"e1": found.schema}
    record = await loop_store.read_loop(redis, keys.loop)
    assert record.newest == {"encoder": "e1", "position": position, "catalogue": 0}
    assert (record.declared, record.epoch) == (None, 2)


async def test_of_many_that_append_the_same_one_does(redis: Redis, keys: Keys) -> None:
    answers = await asyncio.gather(*(append(redis, keys, "e1") for _ in range(20)))
    assert [answer is not None for answer in answers].count(True) == 1
    assert len(await successors(redis, keys)) == 1


@pytest.mark.parametrize(
    ("before", "now", "appended"),
    [
        ({}, {"events": 200}, True),
        ({}, {"events": 100}, False),  # fitted on no more: by a learner that fell behind
        ({}, {"events": 50}, False),
        ({}, {"events": 0, "declared": True, "fixed": True}, True),
        ({"declared": True, "fixed": True}, {"events": 10**6}, False),  # a person's word holds
        ({"declared": True, "fixed": True}, {"events": 0, "declared": True}, True),
        ({"events": 0, "declared": True}, {"events": 100}, True),  # left to the service again
    ],
)
async def test_who_may_replace_whom(
    redis: Redis, keys: Keys, before: dict[str, Any], now: dict[str, Any], appended: bool
) -> None:
    assert await append(redis, keys, "e1", **before)
    assert (await append(redis, keys, "e2", **now) is not None) == appended


async def test_a_declared_encoder_is_named_until_it_is_left_to_the_service(redis: Redis, keys: Keys) -> None:
    await append(redis, keys, "e1", events=0, declared=True, fixed=True)
    assert (await loop_store.read_loop(redis, keys.loop)).declared == "e1"
    assert await append(redis, keys, "e1", events=0, declared=True, fixed=True) is None
    await append(redis, keys, "e2", events=0, declared=True)
    assert (await loop_store.read_loop(redis, keys.loop)).declared is None


async def test_the_newest_stays_the_newest_whoever_writes_last(redis: Redis, keys: Keys) -> None:
    for position, newest in (("5-1", "5-1"), ("5-0", "5-1"), ("5-10", "5-10"), ("10-0", "10-0"), ("9-99", "10-0")):
        await encoders.name_successor(redis, keys, {}, encoder="e", position=position, catalogue=0)
        record = await loop_store.read_loop(redis, keys.loop)
        assert record.newest is not None
        assert record.newest["position"] == newest


async def test_what_is_too_large_or_of_a_loop_that_is_gone_is_refused(redis: Redis, keys: Keys) -> None:
    with pytest.raises(InvalidRequest, match="at most"):
        await encoders.append_successor(redis, keys, {"a": "x" * MOST_BYTES}, encoder="e", events=1, why="")
    with pytest.raises(NotFound):
        await append(redis, Keys("nowhere", "0"), "e1")


# ---- how long an encoder is kept


async def publish(
    lease: Lease, policy: PolicyRecord, version: int, encoder: str | None, trial: str | None = None
) -> None:
    """Publish a version for an encoder (None: the first), beside the trial of another."""
    said = {"encoder": encoder or "first", "trial": trial and {"encoder": trial}}
    record = replace(policy, version=version, encoding=said)
    schemas = {name: {"of": name} for name in (encoder, trial) if name is not None}
    assert await lease.publish(
        record,
        state=b"s",
        snapshot=b"12345",
        budget=10**6,
        new_alarms=[],
        encoder=encoder,
        schemas=schemas,
        most_encoders=MOST_OF_A_POLICY,
    )


async def test_an_encoder_goes_when_nothing_names_it(redis: Redis, keys: Keys) -> None:
    record = policy_of(name="p")
    await policy_store.create_policy(redis, keys, record)
    lease = Lease(redis, keys, "p")
    assert await lease.acquire()
    await publish(lease, record, 1, None)
    await publish(lease, record, 2, "e1", trial="e2")
    await append(redis, keys, "e3")
    await append(redis, keys, "e4", events=200)
    assert await encoders.count(redis, keys) == 4
    assert await encoders.forget_unused(redis, keys) == 1
    assert set(await encoders.read_schemas(redis, keys)) == {"e1", "e2", "e4"}, "of a version, of a trial, the newest"
    await publish(lease, record, 3, "e4")
    assert await encoders.forget_unused(redis, keys) == 1
    assert set(await encoders.read_schemas(redis, keys)) == {"e1", "e4"}
    assert await policy_store.kept_encoders(redis, keys, "p") == {1: None, 2: "e1", 3: "e4"}
    await policy_store.delete_policy(redis, await loop_store.read_loop(redis, keys.loop), "p")
    await encoders.forget_unused(redis, keys)
    assert set(await encoders.read_schemas(redis, keys)) == {"e4"}


async def test_the_encoder_that_a_policy_began_with_is_kept(redis: Redis, keys: Keys) -> None:
    position = await append(redis, keys, "e1")
    begun = {"encoder": "e1", "position": position, "catalogue": 0}
    await policy_store.create_policy(redis, keys, replace(policy_of(name="p"), begun=begun))
    await append(redis, keys, "e2", events=200)
    assert await encoders.forget_unused(redis, keys) == 0
    assert (await policy_store.read_policy(redis, keys, "p")).needs == ["e1"]


async def test_versions_of_too_many_encoders_go_but_the_pinned_one_stays(redis: Redis, keys: Keys) -> None:
    record = policy_of(name="p")
    await policy_store.create_policy(redis, keys, record)
    lease = Lease(redis, keys, "p")
    assert await lease.acquire()
    await publish(lease, record, 1, None)
    await publish(lease, record, 2, None)
    await policy_store.pin_version(redis, await loop_store.read_loop(redis, keys.loop), "p", 1)
    for number in range(MOST_OF_A_POLICY + 2):
        await publish(lease, record, 3 + number, f"e{number}")
    kept = await policy_store.kept_encoders(redis, keys, "p")
    assert set(kept) == {1, *range(5, 5 + MOST_OF_A_POLICY)}
    await encoders.forget_unused(redis, keys)
    assert set(await encoders.read_schemas(redis, keys)) == set(kept.values()) - {None}


async def test_an_encoder_goes_with_its_loop(redis: Redis) -> None:
    record = loop_of()
    assert await loop_store.create_loop(redis, record)
    keys = Keys(record.name, record.id)
    await append(redis, keys, "e1")
    await loop_store.delete_loop(redis, keys.loop)
    await loop_store.remove_keys(redis, keys)
    assert not await redis.exists(keys.encoders, keys.partition().successor)
