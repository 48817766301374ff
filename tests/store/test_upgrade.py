"""The upgrade from version 0.1: on data that its code wrote (tests/data/make_v1.py), nothing is lost or changed."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import orjson
import pytest
from redis import Redis as BlockingRedis
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from service.admin import audit
from service.admin.audit import audit_decisions, audit_learning, audit_propensities
from service.decide.active import ActiveLoop
from service.decide.decision import decide, request_of
from service.errors import NotFound, UnreadableRecord
from service.learn.runner import PolicyRunner
from service.learn.sweeper import Sweeper
from service.loop import LoopSettings
from service.policies import Array
from service.records import START, Decision, Event, LoopRecord, Note, Training, Unreadable
from service.run.embedded import EmbeddedRedis
from service.settings import Settings
from service.store import event_log, item_store, loop_store, policy_store, upgrade
from service.store.codec import FORMAT, NewerFormat
from service.store.connection import connect
from service.store.decisions import join_feedback, read_ledger, read_stored_decision
from service.store.group_commit import GroupCommit
from service.store.keys import FORMAT as FORMAT_KEY
from service.store.keys import LOOPS, STORE, Keys
from tests.conftest import Worker
from tests.waiting import until, until_async

pytestmark = pytest.mark.anyio
DATA = Path(__file__).parent.parent / "data" / "v1.aof.gz"
POLICIES = {"shop": ["adaptive", "embedding_mlp", "linucb", "popularity"], "sums": ["popular"], "quick": ["lin_ts"]}
LOST = {"rebound:{shop:0}:policy:half"}  # half a policy: it never was one


@pytest.fixture(scope="module")
def dumps(tmp_path_factory: pytest.TempPathFactory) -> dict[bytes, bytes]:
    """Every key of version 0.1's data, as Redis dumps it."""
    data = tmp_path_factory.mktemp("v1")
    (data / "appendonly.aof").write_bytes(gzip.decompress(DATA.read_bytes()))
    with EmbeddedRedis(data) as embedded, BlockingRedis.from_url(embedded.url) as redis:
        found = {key: redis.dump(key) for key in redis.keys("*")}
    assert found
    return found


@pytest.fixture
async def redis(quiet_redis: Redis, dumps: Mapping[bytes, bytes], monkeypatch: pytest.MonkeyPatch) -> Redis:
    """A Redis with version 0.1's data."""
    monkeypatch.setattr(upgrade, "PAUSE_S", 0.01)
    await load(quiet_redis, dumps)
    return quiet_redis


async def load(redis: Redis, dumps: Mapping[bytes, bytes]) -> None:
    await redis.flushall()
    async with redis.pipeline(transaction=False) as pipe:
        for key, dump in dumps.items():
            pipe.restore(key, 0, dump)
        await pipe.execute()


def old(loop: str, rest: str) -> str:
    """Name a key as version 0.1 did."""
    return f"rebound:{{{loop}:0}}:{rest}"


async def keys_of(redis: Redis, loop: str) -> Keys:
    return Keys(loop, (await loop_store.read_loop(redis, loop)).id)


async def contents(redis: Redis) -> dict[str, Any]:
    """Return all data of loops, with their ids and those of policies taken out: they are made up."""
    ids = {await redis.hget(key, "id") for key in await redis.keys("rebound:{*}:loop")} - {None}
    found: dict[str, Any] = {}
    for key in sorted(await redis.keys("rebound:{*")):
        name = key
        for loop_id in ids:
            name = name.replace(b":" + loop_id + b":", b":ID:")
        kind = await redis.type(key)
        if kind == b"hash":
            value = await redis.hgetall(key)
            if b"id" in value and not name.endswith(b"items"):
                value[b"id"] = b"ID"
        elif kind == b"zset":
            value = sorted(member for member, _ in await redis.zrange(key, 0, -1, withscores=True))
        elif kind == b"set":
            value = await redis.smembers(key)
        elif kind == b"stream":
            value = await redis.xrange(key)
        else:
            value = await redis.get(key)
        found[name.decode()] = value
    return found


async def unlocked(redis: Redis) -> None:
    """Wait until the lock is gone: it is let go by a time to live of a millisecond."""

    async def there() -> bool:
        return not await redis.exists(upgrade.LOCK)

    await until_async(there, "the lock is gone", within_s=2)


