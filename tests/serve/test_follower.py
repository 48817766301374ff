"""The follower keeps active loops current, and compares identities, never numbers alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from uuid import uuid4

import pytest
from redis.asyncio import Redis

from service.admin.loops import new_record, put_loop
from service.admin.policies import create_policy, delete_policy
from service.admin.traffic import activate
from service.decide.active import UNIFORM
from service.errors import NotFound
from service.learn.runner import PolicyRunner
from service.loop import LoopSettings
from service.records import ItemChange
from service.represent.schema import FeatureSchema
from service.retrieve.counts import Counts
from service.retrieve.source import Query
from service.serve.follower import Follower
from service.settings import Settings
from service.store import event_log, item_store, loop_store, policy_store, retrieval_store, workers
from service.store.codec import event_body, pack, row_bytes
from service.store.connection import end
from service.store.keys import Keys
from tests.waiting import until_async

pytestmark = pytest.mark.anyio


@pytest.fixture
async def follower(redis: Redis) -> AsyncIterator[Follower]:
    """A follower that looks only when it is told to."""
    follower = Follower(redis, worker=f"test-{uuid4().hex[:6]}")
    await follower.start()
    yield follower
    await workers.sign_off(redis, follower.worker)


@pytest.fixture
async def name(redis: Redis) -> AsyncIterator[str]:
    name = f"follow-{uuid4().hex[:8]}"
    yield name
    if keys := await loop_store.delete_loop(redis, name):
        await loop_store.remove_keys(redis, keys)


async def make(redis: Redis, name: str, schema: FeatureSchema | None = None) -> Keys:
    """A loop that only this test's follower has to adopt."""
    record = new_record(name, LoopSettings(), schema or FeatureSchema())
    assert await loop_store.create_loop(redis, record)
    return Keys(name, record.id)


async def learn(redis: Redis, keys: Keys, policy: str, settings: Settings, *, n: int = 1) -> None:
    """Let a policy learn n more events and publish a version."""
    follower = Follower(redis, "nobody")
    await follower.refresh(keys.loop)
    active = follower.loop(keys.loop)
    [row] = active.encoder.encode({}, active.encoder.items([{}]))
    rows = []
    for _ in range(n):
        event = uuid4().hex
        body = event_body(
            decision_id=event,
            item="a",
            user=None,
            context={},
            n=None,
            propensity=None,
            policy=None,
            version=0,
            features=None,
            encoder=None,
        )
        rows.append((event, body, row_bytes(row), 1.0, None))
    await event_log.append_imported(redis, keys, rows, remember=1000)
    runner = PolicyRunner(redis, keys, policy, settings)

    async def opened() -> bool:  # the learner of another test's service may want the lease as well
        await redis.delete(keys.lease(policy))
        return await runner.open()

    await until_async(opened, "the lease is ours")
    await runner.drain()


async def test_a_new_loop_is_served_and_a_deleted_one_is_not(redis: Redis, follower: Follower, name: str) -> None:
    with pytest.raises(NotFound):
        follower.loop(name)
    await make(redis, name)
    await follower.refresh(name)
    assert follower.loop(name).epoch == 1
    await loop_store.delete_loop(redis, name)
    await follower.refresh(name)
    with pytest.raises(NotFound):
        follower.loop(name)


async def test_a_loop_made_again_is_another_one(redis: Redis, follower: Follower, name: str) -> None:
    """Same name, same epoch, same catalogue version; another id, another schema."""
    first = await make(redis, name)
    await item_store.change_items(redis, first, {"old": {}})
    await follower.refresh(name)
    assert follower.loop(name).catalogue.ids == ("old",)
    await loop_store.delete_loop(redis, name)
    second = await make(redis, name, FeatureSchema(hash_dims=7))
    await item_store.change_items(redis, second, {"new": {}})
    await follower.refresh(name)
    active = follower.loop(name)
    assert (active.id, active.catalogue.ids, active.encoder.d) == (second.id, ("new",), 8)


async def test_a_changed_schema_is_served(redis: Redis, follower: Follower, name: str) -> None:
    keys = await make(redis, name)
    await item_store.change_items(redis, keys, {"a": {"price": 1}})
    await follower.refresh(name)
    before = follower.loop(name)
    schema = FeatureSchema.model_validate({"item": {"price": {"type": "numeric", "min": 0, "max": 2}}, "hash_dims": 0})
    running = follower.run()
    try:
        assert await put_loop(redis, follower, name, {}, schema, by="test") is False
    finally:
        await end(*running)
    after = follower.loop(name)
    assert after.encoder.version != before.encoder.version
    assert after.catalogue.block.version == after.encoder.version
    assert after.encoder.encode({}, after.catalogue.block).shape == (1, after.encoder.d)


