"""Edges as Redis keeps them: equal to a plain dict, bounded, and with reverse entries whatever is cut off where."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
from redis.asyncio import Redis

from service.errors import StoreUnavailable
from service.loop import LoopSettings
from service.records import LoopRecord
from service.store import edges, event_log
from service.store.connection import Script, Value, script
from service.store.edges import (
    SentEdge,
    bytes_at_most,
    drop_edges,
    edges_of,
    erase_edges,
    known_by,
    link_pending,
    pending,
    take_edges,
)
from service.store.group_commit import GroupCommit
from service.store.keys import Keys
from service.store.loop_rows import read_rows, write_rows

pytestmark = pytest.mark.anyio
START = 1_700_000_000_000
USERS = [f"u{i}" for i in range(6)]


def bounded(loop: LoopRecord, edges_kept: int) -> LoopSettings:
    return replace(loop, settings=loop.settings.model_copy(update={"edges_kept": edges_kept})).settings


def sent(user: str, to: str, weight: float = 1.0, *, kind: str = "friend", at: int | None = START) -> SentEdge:
    return SentEdge(user, to, kind, weight, at)


async def take(commit: GroupCommit, keys: Keys, settings: LoopSettings, *some: SentEdge) -> list[str]:
    by_user: dict[str, list[SentEdge]] = {}
    for one in some:
        by_user.setdefault(one.user, []).append(one)
    answers = await take_edges(commit, keys, settings, by_user)
    return [answer for user in by_user for answer in answers[user]]


class CutOff(GroupCommit):
    """Loses Redis before the n-th script."""

    left = 0

    async def run(self, script: Script, keys: Any, args: Any, *, uses: str | None = None) -> Any:
        if self.left == 0:
            raise StoreUnavailable("cut off")
        self.left -= 1
        return await super().run(script, keys, args, uses=uses)


async def check_reverse_entries(redis: Redis, keys: Keys) -> dict[str, set[str]]:
    """Return user -> whom his edges name, having compared it with the reverse entries and the counters."""
    found = {user: {to for to, *_ in kept} for user, kept in (await edges_of(redis, keys, USERS)).items()}
    reverse = await known_by(redis, keys, USERS)
    assert {to: {user for user in USERS if to in found[user]} for to in USERS} == {
        to: set(names) for to, names in reverse.items()
    }
    for user in USERS:
        assert {name.decode() for name in await redis.smembers(keys.partition().linked(user))} == found[user]
    stats = await event_log.read_stats(redis, keys)
    assert stats["edge_users"] == sum(bool(kept) for kept in found.values())
    assert await pending(redis, keys) == []
    return found


async def test_a_random_stream_is_kept_as_a_dict_would_keep_it(redis: Redis, loop: LoopRecord, keys: Keys) -> None:
    draws, commit = random.Random(2), GroupCommit(redis)
    cut_off = CutOff(redis)
    settings = bounded(loop, 4)
    kept: dict[str, dict[tuple[str, str], tuple[float, int]]] = {user: {} for user in USERS}
    cuts = refused = 0
    for number in range(60):
        user, to = draws.sample(USERS, 2)
        of_his, name = kept[user], (to, draws.choice(["friend", "follows"]))
        if draws.random() < 0.25:
            there = of_his.pop(name, None) is not None
            assert await drop_edges(commit, keys, user, [name]) == there
        else:
            weight, at = draws.choice([1.0, 2.5, 1e-3]), START + draws.randrange(3)
            was = of_his.get(name)
            expected = "duplicate" if was is not None and (at < was[1] or was == (weight, at)) else "accepted"
            if expected == "accepted":
                of_his[name] = weight, at
                if len(of_his) > 4:
                    order = [(edge[0], edge[1]) for edge in of_his.values()]
                    lightest = min(order)
                    candidates = [one for one, edge in of_his.items() if edge == lightest]
                    [answer] = await take(commit, keys, settings, sent(user, to, weight, kind=name[1], at=at))
                    left = {(other, kind) for other, kind, *_ in (await edges_of(redis, keys, [user]))[user]}
                    [gone] = of_his.keys() - left
                    assert gone in candidates
                    assert answer == ("full" if gone == name else "accepted")
                    refused += gone == name
                    del of_his[gone]
                    continue
            assert await take(commit, keys, settings, sent(user, to, weight, kind=name[1], at=at)) == [expected]
        if number % 3 == 0:
            cut_off.left = draws.randrange(4)
            try:
                await link_pending(cut_off, redis, keys)
            except StoreUnavailable:
                cuts += 1
    assert cuts > 3
    assert refused > 0
    await link_pending(commit, redis, keys)
    await check_reverse_entries(redis, keys)
    found = await edges_of(redis, keys, USERS)
    assert {user: {(to, kind): (weight, at) for to, kind, weight, at in found[user]} for user in USERS} == kept
    stats = await event_log.read_stats(redis, keys)
    assert stats["edges"] == sum(map(len, kept.values()))
    assert stats["edges_refused"] == refused


async def test_who_was_held_up_undoes_nothing_that_came_later(redis: Redis, loop: LoopRecord, keys: Keys) -> None:
    commit = GroupCommit(redis)
    await take(commit, keys, loop.settings, sent("u0", "u1"))
    await link_pending(commit, redis, keys)
    await drop_edges(commit, keys, "u0", [("u1", "friend")])
    [(user, old)] = await pending(redis, keys)
    await take(commit, keys, loop.settings, sent("u0", "u1", 2.0))
    await link_pending(commit, redis, keys)
    part = keys.partition()
    # The process that was to delete the reverse entry goes on only now.
    assert await commit.run(script("unlink_edge"), (part.known_by("u1"),), (user, old)) == 0
    args: tuple[Value, ...] = (user, old, 1, "u1")
    places = (part.edges_pending, part.linked(user), part.edges(user), part.stats)
    assert await commit.run(script("settle_edges"), places, args) == 0
    assert (await check_reverse_entries(redis, keys))["u0"] == {"u1"}


async def test_who_is_known_by_too_many_takes_no_more(
    redis: Redis, loop: LoopRecord, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(edges, "MOST_KNOWN_BY", 2)
    commit = GroupCommit(redis)
    for user in ("u1", "u2", "u3"):
        assert await take(commit, keys, loop.settings, sent(user, "u0"), sent(user, "u4")) == ["accepted"] * 2
        await link_pending(commit, redis, keys)
    found = await check_reverse_entries(redis, keys)
    assert (found["u2"], found["u3"]) == ({"u0", "u4"}, set())
    stats = await event_log.read_stats(redis, keys)
    assert (stats["edges"], stats["edges_refused"]) == (4, 2)


async def test_memory_is_bounded(redis: Redis, loop: LoopRecord, keys: Keys) -> None:
    settings, commit, part = bounded(loop, 3), GroupCommit(redis), keys.partition()
    user = "é" * 127 + "\x01"
    long = [SentEdge(user, f"{n}" + "\x01" * 127, "w" * 32, 1 / 3 + n, START) for n in range(8)]
    answers = (await take_edges(commit, keys, settings, {user: long}))[user]
    assert answers == ["full"] * 5 + ["accepted"] * 3
    await link_pending(commit, redis, keys)
    used = sum(len(field) + len(value) for field, value in (await redis.hgetall(part.edges(user))).items())
    used += sum(map(len, await redis.smembers(part.linked(user))))
    for one in long:
        found = await redis.hgetall(part.known_by(one.to))
        used += sum(len(field) + len(value) for field, value in found.items())
    assert 0 < used <= bytes_at_most(settings)


async def test_a_time_to_come_counts_as_now_and_any_past_one_is_taken(
    redis: Redis, loop: LoopRecord, keys: Keys
) -> None:
    commit = GroupCommit(redis)
    assert await take(commit, keys, loop.settings, sent("u2", "u1", 1e-7, at=-5)) == ["accepted"]
    assert await take(commit, keys, loop.settings, sent("u2", "u1", at=-6)) == ["duplicate"]
    assert (await edges_of(redis, keys, ["u2"]))["u2"] == [("u1", "friend", 1e-7, -5)]
    assert await take(commit, keys, loop.settings, sent("u0", "u1", at=10**14)) == ["accepted"]
    assert await take(commit, keys, loop.settings, sent("u0", "u1", at=None)) == ["duplicate"]
    [(_, _, _, at)] = (await edges_of(redis, keys, ["u0"]))["u0"]
    assert START < at < 10**14


@pytest.mark.parametrize("cut_after", range(9))
async def test_an_erasure_that_is_cut_off_goes_on(redis: Redis, loop: LoopRecord, keys: Keys, cut_after: int) -> None:
    commit, cut_off = GroupCommit(redis), CutOff(redis)
    await take(commit, keys, loop.settings, sent("u0", "u1"), sent("u2", "u1"))
    await link_pending(commit, redis, keys)
    await take(commit, keys, loop.settings, sent("u3", "u0"), sent("u0", "u2"), sent("u3", "u1"))  # not linked yet
    await redis.hset(keys.partition().known_by("u0"), "u5", '1 "u5"')  # in vain
    cut_off.left = cut_after
    try:
        await erase_edges(cut_off, redis, keys, "u0")
    except StoreUnavailable:
        await erase_edges(commit, redis, keys, "u0")
    found = await check_reverse_entries(redis, keys)
    assert {user: named for user, named in found.items() if named} == {"u2": {"u1"}, "u3": {"u1"}}


async def test_a_backup_holds_them(redis: Redis, loop: LoopRecord, keys: Keys) -> None:
    commit, other = GroupCommit(redis), Keys(loop.name, loop.id + "-restored")
    await take(commit, keys, loop.settings, sent("u0", "u1"), sent("u1", "u2", 0.1, at=None))
    await link_pending(commit, redis, keys)
    await write_rows(redis, other, [row async for row in read_rows(redis, keys)], later_ms=0)
    assert await edges_of(redis, other, USERS) == await edges_of(redis, keys, USERS)
    assert (await check_reverse_entries(redis, other))["u1"] == {"u2"}
    for key in [key async for key in redis.scan_iter(match=other.partition().prefix + "*")]:
        await redis.delete(key)