# ---- what is there afterwards


async def test_every_key_is_where_it_is_looked_for(redis: Redis) -> None:
    before = {key.decode() for key in await redis.keys("*")}
    await upgrade.upgrade(redis)
    assert await redis.get(FORMAT_KEY) == b"%d" % FORMAT
    assert await loop_store.loop_names(redis) == ["half", "quick", "shop", "stars", "sums"]
    found = {key.decode() for key in await redis.keys("rebound:{*")}
    expected = set()
    for loop in ("half", "quick", "shop", "stars", "sums"):
        record = await redis.hgetall(f"rebound:{{{loop}}}:loop")
        assert record[b"v"] == b"2"
        keys, prefix = Keys(loop, record[b"id"].decode()), old(loop, "")
        expected.add(keys.record)
        for key in before - LOST:
            if not key.startswith(prefix) or key == prefix + "loop":
                continue
            rest = key.removeprefix(prefix)
            if rest.startswith("snapshot:"):
                expected.add(keys.snapshots(rest.split(":")[1]))
            elif rest.split(":")[0] in ("decision", "pending", "events", "imported", "dead", "stats"):
                expected.add(keys.partition().prefix + rest)
            else:
                expected.add(keys.home + rest)
    assert found == expected
    assert all(not key.startswith("rebound:upgrade") for key in found)


async def test_a_second_time_changes_nothing(redis: Redis) -> None:
    await upgrade.upgrade(redis)
    await unlocked(redis)
    once = {key: await redis.dump(key) for key in await redis.keys("*")}
    await upgrade.upgrade(redis)
    assert {key: await redis.dump(key) for key in await redis.keys("*")} == once


@pytest.mark.parametrize("loop", POLICIES)
async def test_loops_and_policies_are_what_they_were(redis: Redis, loop: str) -> None:
    was = await redis.hgetall(old(loop, "loop"))
    policies = {name: await redis.hgetall(old(loop, f"policy:{name}")) for name in POLICIES[loop]}
    states = {name: await redis.get(old(loop, f"state:{name}")) for name in POLICIES[loop]}
    snapshots = {
        (name, int(key.rpartition(b":")[2])): await redis.get(key)
        for name in POLICIES[loop]
        for key in await redis.keys(old(loop, f"snapshot:{name}:*"))
    }
    assert snapshots
    history = {name: await redis.xrange(old(loop, f"history:{name}")) for name in POLICIES[loop]}
    await upgrade.upgrade(redis)
    record = await loop_store.read_loop(redis, loop)
    settings = orjson.loads(was[b"settings"])
    assert record.schema == {"item_ids": False, **orjson.loads(was[b"schema"])}
    assert record.settings.model_dump(mode="json") == {**LoopSettings().model_dump(mode="json"), **settings}
    assert record.pins == orjson.loads(was[b"pins"])
    assert record.traffic == orjson.loads(was[b"traffic"])
    assert (record.epoch, record.catalogue, record.d) == tuple(
        int(was[name]) for name in (b"epoch", b"catalogue", b"d")
    )
    assert record.encoder == was[b"encoder"].decode()
    keys = Keys(loop, record.id)
    assert await policy_store.policy_names(redis, keys) == POLICIES[loop]
    for name, stored in policies.items():
        policy = await policy_store.read_policy(redis, keys, name)
        assert policy.id
        assert policy.kind == stored[b"kind"].decode()
        assert policy.params == orjson.loads(stored[b"params"])
        assert policy.alarms == orjson.loads(stored[b"alarms"])
        assert policy.position == stored[b"position"].decode()
        numbers = (policy.version, policy.events, policy.skipped, policy.bytes, policy.kept)
        assert numbers == tuple(int(stored[f]) for f in (b"version", b"events", b"skipped", b"bytes", b"kept"))
        assert await policy_store.read_state(redis, keys, name) == states[name]
        kept = await policy_store.kept_versions(redis, keys, name)
        assert kept == sorted(version for of, version in snapshots if of == name)
        for version in kept:
            assert await policy_store.read_snapshot(redis, keys, name, version) == snapshots[name, version]
        for entry, fields in history[name]:
            version = int(entry.split(b"-")[0])
            assert await policy_store.version_position(redis, keys, name, version) == fields[b"position"].decode()


