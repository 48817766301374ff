"""The log in Redis: imports in their order, nothing unread dropped, every bound kept."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from redis.asyncio import Redis

from service.errors import StoreUnavailable
from service.learn.trainer import Trainer
from service.records import START, Entry, Event, Training, Unreadable
from service.store import codec, event_log
from service.store.codec import NewerFormat
from service.store.connection import connect
from service.store.keys import Keys
from tests.builders import decision_of, event_of, fields_of, import_of, loop_of, policy_of, store_decisions

pytestmark = pytest.mark.anyio


async def put(redis: Redis, keys: Keys, *events: Event, remember: int = 10_000) -> int | None:
    """Import events."""
    return await event_log.append_imported(redis, keys, import_of(events), remember=remember)


async def ids(redis: Redis, keys: Keys) -> list[str]:
    """Return the ids of the log's events, in order."""
    found = [part async for part in event_log.scan(redis, keys, batch=7)]
    return [entry.decision_id for part in found for entry in part if isinstance(entry, Event)]


# ---- reading


async def test_the_log_is_read_in_order_whatever_the_batches(redis: Redis, keys: Keys) -> None:
    await put(redis, keys, *(event_of(n) for n in range(30)))
    assert await ids(redis, keys) == [f"d{n}" for n in range(30)]
    first = await event_log.read(redis, keys, START, most=10)
    rest = await event_log.read(redis, keys, first[-1].position)
    assert [len(first), len(rest)] == [10, 20]
    upto = await event_log.read(redis, keys, START, until=first[-1].position)
    assert [entry.position for entry in upto] == [entry.position for entry in first]
    assert await event_log.read(redis, keys, rest[-1].position) == []


async def test_a_first_entry_is_waited_for(redis: Redis, keys: Keys) -> None:
    assert await event_log.wait(redis, keys, START, within_ms=1) == []
    waiting = asyncio.create_task(event_log.wait(redis, keys, START, within_ms=20_000))
    await put(redis, keys, event_of(0))
    found = await asyncio.wait_for(waiting, 20)
    assert [type(entry) for entry in found] == [Event]


@pytest.mark.parametrize("protocol", [2, 3])
async def test_both_protocols_of_redis_are_understood(redis_url: str, redis: Redis, keys: Keys, protocol: int) -> None:
    await put(redis, keys, event_of(0))
    other = Redis.from_url(redis_url, protocol=protocol)
    [entry] = await event_log.wait(other, keys, START, within_ms=1)
    assert isinstance(entry, Event)
    await other.aclose()


