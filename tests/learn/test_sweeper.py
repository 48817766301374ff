"""The sweeper on a real Redis: defaults at the deadline, and a log of bounded length."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from redis.asyncio import Redis

from service.errors import NotFound, StoreUnavailable
from service.learn.bell import Bell
from service.learn.runner import PolicyRunner
from service.learn.sweeper import Sweeper
from service.records import START, Event, LoopRecord
from service.settings import Settings
from service.store import codec, event_log, loop_store, policy_store
from service.store.keys import Keys
from tests.builders import decision_of, event_of, import_of, policy_of, store_decisions

pytestmark = pytest.mark.anyio


async def append(redis: Redis, keys: Keys, n: int, *, first: int = 0) -> None:
    rows = import_of([event_of(number) for number in range(first, first + n)])
    await event_log.append_imported(redis, keys, rows, remember=10**5)


async def settled(redis: Redis, keys: Keys, n: int) -> list[Event]:
    """Sweep until n events were appended, and return them."""
    sweeper, appended = Sweeper(redis, keys), 0
    async with asyncio.timeout(20):
        while appended < n:
            appended += await sweeper.step()
    events = await event_log.read(redis, keys, START)
    assert len(events) == n
    return [event for event in events if isinstance(event, Event)]


async def test_a_decision_nobody_reported_on_gets_the_default_reward(redis: Redis, loop: LoopRecord) -> None:
    keys = Keys(loop.name, loop.id)
    changed = loop.settings.model_copy(update={"default_reward": 0.25})
    await loop_store.change_loop(redis, loop, {"settings": changed.model_dump_json()})
    await store_decisions(redis, keys, decision_of("d", "ab"), wait_ms=1)
    events = await settled(redis, keys, 2)
    assert [(event.item, event.reward, event.source) for event in events] == [
        ("a", 0.25, "default"),
        ("b", 0.25, "default"),
    ]
    assert await Sweeper(redis, keys).step() == 0
    stats = await event_log.read_stats(redis, keys)
    assert (stats["events"], stats["defaulted"], stats["pending"]) == (2, 2, 0)


async def test_more_decisions_than_one_pass_takes_are_settled_in_one_step(redis: Redis, keys: Keys) -> None:
    decisions = [decision_of(f"d{number}") for number in range(1203)]
    await store_decisions(redis, keys, *decisions, wait_ms=1)
    events = await event_log.read_stats(redis, keys)
    assert events["pending"] == 1203
    async with asyncio.timeout(20):
        while (await event_log.read_stats(redis, keys))["pending"]:
            await Sweeper(redis, keys).step()
    assert (await event_log.read_stats(redis, keys))["events"] == 1203


async def test_two_sweepers_settle_a_decision_once(redis: Redis, keys: Keys) -> None:
    await store_decisions(redis, keys, *(decision_of(f"d{number}") for number in range(200)), wait_ms=1)
    appended = 0
    async with asyncio.timeout(20):
        while appended < 200:
            appended += sum(await asyncio.gather(Sweeper(redis, keys).step(), Sweeper(redis, keys).step()))
    events = await event_log.read(redis, keys, START)
    assert len({event.decision_id for event in events if isinstance(event, Event)}) == len(events) == 200


async def test_the_log_keeps_to_its_length_but_nothing_unread_goes(
    redis: Redis, keys: Keys, settings: Settings
) -> None:
    await policy_store.create_policy(redis, keys, policy_of())
    await append(redis, keys, 1500)
    sweeper = Sweeper(redis, keys)
    await sweeper.step()
    assert await redis.xlen(keys.partition().events) == 1500, "unread events were dropped"
    learner = PolicyRunner(redis, keys, "linucb", settings)
    assert await learner.open()
    await learner.drain()
    await sweeper.step()
    assert await redis.xlen(keys.partition().events) == 1000
    assert (await event_log.read_stats(redis, keys))["trimmed"] == 500


async def test_a_policy_of_a_newer_version_keeps_what_it_has_still_to_read(redis: Redis, keys: Keys) -> None:
    """Nobody here can say how far it has read, so nothing goes; decisions are settled all the same."""
    await policy_store.create_policy(redis, keys, policy_of())
    await redis.hset(keys.policy("linucb"), "v", codec.FORMAT + 1)
    await append(redis, keys, 1500)
    await store_decisions(redis, keys, decision_of("d"), wait_ms=1)
    async with asyncio.timeout(20):
        while (await event_log.read_stats(redis, keys))["pending"]:
            with pytest.raises(codec.NewerFormat):
                await Sweeper(redis, keys).step()
    assert await redis.xlen(keys.partition().events) == 1501


async def test_a_loop_that_was_made_again_is_not_swept_by_the_old_ones_sweeper(redis: Redis, loop: LoopRecord) -> None:
    keys = Keys(loop.name, loop.id)
    await redis.hset(keys.record, mapping=codec.loop_fields(replace(loop, id="another")))
    with pytest.raises(NotFound):
        await Sweeper(redis, keys).step()
    await asyncio.wait_for(Sweeper(redis, keys).run(asyncio.Event(), Bell(awake=True)), 20)


async def test_a_sweep_that_fails_is_told_once_and_tried_again(
    redis: Redis, keys: Keys, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stop, steps, sweeper = asyncio.Event(), 0, Sweeper(redis, keys)
    faults = [RuntimeError("poison"), RuntimeError("poison"), StoreUnavailable("away"), None, RuntimeError("poison")]

    async def step() -> int:
        nonlocal steps
        steps += 1
        if steps == len(faults):
            stop.set()
        if (fault := faults[steps - 1]) is not None:
            raise fault
        return 0

    monkeypatch.setattr(sweeper, "step", step)
    await asyncio.wait_for(sweeper.run(stop, Bell(awake=True), every_s=0.001), 20)
    assert steps == len(faults)
    said = [line for line in capsys.readouterr().out.splitlines() if keys.loop in line]
    assert sum("sweep failed" in line for line in said) == 2  # it had worked in between
