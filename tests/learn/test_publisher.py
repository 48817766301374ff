"""The publisher: when it writes, what it writes, and what it never writes."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import orjson
import pytest
from redis.asyncio import Redis

from service.learn.publisher import CHECKPOINT_S, SHARE, Publisher
from service.learn.trainer import Trainer
from service.policies import KINDS, NumericalError
from service.records import LoopRecord, PolicyRecord
from service.settings import Settings
from service.store import loop_store, policy_store
from service.store.codec import pack, unpack
from service.store.keys import CHANGES, Keys
from service.store.policy_store import Lease
from tests.builders import event_of, loop_of, policy_of

pytestmark = pytest.mark.anyio


class Clock:
    """A monotonic clock that a test sets, and one of CPU that goes on by `cpu_s` each time it is read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.cpu_s, self._cpu = 100.0, 0.0, 0.0
        clocks = SimpleNamespace(monotonic=lambda: self.now, thread_time=self._thread_time)
        monkeypatch.setattr("service.learn.publisher.time", clocks)

    def _thread_time(self) -> float:
        self._cpu += self.cpu_s
        return self._cpu


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


class SlowLease:
    """Stands in for a lease whose every write takes some time of the clock."""

    def __init__(self, clock: Clock, takes_s: float) -> None:
        self._clock, self._takes_s = clock, takes_s
        self.written: list[tuple[PolicyRecord, bool]] = []

    async def publish(self, record: PolicyRecord, *, snapshot: bytes, **rest: Any) -> bool:
        self._clock.now += self._takes_s
        self.written.append((record, bool(snapshot)))
        return True


def at_pace(clock: Clock, takes_s: float, record: PolicyRecord, settings: Settings) -> tuple[Publisher, SlowLease]:
    """Build a publisher whose writes take so long."""
    lease = SlowLease(clock, takes_s)
    return Publisher(lease, settings, record), lease  # type: ignore[arg-type]


async def held(redis: Redis, keys: Keys, record: PolicyRecord, **settings: Any) -> tuple[Publisher, Trainer]:
    """Make a policy, and hold its lease."""
    await policy_store.create_policy(redis, keys, record)
    lease = Lease(redis, keys, record.name)
    assert await lease.acquire()
    return Publisher(lease, Settings(**settings), record), Trainer.of(loop_of(), record)


# ---- the pace


async def test_with_nothing_to_write_it_waits(settings: Settings) -> None:
    publisher = Publisher(None, settings, policy_of())  # type: ignore[arg-type]
    assert publisher.due_in() == 1.0


async def test_the_first_event_is_published_at_once_and_the_next_after_the_period(
    clock: Clock, settings: Settings
) -> None:
    paced, lease = at_pace(clock, 0.001, policy_of(), Settings(publish_period_ms=200))
    trainer = Trainer.of(loop_of(), policy_of())
    trainer.apply([event_of(0)])
    paced.touch(trained=False)
    assert paced.due_in() <= 0
    await paced.publish(trainer)
    assert paced.due_in() == 1.0
    trainer.apply([event_of(1)])
    paced.touch(trained=False)
    assert paced.due_in() == pytest.approx(0.2)
    clock.now += 0.15
    assert paced.due_in() == pytest.approx(0.05)
    assert [(record.version, new) for record, new in lease.written] == [(1, True)]


@pytest.mark.parametrize(("cpu_s", "cost_s"), [(0.0, 2.0), (0.3, 2.3)], ids=["written slowly", "made slowly, too"])
async def test_what_takes_long_is_published_seldom(clock: Clock, cpu_s: float, cost_s: float) -> None:
    """At most 5 % of the learner's time goes into publishing."""
    clock.cpu_s = cpu_s
    paced, _ = at_pace(clock, 2.0, policy_of(), Settings(publish_period_ms=100))
    trainer = Trainer.of(loop_of(), policy_of())
    trainer.apply([event_of(0)])
    paced.touch(trained=False)
    await paced.publish(trainer)
    paced.touch(trained=False)
    assert paced.due_in() == pytest.approx(cost_s / SHARE)


async def test_a_policy_that_only_reads_along_is_checkpointed_once_a_second(clock: Clock) -> None:
    record = policy_of("random")
    paced, lease = at_pace(clock, 0.001, record, Settings(publish_period_ms=20))
    trainer = Trainer.of(loop_of(), record)
    for number in range(2):
        trainer.apply([event_of(number)])
        paced.touch(trained=False)
        await paced.publish(trainer)
    paced.touch(trained=False)
    assert paced.due_in() == pytest.approx(CHECKPOINT_S)
    assert [(record.version, record.events, new) for record, new in lease.written] == [(1, 1, True), (1, 2, False)]


