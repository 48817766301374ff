"""The runner on a real Redis: lease, fencing, checkpoints, and what stops it."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import numpy as np
import orjson
import pytest
from redis.asyncio import Redis

from service.admin.audit import audit_learning
from service.errors import NotFound, StoreUnavailable
from service.learn import bell, runner
from service.learn.bell import Bell
from service.learn.runner import LeaseLost, PolicyRunner
from service.policies import KINDS
from service.records import LoopRecord, PolicyRecord
from service.settings import Settings
from service.store import codec, event_log, loop_store, policy_store
from service.store.codec import NewerFormat, pack, unpack
from service.store.connection import end
from service.store.keys import Keys
from tests.builders import event_of, fields_of, import_of, policy_of
from tests.learn.recorder import Recorder
from tests.learn.running import opened
from tests.waiting import until_async

pytestmark = pytest.mark.anyio


async def append(redis: Redis, keys: Keys, n: int, *, first: int = 0) -> None:
    """Import n events."""
    rows = import_of([event_of(number) for number in range(first, first + n)])
    assert await event_log.append_imported(redis, keys, rows, remember=10_000) == n


async def make(redis: Redis, keys: Keys, record: PolicyRecord) -> PolicyRecord:
    """Make a policy."""
    await policy_store.create_policy(redis, keys, record)
    return record


async def newer(redis: Redis, keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    """Append an event that the next version of Rebound wrote."""
    with monkeypatch.context() as patch:
        patch.setattr(codec, "FORMAT", codec.FORMAT + 1)
        await append(redis, keys, 1, first=10**6)


async def learned(redis: Redis, keys: Keys, n: int) -> None:
    """Wait until the policy `linucb` has learned n events."""

    async def there() -> bool:
        return (await policy_store.read_policy(redis, keys, "linucb")).events == n

    await until_async(there, f"{n} events are learned")


# ---- checkpoints


async def test_a_runner_goes_on_from_the_checkpoint(redis: Redis, keys: Keys, settings: Settings) -> None:
    await make(redis, keys, policy_of())
    await append(redis, keys, 30)
    first = await opened(redis, keys, settings)
    assert await first.drain() == 30
    await append(redis, keys, 7, first=30)  # learned by nobody: the first one "crashes" here
    second = await opened(redis, keys, settings)
    assert await second.drain() == 7
    record = await policy_store.read_policy(redis, keys, "linucb")
    assert (record.events, record.version) == (37, 2)
    assert await audit_learning(redis, keys.loop) == {"linucb": True}


async def test_what_was_learned_after_the_checkpoint_is_learned_again(
    redis: Redis, keys: Keys, settings: Settings
) -> None:
    await make(redis, keys, policy_of())
    await append(redis, keys, 10)
    slow = settings.model_copy(update={"publish_period_ms": 60_000})
    crashes = await opened(redis, keys, slow)
    assert await crashes.step() == 10
    await append(redis, keys, 5, first=10)
    assert await crashes.step() == 5
    assert (await policy_store.read_policy(redis, keys, "linucb")).events == 10, "it published again within a minute"
    assert await (await opened(redis, keys, settings)).drain() == 5
    assert await audit_learning(redis, keys.loop) == {"linucb": True}


async def test_how_the_log_is_cut_does_not_show(redis: Redis, keys: Keys, settings: Settings) -> None:
    """One runner reads all at once, the other in three bites: the states are the same bytes."""
    for kind in ("linucb", "popularity"):
        await make(redis, keys, policy_of(kind))
    await append(redis, keys, 10)
    bites = await opened(redis, keys, settings)
    await bites.drain()
    for first in (10, 25):
        await append(redis, keys, 15, first=first)
        await bites.drain()
    assert await audit_learning(redis, keys.loop) == {"linucb": True, "popularity": True}
    state = unpack(await policy_store.read_state(redis, keys, "linucb") or b"")
    assert all(np.isfinite(array).all() for array in state.values())


async def test_the_audit_finds_a_state_that_was_not_learned(redis: Redis, keys: Keys, settings: Settings) -> None:
    await make(redis, keys, policy_of())
    await append(redis, keys, 10)
    await (await opened(redis, keys, settings)).drain()
    state = unpack(await policy_store.read_state(redis, keys, "linucb") or b"")
    state["b"] = np.nextafter(state["b"].astype(np.float64), 1e9)
    await redis.set(keys.state("linucb"), pack(state))
    assert await audit_learning(redis, keys.loop) == {"linucb": False}


async def test_a_checkpoint_of_another_version_is_refused_with_what_to_do(
    redis: Redis, keys: Keys, settings: Settings
) -> None:
    await make(redis, keys, policy_of("adaptive"))
    await append(redis, keys, 30)
    await (await opened(redis, keys, settings, "adaptive")).drain()
    arrays = unpack(await policy_store.read_state(redis, keys, "adaptive") or b"")
    await redis.set(keys.state("adaptive"), pack({k: v for k, v in arrays.items() if k != "matrices"}))
    with pytest.raises(ValueError, match=r"no 'matrices'.*Make the policy again"):
        await opened(redis, keys, settings, "adaptive")


async def test_a_policy_that_is_made_late_says_what_it_could_not_read(
    redis: Redis, keys: Keys, settings: Settings
) -> None:
    await append(redis, keys, 1500)
    await event_log.trim(redis, keys, keep=1000, read_to=[])
    await make(redis, keys, policy_of())
    await (await opened(redis, keys, settings)).drain()
    record = await policy_store.read_policy(redis, keys, "linucb")
    assert (record.skipped, record.events) == (500, 1000)


async def test_an_alarm_stands_in_the_loops_stream_once(redis: Redis, keys: Keys, settings: Settings) -> None:
    await make(redis, keys, policy_of("popularity", detect_change=True))
    rewarded = [event_of(n, reward=float(n % 2)) for n in range(2000)]
    silent = [event_of(n, reward=0.0) for n in range(2000, 2200)]
    await event_log.append_imported(redis, keys, import_of(rewarded), remember=10**5)
    first = await opened(redis, keys, settings, "popularity")
    await first.drain()
    await event_log.append_imported(redis, keys, import_of(silent), remember=10**5)
    await first.drain()
    second = await opened(redis, keys, settings, "popularity")
    await append(redis, keys, 10, first=5000)
    await second.drain()

    record = await policy_store.read_policy(redis, keys, "popularity")
    (alarm,) = record.alarms
    assert alarm["number"] == 1
    assert 2000 < alarm["events"] <= 2200
    assert record.events == 2210
    told = [orjson.loads(fields[b"alarm"]) for _, fields in await redis.xrange(keys.alarms)]
    assert told == [{"policy": "popularity", **alarm}]
    assert await audit_learning(redis, keys.loop) == {"popularity": True}


# ---- dead letters


async def test_poison_is_set_aside_once_however_many_read_it(redis: Redis, keys: Keys, settings: Settings) -> None:
    await append(redis, keys, 2)
    good = fields_of(event_of(0))
    for wrong in ({b"x": b"short"}, {b"r": b"nan"}, {b"e": b"{}"}, {b"x": np.full(4, np.inf, "<f4").tobytes()}):
        await redis.xadd(keys.partition().events, {**good, **wrong})
    await append(redis, keys, 1, first=2)
    for kind in ("linucb", "popularity"):
        await make(redis, keys, policy_of(kind))
        assert await (await opened(redis, keys, settings, kind)).drain() == 7
        assert (await policy_store.read_policy(redis, keys, kind)).events == 7
    assert (await event_log.read_stats(redis, keys))["dead_letters"] == 4
    assert await redis.hlen(keys.partition().dead) == 4


# ---- the lease


async def test_only_the_holder_of_the_lease_writes(redis: Redis, keys: Keys, settings: Settings) -> None:
    await make(redis, keys, policy_of())
    await append(redis, keys, 5)
    old = await opened(redis, keys, settings)
    assert not await PolicyRunner(redis, keys, "linucb", settings).open(), "two hold one lease"
    new = await opened(redis, keys, settings)  # the lease ran out while `old` was stopped
    with pytest.raises(LeaseLost):
        await old.drain()
    record = await policy_store.read_policy(redis, keys, "linucb")
    assert (record.events, record.version) == (0, 0), "a fenced learner wrote"
    assert await new.drain() == 5


async def test_the_next_runner_takes_over_at_once_from_one_that_stops(
    redis: Redis, keys: Keys, settings: Settings
) -> None:
    await make(redis, keys, policy_of())
    await append(redis, keys, 5)
    stop = asyncio.Event()
    running = asyncio.create_task(PolicyRunner(redis, keys, "linucb", settings).run(stop, Bell(awake=True)))
    await learned(redis, keys, 5)
    stop.set()
    await asyncio.wait_for(running, 20)
    # Sooner than a lease ends by itself.
    await until_async(PolicyRunner(redis, keys, "linucb", settings).open, "the next one has the lease", within_s=2)


async def test_a_policy_that_was_made_again_is_another_one(redis: Redis, loop: LoopRecord, settings: Settings) -> None:
    """Same name, same position of zero: but what a runner learned for the old one is not written to the new one."""
    keys = Keys(loop.name, loop.id)
    await make(redis, keys, policy_of())
    await append(redis, keys, 5)
    old = await opened(redis, keys, settings)
    seen = await loop_store.read_loop(redis, loop.name)
    await policy_store.delete_policy(redis, seen, "linucb")
    await make(redis, keys, policy_of(alpha=0.1))
    assert await redis.set(keys.lease("linucb"), 1)  # as if the first holder's token came round again
    with pytest.raises(LeaseLost):
        await old.drain()
    assert (await policy_store.read_policy(redis, keys, "linucb")).version == 0


@pytest.mark.parametrize("gone", ["policy", "loop", "loop made again"])
async def test_a_runner_ends_without_a_warning_when_its_policy_is_gone(
    redis: Redis, loop: LoopRecord, settings: Settings, gone: str, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = Keys(loop.name, loop.id)
    await make(redis, keys, policy_of())
    await append(redis, keys, 1)
    running = asyncio.create_task(PolicyRunner(redis, keys, "linucb", settings).run(asyncio.Event(), Bell(awake=True)))
    await learned(redis, keys, 1)
    if gone == "policy":
        await policy_store.delete_policy(redis, await loop_store.read_loop(redis, loop.name), "linucb")
    else:
        assert await loop_store.delete_loop(redis, loop.name) == keys
        await redis.srem("rebound:loops", loop.name)
        if gone == "loop made again":
            await redis.hset(keys.record, mapping=codec.loop_fields(replace(loop, id="another")))
        await redis.delete(keys.policy("linucb"))
    # Wake it up: an entry in the log of then.
    await redis.xadd(keys.partition().events, fields_of(event_of(9)))
    await asyncio.wait_for(running, 20)
    assert capsys.readouterr().out == ""


# ---- what cannot be read or reached


async def test_what_cannot_be_opened_is_tried_less_and_less_often(
    redis: Redis, keys: Keys, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[float] = []
    stop = asyncio.Event()

    async def fail(self: PolicyRunner) -> bool:
        tried.append(asyncio.get_running_loop().time())
        if len(tried) == 5:
            stop.set()
        raise ValueError("an extra is missing")

    monkeypatch.setattr(PolicyRunner, "open", fail)
    monkeypatch.setattr(runner, "RETRY_S", 0.01)
    monkeypatch.setattr(runner, "MOST_RETRY_S", 0.04)
    monkeypatch.setattr(bell, "AWAKE_S", 60.0)
    await asyncio.wait_for(PolicyRunner(redis, keys, "linucb", settings).run(stop, Bell(awake=True)), 30)
    waits = np.diff(tried)
    assert (waits >= 0.99 * np.array([0.02, 0.04, 0.04, 0.04])).all()


async def test_redis_that_does_not_answer_is_waited_for(
    redis: Redis, keys: Keys, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    await make(redis, keys, policy_of())
    await append(redis, keys, 5)
    stop = asyncio.Event()
    real, tries = PolicyRunner.open, 0

    async def sometimes(self: PolicyRunner) -> bool:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise StoreUnavailable("away")
        return await real(self)

    monkeypatch.setattr(PolicyRunner, "open", sometimes)
    monkeypatch.setattr(runner, "RETRY_S", 0.01)
    running = asyncio.create_task(PolicyRunner(redis, keys, "linucb", settings).run(stop, Bell(awake=True)))
    await learned(redis, keys, 5)
    stop.set()
    await asyncio.wait_for(running, 20)
    assert tries == 3


async def test_a_runner_stops_before_an_entry_of_a_newer_version(
    redis: Redis, keys: Keys, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All before it is learned and published, nothing is set aside, and a newer version goes on from there."""
    await make(redis, keys, policy_of())
    await append(redis, keys, 5)
    await newer(redis, keys, monkeypatch)
    await append(redis, keys, 3, first=5)
    running = await opened(redis, keys, settings)
    assert await running.step() == 5
    with pytest.raises(NewerFormat, match="reads formats up to 2; nothing was changed: start the newer version again"):
        await running.step()
    record = await policy_store.read_policy(redis, keys, "linucb")
    assert (record.events, record.version) == (5, 1)
    assert await redis.hlen(keys.partition().dead) == 0
    monkeypatch.setattr(codec, "FORMAT", codec.FORMAT + 1)  # the newer version
    assert await (await opened(redis, keys, settings)).drain() == 4
    assert (await policy_store.read_policy(redis, keys, "linucb")).events == 9
    assert await audit_learning(redis, keys.loop) == {"linucb": True}