@pytest.mark.parametrize("loop", POLICIES)
async def test_the_ledger_the_log_and_the_catalogue_are_what_they_were(redis: Redis, loop: str) -> None:
    decisions = {
        key.decode().removeprefix(old(loop, "decision:")): await redis.hgetall(key)
        for key in await redis.keys(old(loop, "decision:*"))
    }
    assert decisions
    log, stats = await redis.xrange(old(loop, "events")), await redis.hgetall(old(loop, "stats"))
    items, item_log = await redis.hgetall(old(loop, "items")), await redis.xrange(old(loop, "item-log"))
    pending = await redis.zrange(old(loop, "pending"), 0, -1, withscores=True)
    imported = await redis.smembers(old(loop, "imported"))
    await upgrade.upgrade(redis)
    keys = await keys_of(redis, loop)
    part = keys.partition()
    for decision_id, stored in decisions.items():
        ledger = await read_ledger(redis, keys, decision_id)
        assert ledger["status"] == stored[b"status"].decode()
        assert ledger["decision"] == orjson.loads(stored[b"record"])
        assert len(ledger["feedback"]) == int(stored.get(b"seen", 0))
        assert (await read_stored_decision(redis, keys, decision_id)).decision_id == decision_id
    assert await redis.xrange(part.events) == log
    assert await redis.hgetall(part.stats) == stats
    assert await redis.hgetall(keys.items) == items
    assert await redis.xrange(keys.item_log) == item_log
    assert await redis.zrange(part.pending, 0, -1, withscores=True) == pending
    assert set(await redis.zrange(part.imported, 0, -1)) == imported
    for version in range((await loop_store.read_loop(redis, loop)).catalogue + 1):
        await item_store.read_items_at(redis, keys, version)


async def test_entries_of_every_sort_are_read(redis: Redis) -> None:
    await upgrade.upgrade(redis)
    shop = await event_log.read(redis, await keys_of(redis, "shop"), START)
    assert {type(entry) for entry in shop} == {Event, Training, Unreadable}
    sums = await event_log.read(redis, await keys_of(redis, "sums"), START)
    assert {type(entry) for entry in sums} == {Event, Note}
    assert sum(isinstance(entry, Note) for entry in sums) == 1, "the alarm"


async def test_an_import_that_came_before_is_known_still_and_the_memory_stays_bounded(redis: Redis) -> None:
    await upgrade.upgrade(redis)
    keys = await keys_of(redis, "shop")
    rows = [(f"e{i}", b"{}", b"", 1.0, None) for i in range(120)]
    assert await event_log.append_imported(redis, keys, rows, remember=120) == 0
    assert await event_log.append_imported(redis, keys, [("new", b"{}", b"", 1.0, None)], remember=120) == 1
    imported = keys.partition().imported
    assert await redis.zcard(imported) == 120
    assert await redis.zscore(imported, "new") == 121, "an old id was kept in its place"


# ---- pending decisions


async def postpone(redis: Redis, keys: Keys, decision_id: str, seconds: float) -> None:
    """Move a deadline to so many seconds from now: the data was written long ago."""
    at = round(1000 * ((await redis.time())[0] + seconds))
    await redis.hset(keys.partition().decision(decision_id), "deadline", at)
    await redis.zadd(keys.partition().pending, {decision_id: at})


async def test_pending_decisions_are_joined(redis: Redis) -> None:
    await upgrade.upgrade(redis)
    keys = await keys_of(redis, "shop")
    settings = (await loop_store.read_loop(redis, "shop")).settings
    waiting = [name.decode() for name in await redis.zrange(keys.partition().pending, 0, -1)]
    assert len(waiting) > 20
    before = len(await event_log.read(redis, keys, START))
    for decision_id in waiting:
        await postpone(redis, keys, decision_id, 3600)
        answer = await join_feedback(
            GroupCommit(redis), keys, settings, decision_id=decision_id, item="", reward=1.0, feedback_id="new"
        )
        assert answer == "accepted"
    events = (await event_log.read(redis, keys, START))[before:]
    assert [event.decision_id for event in events if isinstance(event, Event)] == waiting
    for name in POLICIES["shop"]:
        runner = PolicyRunner(redis, keys, name, Settings())
        assert await runner.open()
        await runner.drain()
        stats = await event_log.read_stats(redis, keys)
        assert (await policy_store.read_policy(redis, keys, name)).events == stats["events"]