async def test_a_batch_trained_policy_serves_once_it_has_trained_and_then_at_once(clock: Clock) -> None:
    record = policy_of("embedding_mlp", epochs=1)
    paced, lease = at_pace(clock, 0.001, record, Settings(publish_period_ms=60_000))
    trainer = Trainer.of(loop_of(), record)
    trainer.apply([event_of(number) for number in range(20)])
    paced.touch(trained=False)
    await paced.publish(trainer)
    assert [new for _, new in lease.written] == [False]
    trainer.train([[event_of(number) for number in range(20)]])
    paced.touch(trained=True)
    assert paced.due_in() <= 0, "it waits for a minute"
    await paced.publish(trainer)
    assert [(record.version, new) for record, new in lease.written] == [(0, False), (1, True)]


# ---- what it writes


async def test_state_position_and_version_are_written_together(redis: Redis, keys: Keys) -> None:
    publisher, trainer = await held(redis, keys, policy_of())
    trainer.apply([event_of(number) for number in range(3)])
    async with redis.pubsub() as channel:
        await channel.subscribe(CHANGES)
        assert await publisher.publish(trainer)
        async with asyncio.timeout(10):
            while (message := await channel.get_message(ignore_subscribe_messages=True, timeout=1)) is None:
                pass
    assert message["data"].decode() == keys.loop
    found = await policy_store.read_policy(redis, keys, "linucb")
    assert (found.version, found.events, found.position) == (1, 3, "1002-0")
    state = await policy_store.read_state(redis, keys, "linucb")
    snapshot = await policy_store.read_snapshot(redis, keys, "linucb", 1)
    assert state == pack(trainer.state())
    assert snapshot == pack(trainer.policy.snapshot())
    assert found.bytes == len(state or b"") + len(snapshot or b"")
    assert found.kept == len(snapshot or b"")
    assert await policy_store.version_position(redis, keys, "linucb", 1) == "1002-0"


async def test_no_version_is_made_of_what_is_served_already(redis: Redis, keys: Keys) -> None:
    record = policy_of("random")
    publisher, trainer = await held(redis, keys, record)
    for number in range(2):
        trainer.apply([event_of(number)])
        assert await publisher.publish(trainer)
    found = await policy_store.read_policy(redis, keys, "random")
    assert (found.version, found.events) == (1, 2)
    again = Publisher(Lease(redis, keys, "random"), Settings(), found)
    again.resume(trainer)
    again._lease.token = 1
    trainer.apply([event_of(2)])
    assert await again.publish(trainer)
    found = await policy_store.read_policy(redis, keys, "random")
    assert (found.version, found.events) == (1, 3), "a restart made a version"


async def test_alarms_go_into_the_stream_once_and_the_newest_into_the_record(redis: Redis, keys: Keys) -> None:
    publisher, trainer = await held(redis, keys, policy_of())
    for number in (1, 2):
        trainer.alarms.append({"number": number, "reaction": "reset"})
        trainer.apply([event_of(number)])
        assert await publisher.publish(trainer)
    told = [orjson.loads(fields[b"alarm"])["number"] for _, fields in await redis.xrange(keys.alarms)]
    assert told == [1, 2]
    assert [alarm["number"] for alarm in (await policy_store.read_policy(redis, keys, "linucb")).alarms] == [1, 2]


async def test_a_lease_that_was_lost_writes_nothing(redis: Redis, keys: Keys) -> None:
    publisher, trainer = await held(redis, keys, policy_of())
    trainer.apply([event_of(0)])
    await redis.set(keys.lease("linucb"), 99)
    assert not await publisher.publish(trainer)
    assert (await policy_store.read_policy(redis, keys, "linucb")).version == 0
    assert await policy_store.read_state(redis, keys, "linucb") is None
    await redis.set(keys.lease("linucb"), 1)
    assert not await publisher.publish(trainer), "a lost lease came back"


async def test_after_the_loop_was_made_again_nothing_is_written(redis: Redis, loop: LoopRecord) -> None:
    keys = Keys(loop.name, loop.id)
    publisher, trainer = await held(redis, keys, policy_of())
    await redis.hset(keys.record, "id", "another")
    assert not await publisher.publish(trainer)
    assert await policy_store.read_state(redis, keys, "linucb") is None


