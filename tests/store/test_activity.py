"""Activity as Redis keeps it equals a plain list with a set of ids, whatever comes twice, late or too much."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
from redis.asyncio import Redis

from service.records import LoggedActivity, LoopRecord, order
from service.store import activity_log, event_log
from service.store.activity import (
    IDS_KEPT,
    Sent,
    activity_of,
    bytes_at_most,
    count_users,
    count_waiting,
    take_activity,
    take_all_rewarded,
    take_rewarded,
)
from service.store.activity_log import erase_of, scan_log, size_of
from service.store.connection import script
from service.store.decisions import join_feedback
from service.store.graph_store import read_user
from service.store.group_commit import GroupCommit
from service.store.keys import Keys
from service.store.loop_rows import read_rows, write_rows
from tests.builders import decision_of, store_decisions

pytestmark = pytest.mark.anyio
START = 1_700_000_000_000


def of_settings(loop: LoopRecord, **changes: object) -> LoopRecord:
    return replace(loop, settings=loop.settings.model_copy(update=changes))


async def test_a_random_stream_is_kept_as_a_list_would_keep_it(redis: Redis, loop: LoopRecord, keys: Keys) -> None:
    draws = random.Random(1)
    settings = of_settings(loop, activity_kept=7).settings
    commit = GroupCommit(redis)
    kept: dict[str, list[tuple[int, int, str, str]]] = {"u1": [], "u2": []}
    seen: dict[str, set[str]] = {"u1": set(), "u2": set()}
    numbers = {"u1": 0, "u2": 0}
    for _ in range(20):
        batch: dict[str, list[Sent]] = {}
        expected: dict[str, list[str]] = {}
        for _ in range(draws.randrange(1, 6)):
            user = draws.choice(["u1", "u2"])
            name = draws.choice([None, *(f"a{i}" for i in range(40))])
            sent = Sent(user, f"i{draws.randrange(9)}", "view", START + draws.randrange(10**6), name)
            batch.setdefault(user, []).append(sent)
            again = name is not None and name in seen[user]
            expected.setdefault(user, []).append("duplicate" if again else "accepted")
            if not again:
                seen[user] |= {name} if name else set()
                numbers[user] += 1
                kept[user] = [*kept[user], (numbers[user], sent.at or 0, sent.item, "view")][-7:]
        assert await take_activity(commit, keys, settings, batch) == expected
    assert kept == await activity_of(redis, keys, ["u1", "u2"])
    [end] = await redis.xrevrange(keys.partition().activity_log, count=1)
    assert await read_user(commit, keys, "u1") == (kept["u1"], end[0].decode(), {})
    assert max(numbers.values()) > 7
    stats = await redis.hgetall(keys.partition().stats)
    assert int(stats[b"activity"]) == sum(numbers.values())
    assert int(stats[b"activity_duplicate"]) > 0
    # The log holds all that was accepted, in this order, and what is kept of a user is its end.
    logged = [one async for batch in scan_log(redis, keys) for one in batch]
    assert len(logged) == int(stats[b"activity_logged"]) == sum(numbers.values())
    assert [order(one.position) for one in logged] == sorted(order(one.position) for one in logged)
    for user, his in kept.items():
        of_log = [(one.number, one.at, one.item, one.type) for one in logged if one.user == user]
        assert [number for number, *_ in of_log] == list(range(1, numbers[user] + 1))
        assert of_log[-7:] == his


async def test_memory_is_bounded_and_what_is_kept_has_an_end(redis: Redis, loop: LoopRecord, keys: Keys) -> None:
    settings = of_settings(loop, activity_kept=3, activity_time=60.0).settings
    commit, part = GroupCommit(redis), keys.partition()
    long = [Sent("u", "\x01" * 128, "w" * 32, None, f"{i}") for i in range(IDS_KEPT + 200)]
    await take_activity(commit, keys, settings, {"u": long})
    assert await redis.strlen(part.activity_ids("u")) == 8 * IDS_KEPT
    entries = await redis.lrange(part.activity("u"), 0, -1)
    assert [int(entry.split()[0]) for entry in entries] == [IDS_KEPT + i for i in (198, 199, 200)]
    assert sum(map(len, entries)) + 8 * IDS_KEPT <= bytes_at_most(settings)
    assert 0 < await redis.pttl(part.activity("u")) <= 60_000
    assert 0 < await redis.pttl(part.activity_ids("u")) <= 60_000
    assert await count_users(redis, keys) == 1
    answers = await take_activity(commit, keys, settings, {"u": long[-1000:]})
    assert set(answers["u"]) == {"duplicate"}


async def test_a_time_to_come_counts_as_now(redis: Redis, loop: LoopRecord, keys: Keys) -> None:
    commit = GroupCommit(redis)
    await take_activity(commit, keys, loop.settings, {"u": [Sent("u", "i", "view", 10**14), Sent("u", "i", "view")]})
    [(_, first, *_), (_, second, *_)], _, _ = await read_user(commit, keys, "u")
    assert START < first == second < 10**14


async def test_a_backup_holds_it(redis: Redis, loop: LoopRecord, keys: Keys) -> None:
    commit, other = GroupCommit(redis), Keys(loop.name, loop.id + "-restored")
    sent = [Sent("u é", "i", "view", START, "a")]
    await take_activity(commit, keys, loop.settings, {"u é": sent})
    await write_rows(redis, other, [row async for row in read_rows(redis, keys)], later_ms=0)
    kept, end, _ = await read_user(commit, other, "u é")
    assert kept == [(1, START, "i", "view")]
    assert [one async for batch in scan_log(redis, other) for one in batch] == [
        LoggedActivity(end, "u é", 1, START, "i", "view", loop.settings.activity_ms)
    ]
    assert await count_users(redis, other) == 1
    assert await take_activity(commit, other, loop.settings, {"u é": sent}) == {"u é": ["duplicate"]}
    for key in [key async for key in redis.scan_iter(match=other.partition().prefix + "*")]:
        await redis.delete(key)


async def test_the_log_is_bounded_by_the_retention_and_what_goes_is_counted(
    redis: Redis, loop: LoopRecord, keys: Keys
) -> None:
    settings = of_settings(loop, retention=1000).settings
    commit = GroupCommit(redis)
    for number in range(6):
        many = {f"u{number}-{i}": [Sent(f"u{number}-{i}", f"item-{i}", "view")] * 50 for i in range(10)}
        await take_activity(commit, keys, settings, many)
    stats = await event_log.read_stats(redis, keys)
    held, taken = await size_of(redis, keys)
    assert 1000 <= held < 1200  # Redis drops whole nodes of a stream
    assert stats["activity"] == stats["activity_logged"] == 3000 == held + stats["activity_trimmed"]
    assert 0 < taken < 300 * held


async def test_a_user_is_erased_from_the_log_while_it_grows_and_is_trimmed(
    redis: Redis, loop: LoopRecord, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each that is gone counts once: as trimmed, or as erased."""
    monkeypatch.setattr(activity_log, "AT_ONCE", 40)
    settings = of_settings(loop, retention=1000).settings
    commit = GroupCommit(redis)
    users = {user: [Sent(user, "p1", "view")] * 50 for user in ("his", "other")}
    for _ in range(10):
        await take_activity(commit, keys, settings, users)
    batches = 0

    def meanwhile(name: str) -> Any:
        async def call(*args: Any) -> Any:
            nonlocal batches
            answer = await script(name)(*args)
            batches += 1
            if batches in (3, 6):
                await take_activity(commit, keys, settings, {"other": [Sent("other", "p2", "buy")] * 150})
            return answer

        return call

    monkeypatch.setattr(activity_log, "script", meanwhile)
    assert await erase_of(redis, keys, "his", counted="e/activity") is True
    stats = await event_log.read_stats(redis, keys)
    left = [one async for batch in scan_log(redis, keys) for one in batch]
    assert {one.user for one in left} == {"other"}
    assert stats["activity_logged"] == len(left) + stats["activity_trimmed"] + stats["activity_erased"] == 1300
    assert min(stats["activity_trimmed"], stats["activity_erased"]) > 0
    assert int(await redis.hget(keys.partition().erasure, "e/activity")) == stats["activity_erased"]
    await take_activity(commit, keys, settings, {"new": [Sent("new", "p1", "view")]})
    assert [one.user async for batch in scan_log(redis, keys) for one in batch][-1] == "new"

    # Of a log in which there is nobody else, nothing but its end is left.
    await erase_of(redis, keys, "other", counted="e/activity")
    await erase_of(redis, keys, "new", counted="e/activity")
    assert [one async for batch in scan_log(redis, keys) for one in batch] == []
    assert (await size_of(redis, keys))[0] == 0
    await take_activity(commit, keys, settings, {"new": [Sent("new", "p1", "view")]})
    [last] = [one async for batch in scan_log(redis, keys) for one in batch]
    assert order(last.position) > order(left[-1].position)