async def test_pending_decisions_are_settled_with_what_was_reported(redis: Redis) -> None:
    await upgrade.upgrade(redis)
    keys = await keys_of(redis, "sums")
    for number in range(10):
        await postpone(redis, keys, f"d{number}", -1)
    before = len(await event_log.read(redis, keys, START))
    await Sweeper(redis, keys).step()
    events = [event for event in (await event_log.read(redis, keys, START))[before:] if isinstance(event, Event)]
    assert len(events) == 20
    first = {event.decision_id: (event.reward, event.source) for event in events if event.slate_position is not None}
    rewards = {event.decision_id: [e.reward for e in events if e.decision_id == event.decision_id] for event in events}
    reported = {f"d{number}": min(4.0, 1.5 * (number % 4)) for number in range(10) if number % 4}
    for number in range(10):
        expected = reported.get(f"d{number}", 0.5)
        assert sorted(rewards[f"d{number}"]) == sorted([expected, 0.5])
    assert set(first) == {f"d{number}" for number in range(10)}
    positions = sorted(event.slate_position for event in events if event.slate_position is not None)
    assert positions == list(range(20)), "the order of decisions goes on from the old code's"


# ---- audit
#
# The data may have been made on another machine, on which sums differ in their last bits. So what its code computed is
# compared within 1e-6 here; what is computed in this test is compared bit for bit.


def nearly_same_arrays(one: Mapping[str, Array], other: Mapping[str, Array]) -> bool:
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype
        and one[name].shape == other[name].shape
        and np.allclose(
            one[name].astype(np.float64), other[name].astype(np.float64), rtol=1e-6, atol=1e-4, equal_nan=True
        )
        for name in one
    )


def nearly_same_decision(decision: Decision, loop: LoopRecord, encoder: Any, catalogue: Any, served: Any) -> bool:
    settings = loop.settings.model_copy(update={"exploration_floor": decision.exploration_floor})
    active = ActiveLoop(loop.name, loop.id, settings, encoder, catalogue, {}, {}, loop.epoch)
    again, _ = decide(request_of(decision), active, at=decision.at, served=served)
    return again == replace(decision, items=again.items) and all(
        one.id == other.id and abs(one.score - other.score) < 1e-6 and abs(one.propensity - other.propensity) < 1e-6
        for one, other in zip(again.items, decision.items, strict=True)
    )


@pytest.fixture
def tolerant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "same_arrays", nearly_same_arrays)
    monkeypatch.setattr(audit, "same_decision", nearly_same_decision)


@pytest.mark.parametrize("loop", POLICIES)
@pytest.mark.usefixtures("tolerant")
async def test_the_audit_passes(redis: Redis, loop: str) -> None:
    await upgrade.upgrade(redis)
    assert await audit_learning(redis, loop) == dict.fromkeys(POLICIES[loop], True)
    decided = await audit_decisions(redis, loop)
    assert (decided.different, decided.gone) == ([], 0)
    assert decided.same or loop == "sums", "nothing was checked"  # all of its decisions are pending
    propensities = await audit_propensities(redis, loop, confidence=0.9999)
    assert all(check.passed for check in propensities.values())
    assert bool(propensities) == (loop != "sums")


@pytest.mark.usefixtures("tolerant")
async def test_versions_that_are_no_longer_kept_are_learned_again(redis: Redis) -> None:
    await upgrade.upgrade(redis)
    keys = await keys_of(redis, "shop")
    before = await audit_decisions(redis, "shop")
    for name in POLICIES["shop"]:
        await redis.delete(keys.snapshots(name))
    assert await audit_decisions(redis, "shop") == before