# ---- the budget


@pytest.mark.parametrize(("budget", "kept"), [(0, [5]), (1, [5]), (2, [4, 5]), (4, [2, 3, 4, 5])])
async def test_the_oldest_versions_go_when_their_bytes_outgrow_the_budget(
    redis: Redis, keys: Keys, budget: int, kept: list[int]
) -> None:
    """`budget` is given in snapshots, which all have the same size here."""
    publisher, trainer = await held(redis, keys, policy_of("linucb"))
    trainer.apply([event_of(0), event_of(1), event_of(2)])
    size = len(pack(trainer.policy.snapshot()))
    await publish(publisher, trainer, budget * size, 5)
    assert await policy_store.kept_versions(redis, keys, "linucb") == kept
    assert sorted(int(version) for version in await redis.hkeys(keys.snapshots("linucb"))) == kept
    assert (await policy_store.read_policy(redis, keys, "linucb")).kept == len(kept) * size
    for version in range(1, 6):
        assert await policy_store.version_position(redis, keys, "linucb", version), "it cannot be made again"


async def test_a_pinned_version_stays(redis: Redis, loop: LoopRecord) -> None:
    keys = Keys(loop.name, loop.id)
    publisher, trainer = await held(redis, keys, policy_of())
    await publish(publisher, trainer, 0, 1)
    epoch = await policy_store.pin_version(redis, await loop_store.read_loop(redis, loop.name), "linucb", 1)
    await publish(publisher, trainer, 0, 4, first=1)
    assert await policy_store.kept_versions(redis, keys, "linucb") == [1, 5]
    seen = replace(await loop_store.read_loop(redis, loop.name), epoch=epoch)
    await loop_store.change_loop(redis, seen, {"pins": "{}"})
    await publish(publisher, trainer, 0, 1, first=5)
    assert await policy_store.kept_versions(redis, keys, "linucb") == [6]


async def publish(publisher: Publisher, trainer: Trainer, budget: int, versions: int, *, first: int = 0) -> None:
    """Make so many versions, with a budget in bytes."""
    real = publisher._lease.publish

    async def with_budget(record: PolicyRecord, **rest: Any) -> bool:
        return await real(record, **{**rest, "budget": budget})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(publisher._lease, "publish", with_budget)
        for number in range(first, first + versions):
            trainer.apply([event_of(number, item="p0", position=f"{5000 + number}-0")])
            assert await publisher.publish(trainer)


async def test_the_budget_is_the_settings(redis: Redis, keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    publisher, trainer = await held(redis, keys, policy_of(), snapshot_budget_mb=3)
    given: list[int] = []

    async def note(record: PolicyRecord, *, budget: int, **rest: Any) -> bool:
        given.append(budget)
        return True

    monkeypatch.setattr(publisher._lease, "publish", note)
    await publisher.publish(trainer)
    assert given == [3 * 2**20]


# ---- what is never written


@pytest.mark.parametrize("how", ["refused by its scorer", "not to be computed"])
async def test_a_snapshot_that_cannot_serve_is_never_published(
    redis: Redis, keys: Keys, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    publisher, trainer = await held(redis, keys, policy_of())
    trainer.apply([event_of(0)])
    assert await publisher.publish(trainer)
    trainer.apply([event_of(1)])
    with monkeypatch.context() as patch:
        if how == "refused by its scorer":
            good = trainer.policy.snapshot()
            broken: Mapping[str, Any] = {
                name: np.full_like(array, np.nan) for name, array in good.items() if array.dtype.kind == "f"
            }
            patch.setattr(trainer.policy, "snapshot", lambda: {**good, **broken})
            expected: type[Exception] = ValueError
        else:

            def fail() -> None:
                raise NumericalError("no finite solution")

            patch.setattr(trainer.policy, "snapshot", fail)
            expected = NumericalError
        with pytest.raises(expected):
            await publisher.publish(trainer)
        found = await policy_store.read_policy(redis, keys, "linucb")
        assert (found.version, found.events) == (1, 1), "half of it was written"
    assert await publisher.publish(trainer)
    snapshot = await policy_store.read_snapshot(redis, keys, "linucb", 2)
    KINDS["linucb"].scorer(unpack(snapshot or b""), d=4, params=trainer.policy.params)