async def test_a_policy_made_again_does_not_serve_what_the_first_one_knew(
    redis: Redis, follower: Follower, name: str, settings: Settings
) -> None:
    """Same name, same version number; another id."""
    keys = await make(redis, name)
    await create_policy(
        redis, await loop_store.read_loop(redis, name), "p", "popularity", {}, serve_alone=True, by="test"
    )
    await create_policy(redis, await loop_store.read_loop(redis, name), "other", "random", {}, by="test")
    await learn(redis, keys, "p", settings)
    await follower.refresh(name)
    first = follower.loop(name).served["p"]
    assert first.version == 1
    running = follower.run()
    try:
        await activate(redis, follower, name, "other", by="test")
        await delete_policy(redis, name, "p", by="test")
        await create_policy(redis, await loop_store.read_loop(redis, name), "p", "linucb", {}, by="test")
        await activate(redis, follower, name, "p", by="test")
    finally:
        await end(*running)
    blank = follower.loop(name).served["p"]
    assert (blank.id != first.id, blank.version, blank.scorer) == (True, 0, UNIFORM.scorer)
    await learn(redis, keys, "p", settings)
    await follower.refresh(name)
    second = follower.loop(name).served["p"]
    assert second.version == 1
    assert type(second.scorer) is not type(first.scorer)


@pytest.mark.parametrize(
    "garbage",
    [b"not a snapshot", pack({}), b""],
)
async def test_a_bad_snapshot_is_refused_once_and_the_old_one_stays(
    redis: Redis, follower: Follower, name: str, settings: Settings, garbage: bytes
) -> None:
    keys = await make(redis, name)
    await create_policy(
        redis, await loop_store.read_loop(redis, name), "p", "popularity", {}, serve_alone=True, by="test"
    )
    await learn(redis, keys, "p", settings)
    await follower.refresh(name)
    await redis.hset(keys.snapshots("p"), "2", garbage)
    await redis.hset(keys.policy("p"), "version", 2)
    for _ in range(2):
        await follower.refresh(name)
    assert follower.loop(name).served["p"].version == 1
    assert follower.refused == 1
    await redis.hset(keys.policy("p"), "version", 1)


async def test_a_snapshot_that_is_gone_is_no_error(redis: Redis, follower: Follower, name: str) -> None:
    keys = await make(redis, name)
    await create_policy(
        redis, await loop_store.read_loop(redis, name), "p", "popularity", {}, serve_alone=True, by="test"
    )
    await redis.hset(keys.policy("p"), "version", 9)
    await follower.refresh(name)
    assert (follower.loop(name).served["p"].version, follower.refused) == (0, 0)


async def test_an_unreadable_loop_does_not_stop_the_others(redis: Redis, follower: Follower, name: str) -> None:
    keys = await make(redis, name)
    await redis.hset(keys.record, "settings", b'{"reward_range": [1, 5]}')
    other = f"{name}-other"
    try:
        await make(redis, other)
        await follower.start()
        assert other in follower.names
        assert name not in follower.names
    finally:
        if gone := await loop_store.delete_loop(redis, other):
            await loop_store.remove_keys(redis, gone)


async def test_a_lost_store_is_noticed_and_not_followed(redis: Redis, name: str) -> None:
    follower = Follower(redis, worker="test-lost")
    await make(redis, name)
    await follower.start()
    before = follower.loop(name)
    follower._identity = "the identity of other data"
    await follower._poll()
    assert (follower.rung(), follower.store_usable()) == ("store_lost", False)
    record = await loop_store.read_loop(redis, name)
    await loop_store.change_loop(redis, record, {})
    await follower.refresh(name)
    assert follower.loop(name) is before
    await workers.sign_off(redis, follower.worker)


@pytest.mark.parametrize("gone", [True, False], ids=["the loop is missing", "its items are others"])
async def test_what_is_missing_in_a_lost_store_was_not_deleted(redis: Redis, name: str, gone: bool) -> None:
    """Between two polls: the loss is noticed by the look itself, before anything is dropped."""
    follower = Follower(redis, worker="test-lost")
    keys = await make(redis, name)
    await follower.start()
    before = follower.loop(name)
    follower._identity = "the identity of data that is lost"
    if gone:
        await loop_store.delete_loop(redis, name)
        await loop_store.remove_keys(redis, keys)
    else:
        await item_store.change_items(redis, keys, {"a": {}})
    await follower.refresh(name)
    assert follower.loop(name) is before
    assert follower.rung() == "store_lost"
    await workers.sign_off(redis, follower.worker)