async def test_rewards_wait_for_their_turn_in_bounded_room(redis: Redis, loop: LoopRecord, keys: Keys) -> None:
    """4 kB a user and 10 000 users; what finds no room is counted, and what waited is taken up once."""
    settings = of_settings(loop, reward_activity=True).settings
    commit, part = GroupCommit(redis), keys.partition()
    await store_decisions(redis, keys, *(decision_of(f"d{n}", "i", user_id=f"u{n}") for n in range(3)))

    async def report(decision: str, reward: float = 1.0) -> str:
        return await join_feedback(
            commit, keys, settings, decision_id=decision, item="", reward=reward, feedback_id="", early_ms=0
        )

    waits = '1 ["x","reward"]\n'
    await redis.hset(part.rewarded, "u0", waits * 300)
    await redis.hset(part.rewarded, mapping={f"other{n}": waits for n in range(9_999)})
    assert [await report("d0"), await report("d1")] == ["accepted", "accepted"]
    assert (await event_log.read_stats(redis, keys))["activity_dropped"] == 2
    assert [await take_rewarded(commit, keys, settings, "other0") for _ in range(2)] == [1, 0]
    assert await report("d2") == "accepted"
    assert await count_waiting(redis, keys) == 10_000
    assert await take_rewarded(commit, keys, settings, "u2") == 1
    [(number, at, item, kind)], _, _ = await read_user(commit, keys, "u2")
    assert (number, item, kind) == (1, "i", "reward")
    assert at > START
    await redis.hdel(part.rewarded, *(f"other{n}" for n in range(9, 9_999)))  # fewer keys for the tests to delete
    assert await take_all_rewarded(redis, commit, keys, settings) == 300 + 8
    stats = await event_log.read_stats(redis, keys)
    assert stats["activity"] == stats["activity_logged"] == 300 + 8 + 2
    assert (await count_waiting(redis, keys), stats["activity_dropped"]) == (0, 2)