async def test_a_running_learner_says_so_and_goes_on_when_it_can(
    redis: Redis, keys: Keys, settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    await make(redis, keys, policy_of())
    await append(redis, keys, 5)
    await newer(redis, keys, monkeypatch)
    monkeypatch.setattr(runner, "MOST_RETRY_S", 0.01)
    monkeypatch.setattr(runner, "LEASE_MS", 50)
    stop = asyncio.Event()
    running = asyncio.create_task(PolicyRunner(redis, keys, "linucb", settings).run(stop, Bell(awake=True)))
    said = ""

    async def told() -> bool:
        nonlocal said
        said += capsys.readouterr().out
        return "is not learned any further" in said

    await until_async(told, "the log says so")
    assert "start the newer version again" in said
    assert (await policy_store.read_policy(redis, keys, "linucb")).events == 5
    monkeypatch.setattr(codec, "FORMAT", codec.FORMAT + 1)
    await learned(redis, keys, 6)
    stop.set()
    await asyncio.wait_for(running, 20)
    assert await redis.hlen(keys.partition().dead) == 0


@pytest.mark.parametrize("what", ["loop", "policy", "checkpoint"])
async def test_what_a_newer_version_wrote_is_not_taken_up(
    redis: Redis, keys: Keys, settings: Settings, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await make(redis, keys, policy_of())
    await append(redis, keys, 5)
    await (await opened(redis, keys, settings)).drain()
    if what == "loop":
        await redis.hset(keys.record, "v", codec.FORMAT + 1)
    elif what == "policy":
        await redis.hset(keys.policy("linucb"), "v", codec.FORMAT + 1)
    else:
        state = unpack(await policy_store.read_state(redis, keys, "linucb") or b"")
        with monkeypatch.context() as patch:
            patch.setattr(codec, "FORMAT", codec.FORMAT + 1)
            await redis.set(keys.state("linucb"), pack(state))
    before = await redis.dump(keys.state("linucb")), await redis.hgetall(keys.policy("linucb"))
    with pytest.raises(NewerFormat, match="start the newer version again"):
        await opened(redis, keys, settings)
    assert before == (await redis.dump(keys.state("linucb")), await redis.hgetall(keys.policy("linucb")))


async def test_a_policy_of_another_loop_of_the_same_name_is_not_opened(
    redis: Redis, loop: LoopRecord, settings: Settings
) -> None:
    with pytest.raises(NotFound):
        await PolicyRunner(redis, Keys(loop.name, "another"), "linucb", settings).open()


# ---- training


async def test_a_policy_that_retrains_does_so_at_the_same_events_in_any_batches(
    redis: Redis, keys: Keys, settings: Settings
) -> None:
    await make(redis, keys, policy_of("embedding_mlp", retrain_every=150, epochs=1))
    learner = await opened(redis, keys, settings, "embedding_mlp")
    keeper = asyncio.create_task(learner._lease.keep())  # the first training waits for PyTorch to be imported
    for first in range(0, 400, 80):
        await append(redis, keys, 80, first=first)
        await learner.drain()
    await end(keeper)
    state = await policy_store.read_state(redis, keys, "embedding_mlp")
    assert state is not None
    assert unpack(state)["rows"].tolist() == [300]
    assert await audit_learning(redis, keys.loop) == {"embedding_mlp": True}


async def test_a_training_that_fails_is_told_and_the_policy_goes_on_with_what_it_knew(
    redis: Redis, keys: Keys, settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(KINDS, "recorder", Recorder)
    record = await make(redis, keys, policy_of("recorder"))
    await append(redis, keys, 2500)
    await event_log.append_training(redis, keys, "recorder", record.id)
    bad = import_of([event_of(9999, item="impossible")])
    await event_log.append_imported(redis, keys, bad, remember=10**5)
    await event_log.append_training(redis, keys, "recorder", record.id)
    await append(redis, keys, 1, first=3000)
    running = await opened(redis, keys, settings, "recorder")
    assert await running.drain() == 2504
    said = unpack(await policy_store.read_state(redis, keys, "recorder") or b"")["said"].tobytes().decode().split("\n")
    assert [line for line in said if line.startswith("train")] == ["train on 2500"]
    assert len(said) == 2503
    assert capsys.readouterr().out.count("training failed") == 1
    assert await audit_learning(redis, keys.loop) == {"recorder": True}
