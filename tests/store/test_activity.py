"""Activity as Redis keeps it equals a plain list with a set of ids, whatever comes twice, late or too much."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from redis.asyncio import Redis

from service.records import LoopRecord
from service.store.activity import IDS_KEPT, Sent, activity_of, bytes_at_most, count_users, take_activity
from service.store.graph_store import read_user
from service.store.group_commit import GroupCommit
from service.store.keys import Keys
from service.store.loop_rows import read_rows, write_rows

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
    assert await read_user(commit, keys, "u1") == (kept["u1"], {})
    assert max(numbers.values()) > 7
    stats = await redis.hgetall(keys.partition().stats)
    assert int(stats[b"activity"]) == sum(numbers.values())
    assert int(stats[b"activity_duplicate"]) > 0


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
    [(_, first, *_), (_, second, *_)] = (await activity_of(redis, keys, ["u"]))["u"]
    assert START < first == second < 10**14


async def test_a_backup_holds_it(redis: Redis, loop: LoopRecord, keys: Keys) -> None:
    commit, other = GroupCommit(redis), Keys(loop.name, loop.id + "-restored")
    sent = [Sent("u é", "i", "view", START, "a")]
    await take_activity(commit, keys, loop.settings, {"u é": sent})
    await write_rows(redis, other, [row async for row in read_rows(redis, keys)], later_ms=0)
    assert await read_user(commit, other, "u é") == ([(1, START, "i", "view")], {})
    assert await count_users(redis, other) == 1
    assert await take_activity(commit, other, loop.settings, {"u é": sent}) == {"u é": ["duplicate"]}
    for key in [key async for key in redis.scan_iter(match=other.partition().prefix + "*")]:
        await redis.delete(key)