async def test_the_announcement_is_followed_without_a_poll(
    redis: Redis, follower: Follower, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    polled = asyncio.Event()

    async def no_poll(self: Follower) -> None:
        polled.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(Follower, "_poll_forever", no_poll)
    running = follower.run()
    try:
        await polled.wait()
        keys = await make(redis, name)
        async with asyncio.timeout(10):
            while name not in follower.names:
                # The subscription may have come after the first announcement: make another one.
                await loop_store.change_loop(redis, await loop_store.read_loop(redis, name), {})
                await asyncio.sleep(0.01)
        assert follower.loop(name).id == keys.id
    finally:
        await end(*running)


async def test_versions_are_told_by_loop_and_policy(
    redis: Redis, follower: Follower, name: str, settings: Settings
) -> None:
    keys = await make(redis, name)
    await create_policy(
        redis, await loop_store.read_loop(redis, name), "p", "popularity", {}, serve_alone=True, by="test"
    )
    await learn(redis, keys, "p", settings)
    await follower.refresh(name)
    assert follower.versions()[name] == {"p": 1}
    assert await policy_store.kept_versions(redis, keys, "p") == [1]


async def test_what_no_announcement_told_is_found_by_the_look_at_everything(
    redis: Redis, follower: Follower, name: str, settings: Settings
) -> None:
    keys = await make(redis, name)
    await create_policy(
        redis, await loop_store.read_loop(redis, name), "p", "popularity", {}, serve_alone=True, by="test"
    )
    await follower._look()
    before = follower.loop(name)
    await follower._look()
    assert follower.loop(name) is before, "nothing has changed, and it was made again"
    await learn(redis, keys, "p", settings)
    await follower._look()
    assert follower.loop(name).served["p"].version == 1
    await item_store.change_items(redis, keys, {"a": {}})
    await follower._look()
    assert follower.loop(name).catalogue.ids == ("a",)
    await loop_store.delete_loop(redis, name)
    await follower._look()
    assert name not in follower.names


async def test_a_funnel_is_built_beside_and_serves_on_without_a_learner(
    redis: Redis, follower: Follower, name: str
) -> None:
    funnel = {"sources": [{"source": "fresh", "quota": 2}], "cut": 3}
    record = new_record(name, LoopSettings.model_validate({"funnel": funnel}), FeatureSchema())
    assert await loop_store.create_loop(redis, record)
    keys = Keys(name, record.id)
    await item_store.change_items(redis, keys, {f"p{n}": {} for n in range(9)})
    await follower.refresh(name)
    assert (first := follower.loop(name).retriever) is not None
    assert first.version == 0

    async def publish(seen: int, state: bytes | None = None) -> None:
        counts = Counts()
        counts.follow([ItemChange(1, "p7", was=False, now=True)])
        written = pack(counts.state()) if state is None else state
        reach = {"position": "0-0", "catalogue": 1, "activity": "0-0", "events": 0, "items": 1, "together": 0}
        assert await retrieval_store.save_retrieval(redis, keys, seen=seen, state=written, **reach)  # type: ignore[arg-type]  # a field each
        await follower.refresh(name)

    await publish(0)
    assert (second := follower.loop(name).retriever) is not None
    assert (second.version, second is first) == (1, False)
    assert 7 in second.retrieve(Query({}, "s"))
    refused = follower.refused
    await publish(1, b"no arrays")
    assert follower.loop(name).retriever is second
    assert follower.refused == refused + 1
    await publish(2)
    assert (third := follower.loop(name).retriever) is not None
    assert third.version == 3
    await item_store.change_items(redis, keys, {"newest": {}})
    await follower.refresh(name)
    assert (fourth := follower.loop(name).retriever) is not None
    catalogue = follower.loop(name).catalogue
    assert catalogue.index["newest"] in fourth.retrieve(Query({}, "s"))
    await item_store.change_items(redis, keys, {item: None for item in ("p0", "p1", "p2", "p3", "p4", "p5", "p6")})
    await follower.refresh(name)
    assert follower.loop(name).retriever is None  # no more items than the cut


async def test_of_a_changed_catalogue_what_changed_is_read(
    redis: Redis, follower: Follower, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = await make(redis, name)
    await item_store.change_items(redis, keys, {"a": {"x": 1}, "b": {"x": 1}, "c": {}})
    await follower.refresh(name)
    before = follower.loop(name).catalogue
    assert before.block is before.block

    async def all_items(*_: object) -> None:
        raise AssertionError("all items are read")

    monkeypatch.setattr(item_store, "read_written", all_items)
    await item_store.change_items(redis, keys, {"a": None, "b": {"x": 2}})
    await item_store.change_items(redis, keys, {"d": {"x": 3}})
    await follower.refresh(name)
    after = follower.loop(name).catalogue
    assert (after.version, after.ids, after.features["b"]) == (3, ("b", "c", "d"), {"x": 2})
    assert (before.ids, before.features["b"]) == (("a", "b", "c"), {"x": 1})


async def test_who_is_too_far_behind_reads_all_items(
    redis: Redis, follower: Follower, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = await make(redis, name)
    await item_store.change_items(redis, keys, {"a": {}, "b": {}})
    await follower.refresh(name)
    monkeypatch.setattr(item_store, "MOST_CHANGES", 1)
    await item_store.change_items(redis, keys, {"a": None, "c": {}})
    await follower.refresh(name)
    assert (follower.loop(name).catalogue.version, follower.loop(name).catalogue.ids) == (2, ("b", "c"))