async def test_checkpoints_go_on_and_say_from_then_on_which_items_they_saw(redis: Redis) -> None:
    await upgrade.upgrade(redis)
    for loop, names in POLICIES.items():
        keys = await keys_of(redis, loop)
        for name in names:
            runner = PolicyRunner(redis, keys, name, Settings())
            assert await runner.open()
            await runner.drain()
            again = PolicyRunner(redis, keys, name, Settings())
            await redis.delete(keys.lease(name))
            assert await again.open()
            state = again._trainer.state()
            assert state["trainer.learned"][0] > 0
            assert len(state["trainer.last_seen"]) > 0


# ---- the whole service on the old data


def test_the_service_goes_on_with_the_old_data(dumps: Mapping[bytes, bytes], quiet_redis_url: str) -> None:
    """It serves, learns, rolls back to a kept version, and deletes what version 0.1 could neither read nor delete."""

    async def prepare() -> None:
        redis = connect(quiet_redis_url, name="test", timeout_s=5)
        await load(redis, dumps)
        await redis.aclose()

    asyncio.run(prepare())
    settings = Settings(redis_url=quiet_redis_url, publish_period_ms=20)
    with (
        Worker(settings, learner=True) as url,
        httpx.Client(base_url=url, timeout=30, params={"loop": "shop"}) as client,
        BlockingRedis.from_url(quiet_redis_url) as redis,
    ):

        def status() -> Any:
            return httpx.get(f"{url}/status", timeout=30).json()["loops"]

        def learned() -> bool:
            told = status()["shop"]
            return all(policy["events"] == told["events"] for policy in told["policies"].values())

        until(learned, "all is learned")
        assert status()["shop"]["dead_letters"] == 1
        assert httpx.get(f"{url}/status").json()["rung"] == "ok"
        assert client.get("/decisions/d1").json()["status"] == "rewarded"

        kept = client.get("/policies/linucb").json()["kept_versions"]
        chosen = [
            d for d in (client.get(f"/decisions/d{n}").json()["decision"] for n in range(90)) if d["policy"] == "linucb"
        ]
        then = next(d for d in chosen if d["version"] in kept and d["candidates"] is None and d["catalogue"] == 3)
        for _ in range(2):
            reply = client.post("/policies/linucb/rollback", json={"version": then["version"]})
            assert reply.json()["adopted"], reply.text
            [record] = redis.keys(f"rebound:{{shop:0}}:*:decision:{then['decision_id']}")
            redis.delete(record)  # so that it is decided anew, not looked up
            asked = {name: then[name] for name in ("decision_id", "user_id", "context", "exclude", "k")}
            again = client.post("/recommend", json={"loop": "shop", **asked}).json()
            assert (again["policy"], again["version"]) == ("linucb", then["version"])
            assert [item["id"] for item in again["items"]] == [item["id"] for item in then["items"]]
            for one, other in zip(again["items"], then["items"], strict=True):
                assert one["score"] == pytest.approx(other["score"], abs=1e-9)
                assert one["propensity"] == pytest.approx(other["propensity"], abs=1e-9)
            assert client.post("/policies/linucb/activate").json()["adopted"]

        sent = {"loop": "shop", "decision_id": again["decision_id"], "reward": 1}
        events = status()["shop"]["events"]
        assert client.post("/feedback", json=sent).status_code == 202
        until(lambda: status()["shop"]["events"] == events + 1 and learned(), "new feedback is learned")

        assert client.post("/policies", json={"name": "half", "kind": "linucb"}).status_code == 201
        assert client.delete("/policies/half").status_code == 204
        for loop in ("stars", "half"):
            assert status()[loop]["problem"]
            assert httpx.delete(f"{url}/loops/{loop}").status_code == 204
            assert loop not in status()
            assert httpx.put(f"{url}/loops/{loop}", json={}, timeout=30).status_code == 201


# ---- cut off, at once, and at the wrong time


class Killed(BaseException):
    """The process is gone: nothing that it does from here on reaches Redis."""