async def test_what_a_newer_version_wrote_is_reached_and_not_passed(
    redis: Redis, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    await put(redis, keys, event_of(0), event_of(1))
    with monkeypatch.context() as patch:
        patch.setattr(codec, "FORMAT", codec.FORMAT + 1)
        await put(redis, keys, event_of(2))
    await put(redis, keys, event_of(3))
    before = await event_log.read(redis, keys, START)
    assert len(before) == 2
    with pytest.raises(NewerFormat):
        await event_log.read(redis, keys, before[-1].position)
    with pytest.raises(NewerFormat):
        await event_log.wait(redis, keys, before[-1].position, within_ms=1)
    with pytest.raises(NewerFormat):
        await ids(redis, keys)


async def test_the_newest_decisions_come_first_and_garbled_entries_are_passed_over(redis: Redis, keys: Keys) -> None:
    await put(redis, keys, *(event_of(n) for n in range(3)))
    for garbled in ({"e": "{"}, {"e": "[]"}, {"e": "{}"}, {"c": "{}"}, {"x": "?"}):
        await redis.xadd(keys.partition().events, garbled)
    await put(redis, keys, event_of(3))
    assert [found async for found in event_log.newest_decisions(redis, keys)] == ["d3", "d2", "d1", "d0"]


async def test_a_redis_that_is_not_there_is_unavailable(keys: Keys) -> None:
    nowhere = connect("redis://127.0.0.1:1", name="test", timeout_s=1)
    for call in (
        event_log.read(nowhere, keys, START),
        event_log.read_stats(nowhere, keys),
        event_log.append_training(nowhere, keys, "p", "id"),
        event_log.trim(nowhere, keys, keep=1, read_to=[]),
        put(nowhere, keys, event_of(0)),
    ):
        with pytest.raises(StoreUnavailable):
            await call
    await nowhere.aclose()


# ---- trainings


async def test_a_request_to_train_stands_at_its_place(redis: Redis, keys: Keys) -> None:
    await put(redis, keys, event_of(0))
    position = await event_log.append_training(redis, keys, "p", "id")
    await put(redis, keys, event_of(1))
    entries = await event_log.read(redis, keys, START)
    assert entries[1] == Training(position, "p", "id")
    assert (await event_log.read_stats(redis, keys))["events"] == 2, "it counts as an event"


# ---- imports


async def test_an_import_that_came_before_changes_nothing(redis: Redis, keys: Keys) -> None:
    assert await put(redis, keys, event_of(0), event_of(1)) == 2
    assert await put(redis, keys, event_of(1), event_of(2)) == 1
    assert await put(redis, keys, event_of(0), event_of(1)) == 0
    assert await put(redis, keys, event_of(3), event_of(3, reward=0.0)) == 1, "an id that stands twice in one import"
    assert await ids(redis, keys) == ["d0", "d1", "d2", "d3"]
    stats = await event_log.read_stats(redis, keys)
    assert (stats["events"], stats["imported"]) == (4, 4)
    assert (await event_log.read(redis, keys, START))[3].reward == 1.0  # type: ignore[union-attr]


async def test_imports_with_times_are_learned_in_their_order_or_refused(redis: Redis, keys: Keys) -> None:
    assert await put(redis, keys, event_of(0, at=100.0), event_of(1, at=200.0)) == 2
    assert await put(redis, keys, event_of(2, at=200.0)) == 1, "the same moment is in order"
    assert await put(redis, keys, event_of(3, at=300.0), event_of(4, at=199.999)) is None
    assert await ids(redis, keys) == ["d0", "d1", "d2"], "half of a refused import was appended"
    assert await put(redis, keys, event_of(0, at=100.0), event_of(5, at=300.0)) == 1, "a repeat was taken for disorder"
    assert await put(redis, keys, event_of(6)) == 1, "without a time it is as old as its entry"
    assert await put(redis, keys, event_of(7, at=250.0)) is None
    times = [entry.at for entry in await event_log.read(redis, keys, START) if isinstance(entry, Event)]
    assert times == [100.0, 200.0, 200.0, 300.0, None]


async def test_times_before_1970_and_far_ahead_are_kept_to_the_millisecond(redis: Redis, keys: Keys) -> None:
    times = [-62_135_596_800.0, -0.001, 0.0, 1_700_000_000.123, 253_402_300_799.999]
    assert await put(redis, keys, *(event_of(n, at=at) for n, at in enumerate(times))) == len(times)
    found = [entry.at for entry in await event_log.read(redis, keys, START) if isinstance(entry, Event)]
    assert found == times
    assert await put(redis, keys, event_of(9, at=times[-1] - 0.001)) is None


async def test_the_ids_that_are_remembered_are_bounded_and_the_newest_stay(redis: Redis, keys: Keys) -> None:
    for first in range(0, 50, 10):
        await put(redis, keys, *(event_of(n) for n in range(first, first + 10)), remember=15)
    assert await redis.zcard(keys.partition().imported) == 15
    assert await put(redis, keys, event_of(35), event_of(49), remember=15) == 0
    assert await put(redis, keys, event_of(34), remember=15) == 1, "it is known for ever"
    assert await put(redis, keys, event_of(34), remember=15) == 0


async def test_half_lives_in_seconds_go_by_the_times_of_an_import(redis: Redis, keys: Keys) -> None:
    """Half a year of history that is imported in a second fades as if it had been learned when it happened."""
    day = 86_400.0
    wins = [event_of(n, item="p0", reward=1.0, at=n * day) for n in range(160)]
    losses = [event_of(160 + n, item="p0", reward=0.0, at=(160 + n) * day) for n in range(160)]
    await put(redis, keys, *wins, *losses)
    entries = await event_log.read(redis, keys, START)
    fading = Trainer.of(loop_of(), policy_of("popularity", half_life_s=20 * day))
    lasting = Trainer.of(loop_of(), policy_of("popularity"))
    rates = []
    for trainer in (fading, lasting):
        trainer.apply(entries)
        scorer = type(trainer.policy).scorer(trainer.policy.snapshot(), d=4, params=trainer.policy.params)
        rates.append(scorer.summary()["items"]["p0"]["discounted_rate"])
    assert rates[0] < 0.05
    assert rates[1] == pytest.approx(0.5, abs=0.05)


# ---- the bound of the log


async def garbled(redis: Redis, keys: Keys) -> Unreadable:
    """Append an entry that cannot be read, and set it aside as a learner does."""
    position = await redis.xadd(keys.partition().events, {**fields_of(event_of(0)), b"e": b"{"})
    await redis.hincrby(keys.partition().stats, "events", 1)
    letter = Unreadable(position.decode(), "garbled")
    await event_log.set_aside(redis, keys, [letter])
    return letter


async def test_the_oldest_go_but_none_that_a_policy_has_still_to_read(redis: Redis, keys: Keys) -> None:
    await put(redis, keys, *(event_of(n) for n in range(120)))
    positions = [entry.position for entry in await event_log.read(redis, keys, START)]
    await event_log.trim(redis, keys, keep=100, read_to=[positions[-1], START])
    assert len(await ids(redis, keys)) == 120
    await event_log.trim(redis, keys, keep=100, read_to=[positions[-1], positions[4]])
    assert (await ids(redis, keys))[0] == "d4", "the entry at a policy's position stays"
    await event_log.trim(redis, keys, keep=100, read_to=[positions[-1]])
    assert await ids(redis, keys) == [f"d{n}" for n in range(20, 120)]
    assert (await event_log.read_stats(redis, keys))["trimmed"] == 20


async def test_far_too_many_go_in_several_passes(redis: Redis, keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_log, "TRIMMED_AT_ONCE", 30)
    await put(redis, keys, *(event_of(n) for n in range(100)))
    lengths = []
    for _ in range(5):
        await event_log.trim(redis, keys, keep=10, read_to=[])
        lengths.append(await redis.xlen(keys.partition().events))
    assert lengths == [70, 40, 10, 10, 10]
    assert (await event_log.read_stats(redis, keys))["trimmed"] == 90


async def test_a_few_too_many_are_not_worth_a_pass(redis: Redis, keys: Keys) -> None:
    await put(redis, keys, *(event_of(n) for n in range(1010)))
    await event_log.trim(redis, keys, keep=1000, read_to=[])
    assert len(await ids(redis, keys)) == 1010
    await put(redis, keys, event_of(1010))
    await event_log.trim(redis, keys, keep=1000, read_to=[])
    assert len(await ids(redis, keys)) == 1000


async def test_requests_to_train_are_not_counted_as_events_that_went(redis: Redis, keys: Keys) -> None:
    for number in range(10):
        await put(redis, keys, event_of(number))
        await event_log.append_training(redis, keys, "p", "id")
    await event_log.trim(redis, keys, keep=10, read_to=[])
    assert (await event_log.read_stats(redis, keys))["trimmed"] == 5


async def test_sweepers_that_trim_at_once_count_what_went_once(redis: Redis, keys: Keys) -> None:
    await put(redis, keys, *(event_of(n) for n in range(300)))
    await asyncio.gather(*(redis.ping() for _ in range(8)))  # connections for all of them
    await asyncio.gather(*(event_log.trim(redis, keys, keep=100, read_to=[]) for _ in range(8)))
    assert len(await ids(redis, keys)) == 100
    assert (await event_log.read_stats(redis, keys))["trimmed"] == 200


async def test_a_dead_letter_is_kept_for_as_long_as_its_entry(redis: Redis, keys: Keys) -> None:
    first = await garbled(redis, keys)
    await put(redis, keys, *(event_of(n) for n in range(50)))
    second = await garbled(redis, keys)
    await put(redis, keys, *(event_of(n) for n in range(50, 100)))
    dead = keys.partition().dead
    assert {key.decode() for key in await redis.hkeys(dead)} == {first.position, second.position}
    await event_log.trim(redis, keys, keep=60, read_to=[])
    assert {key.decode() for key in await redis.hkeys(dead)} == {second.position}
    await event_log.trim(redis, keys, keep=10, read_to=[])
    assert await redis.hlen(dead) == 0
    stats = await event_log.read_stats(redis, keys)
    assert stats["dead_letters"] == 2, "the count is since the loop was made"
    assert stats["events"] - stats["trimmed"] == await redis.xlen(keys.partition().events) == 10


async def test_an_entry_is_set_aside_once_however_many_meet_it(redis: Redis, keys: Keys) -> None:
    letter = await garbled(redis, keys)
    await asyncio.gather(*(event_log.set_aside(redis, keys, [letter]) for _ in range(5)))
    assert (await event_log.read_stats(redis, keys))["dead_letters"] == 1


# ---- counters


async def test_counters_begin_at_nothing_and_pending_is_what_waits(redis: Redis, keys: Keys) -> None:
    assert await event_log.read_stats(redis, keys) == {"pending": 0, "early_waiting": 0}
    await store_decisions(redis, keys, decision_of("d", "ab"))
    assert await event_log.read_stats(redis, keys) == {"pending": 1, "early_waiting": 0, "decisions": 1, "places": 2}


async def test_misfits_add_up(redis: Redis, keys: Keys) -> None:
    await event_log.count_misfits(redis, keys, {"item/price/wrong_type": 2})
    await event_log.count_misfits(redis, keys, {"item/price/wrong_type": 1, "context/hour/out_of_range": 5})
    assert await event_log.read_misfits(redis, keys) == {"item/price/wrong_type": 3, "context/hour/out_of_range": 5}


async def test_rows_come_back_as_they_were(redis: Redis, keys: Keys) -> None:
    row = np.array([0.1, -0.0, 1e-40, 3.4e38], np.float32)
    await put(redis, keys, event_of(0, x=row))
    found: list[Entry] = await event_log.read(redis, keys, START)
    assert isinstance(found[0], Event)
    assert found[0].x.tobytes() == row.tobytes()