class Mortal:
    """Lets so many commands (or pipelines) through, and then none."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, redis: Redis, lives: float, error: type[BaseException]) -> None:
        self.commands, self._lives, self._error = 0, lives, error
        run, pipeline = redis.execute_command, redis.pipeline

        async def execute_command(*args: Any, **options: Any) -> Any:
            self.count()
            return await run(*args, **options)

        def counted(*args: Any, **options: Any) -> Any:
            pipe = pipeline(*args, **options)
            execute = pipe.execute

            async def counted_execute(*args: Any, **options: Any) -> Any:
                self.count()
                return await execute(*args, **options)

            pipe.execute = counted_execute
            return pipe

        monkeypatch.setattr(redis, "execute_command", execute_command)
        monkeypatch.setattr(redis, "pipeline", counted)

    def count(self) -> None:
        self.commands += 1
        if self.commands > self._lives:
            raise self._error("killed")


async def test_an_upgrade_that_was_killed_at_any_point_is_finished_by_the_next(
    redis: Redis, dumps: Mapping[bytes, bytes], quiet_redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upgrade, "BATCH", 7)
    with monkeypatch.context() as patch:
        whole = Mortal(patch, redis, float("inf"), Killed)
        await upgrade.upgrade(redis)
    expected = await contents(redis)
    killed = 0
    for lives in range(1, whole.commands, 19):
        await load(redis, dumps)
        other = connect(quiet_redis_url, name="test", timeout_s=5)
        with monkeypatch.context() as patch:
            Mortal(patch, other, lives, Killed)
            try:
                await upgrade.upgrade(other)
            except Killed:
                killed += 1
        await other.aclose()
        await redis.delete(upgrade.LOCK)  # its time is over
        await upgrade.upgrade(redis)
        assert await contents(redis) == expected, f"killed after {lives} of {whole.commands}"
    assert killed >= whole.commands // 19 - 2  # a scan takes a few commands more or less


async def test_redis_that_goes_away_on_the_way_is_waited_for(
    redis: Redis, dumps: Mapping[bytes, bytes], quiet_redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await upgrade.upgrade(redis)
    expected = await contents(redis)
    await load(redis, dumps)
    monkeypatch.setattr(upgrade, "LOCK_MS", 200)
    other = connect(quiet_redis_url, name="test", timeout_s=5)
    with monkeypatch.context() as patch:
        mortal = Mortal(patch, other, 40, RedisConnectionError)
        running = asyncio.create_task(upgrade.upgrade(other))
        await until_async(lambda: _is(lambda: mortal.commands > 45), "it has met the fault, and tried again")
        assert not running.done()
        mortal._lives = float("inf")
        await asyncio.wait_for(running, 20)
    await other.aclose()
    assert await contents(redis) == expected


async def _is(fact: Callable[[], bool]) -> bool:
    return fact()


async def test_of_two_that_upgrade_at_once_one_does_and_the_other_waits(
    redis: Redis, dumps: Mapping[bytes, bytes], quiet_redis_url: str
) -> None:
    await upgrade.upgrade(redis)
    expected = await contents(redis)
    await load(redis, dumps)
    others = [connect(quiet_redis_url, name="test", timeout_s=5) for _ in range(3)]
    await asyncio.wait_for(asyncio.gather(*map(upgrade.upgrade, others)), 60)
    assert await contents(redis) == expected
    await unlocked(redis)
    for other in others:
        await other.aclose()


async def test_two_that_lost_the_lock_to_each_other_do_no_harm(
    redis: Redis, dumps: Mapping[bytes, bytes], quiet_redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that was stopped for longer than the lock lasts goes on beside the next."""
    await upgrade.upgrade(redis)
    expected = await contents(redis)
    monkeypatch.setattr(upgrade, "BATCH", 7)
    for delay in range(0, 60, 10):
        await load(redis, dumps)
        others = [connect(quiet_redis_url, name="test", timeout_s=5) for _ in range(2)]

        async def late(other: Redis, commands: int = delay) -> None:
            for _ in range(commands):
                await other.ping()
            await upgrade._move_all(other)

        await asyncio.wait_for(asyncio.gather(upgrade._move_all(others[0]), late(others[1])), 60)
        found = await contents(redis)
        strays = found.keys() - expected.keys()
        assert strays <= {old(loop, "loop") for loop in POLICIES} | {old(loop, "loop") for loop in ("stars", "half")}
        assert {name: value for name, value in found.items() if name not in strays} == expected
        for other in others:
            await other.aclose()


async def test_a_scan_may_show_a_key_twice(
    redis: Redis, monkeypatch: pytest.MonkeyPatch, dumps: Mapping[bytes, bytes]
) -> None:
    await upgrade.upgrade(redis)
    expected = await contents(redis)
    await load(redis, dumps)
    monkeypatch.setattr(upgrade, "BATCH", 7)
    scan = redis.scan_iter

    async def twice(**options: Any) -> AsyncIterator[bytes]:
        seen = [key async for key in scan(**options)]
        for key in seen:
            yield key
        for key in seen:
            yield key

    monkeypatch.setattr(redis, "scan_iter", twice)
    await upgrade.upgrade(redis)
    assert await contents(redis) == expected


@pytest.mark.parametrize("name", ["rebound-api", "rebound-learner"])
async def test_it_does_not_begin_while_the_old_version_is_alive(
    redis: Redis, quiet_redis_url: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {key: await redis.dump(key) for key in await redis.keys("*")}
    alive = Redis.from_url(quiet_redis_url, client_name=name)
    await alive.ping()
    running = asyncio.create_task(upgrade.upgrade(redis))
    said = ""

    async def told() -> bool:
        nonlocal said
        said += capsys.readouterr().out
        return "stop it first" in said

    await until_async(told, "it says why it waits")
    assert name in said
    assert {key: await redis.dump(key) for key in await redis.keys("*")} == before
    await alive.aclose()
    await asyncio.wait_for(running, 20)
    assert await redis.get(FORMAT_KEY) == b"%d" % FORMAT


async def test_a_process_of_this_version_is_no_hindrance(redis: Redis, quiet_redis_url: str) -> None:
    others = [connect(quiet_redis_url, name=name, timeout_s=5) for name in ("api", "learner")]
    for other in others:
        await other.ping()
    await asyncio.wait_for(upgrade.upgrade(redis), 20)
    for other in others:
        await other.aclose()


async def test_it_can_be_stopped_while_it_waits(redis: Redis, quiet_redis_url: str) -> None:
    alive = Redis.from_url(quiet_redis_url, client_name="rebound-api")
    await alive.ping()
    stop = asyncio.Event()
    running = asyncio.create_task(upgrade.upgrade(redis, stop))
    await redis.ping()
    stop.set()
    await asyncio.wait_for(running, 20)
    assert not await redis.exists(FORMAT_KEY)
    await alive.aclose()


async def test_data_of_a_newer_version_is_refused(redis: Redis) -> None:
    await redis.set(FORMAT_KEY, FORMAT + 1)
    before = {key: await redis.dump(key) for key in await redis.keys("*")}
    with pytest.raises(NewerFormat, match=r"the data in Redis has format 3.*start the newer version again"):
        await upgrade.upgrade(redis)
    assert {key: await redis.dump(key) for key in await redis.keys("*")} == before


async def test_an_empty_redis_is_of_this_version(quiet_redis: Redis) -> None:
    await upgrade.upgrade(quiet_redis)
    assert await quiet_redis.keys("*") == [FORMAT_KEY.encode()]


async def test_what_0_1_could_neither_read_nor_delete_can_be_deleted(redis: Redis) -> None:
    await upgrade.upgrade(redis)
    for loop in ("stars", "half"):
        with pytest.raises(UnreadableRecord):
            await loop_store.read_loop(redis, loop)
        keys = await loop_store.delete_loop(redis, loop)
        assert keys is not None
        await loop_store.remove_keys(redis, keys)
        with pytest.raises(NotFound):
            await loop_store.read_loop(redis, loop)
        assert await redis.keys(f"rebound:{{{loop}*") == []


async def test_the_data_is_version_0_1s(redis: Redis) -> None:
    """Else nothing above was tested."""
    assert await redis.exists(STORE)
    assert not await redis.exists(FORMAT_KEY)
    assert await redis.smembers(LOOPS) == {b"half", b"quick", b"shop", b"stars", b"sums"}
    assert b"id" not in await redis.hgetall(old("shop", "loop"))
    assert await redis.hgetall(old("half", "loop")) == {b"d": b"4"}
    assert set(map(bytes.decode, await redis.keys(old("shop", "policy:half")))) == LOST
