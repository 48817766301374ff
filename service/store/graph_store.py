"""What is known of users' neighbourhoods, in Redis: what each took, the fields that decisions read, and who is due."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import orjson
from redis.asyncio import Redis

from service.loop import LoopSettings
from service.records import START
from service.store.activity import Kept, read_kept
from service.store.codec import FORMAT, check_format
from service.store.connection import answering, answers, packed, script
from service.store.edges import KeptEdge, edges_of, known_by, mark_stale
from service.store.group_commit import GroupCommit
from service.store.keys import Keys

LEASE = "@graph"  # stands where leases of policies do; no policy has such a name
TAKES_KEPT = 5  # rewarded items of a user, the newest
ACTED_AT_ONCE = 200  # users
TAKE_BYTES = 864  # of the longest: an item of 128 characters, six bytes each, and its numbers
# Of one user: what he took, and the longest fields. In `took` and `circle` eight fields, whose paths have 256
# characters, of three levels of 64; ten items of 128; six bytes a character.
USER_BYTES = TAKES_KEPT * TAKE_BYTES + 6 * (2 * 8 * (256 + 3 * 64) + 10 * 128) + 1000

Rewarded = tuple[int, str, float]
"""Unix milliseconds, item, share of the largest reward in (0, 1]."""


class Surroundings(NamedTuple):
    """What is kept around some users."""

    edges: Mapping[str, Sequence[KeptEdge]]  # of these users, and of those whom they name
    activity: Mapping[str, Sequence[Kept]]  # of those whom they name, the newest
    rewarded: Mapping[str, Sequence[Rewarded]]  # the same


async def read_position(redis: Redis, keys: Keys) -> str:
    """Return the position of the last entry of the log that the keeper has read, START where there is none.

    Raises:
        NewerFormat: a newer version wrote it.
    """
    async with answering():
        v, position = await redis.hmget(keys.graph, "v", "position")
    if position is None:
        return START
    check_format(f"the graph of loop {keys.loop!r}", v)
    return str(position.decode())


async def save_position(redis: Redis, keys: Keys, *, seen: str, position: str) -> bool:
    """Write down how far the keeper has read the log; False where it does not stand at `seen`, or the loop is gone."""
    return bool(await script("save_graph")(redis, (keys.record, keys.graph), (keys.id, seen, FORMAT, position)))


async def add_takes(
    redis: Redis, keys: Keys, settings: LoopSettings, takes: Mapping[str, Sequence[tuple[str, Rewarded]]]
) -> None:
    """Keep items that users rewarded, each by its position in the log: one that is there already changes nothing.

    Raises:
        StoreUnavailable: Redis does not answer.
    """
    part = keys.partition()
    async with answering(), redis.pipeline(transaction=False) as pipe:
        for user, of_his in takes.items():
            members = {orjson.dumps([item, share, position]): at for position, (at, item, share) in of_his}
            pipe.zadd(part.took(user), members)
            pipe.zremrangebyrank(part.took(user), 0, -TAKES_KEPT - 1)
            pipe.pexpire(part.took(user), settings.activity_ms)
        await pipe.execute()
    await _mark_around(redis, keys, list(takes))


async def mark_acted(commit: GroupCommit, redis: Redis, keys: Keys) -> None:
    """Mark those who know users that have acted: their neighbourhoods have changed.

    Raises:
        StoreUnavailable: Redis does not answer.
    """
    acted = keys.partition().acted
    while found := await _marked(redis, acted, ACTED_AT_ONCE):
        await _mark_around(redis, keys, [user for user, _ in found])
        clear = script("clear_mark")
        await asyncio.gather(*(commit.run(clear, (acted,), mark) for mark in found))


async def _mark_around(redis: Redis, keys: Keys, users: Sequence[str]) -> None:
    around = await known_by(redis, keys, users)
    await mark_stale(redis, keys, sorted({name for names in around.values() for name in names}))


async def stale(redis: Redis, keys: Keys, most: int) -> list[tuple[str, int]]:
    """Return users whose fields are to be computed again, and the number of the mark, the oldest first.

    Raises:
        StoreUnavailable: Redis does not answer.
    """
    return await _marked(redis, keys.partition().graph_stale, most)


async def _marked(redis: Redis, marks: str, most: int) -> list[tuple[str, int]]:
    async with answering():
        found = await redis.zrange(marks, 0, most - 1, withscores=True)
    return [(user.decode(), int(number)) for user, number in found]


async def count_waiting(redis: Redis, keys: Keys) -> tuple[int, int]:
    """Return how many users wait: for the second step of their edges, and for their fields to be computed again.

    The second counts who has acted, too, whoever knows him.
    """
    part = keys.partition()
    async with answering(), redis.pipeline(transaction=False) as pipe:
        for marks in (part.edges_pending, part.graph_stale, part.acted):
            pipe.zcard(marks)
        edges, fields, acted = await pipe.execute()
    return int(edges), int(fields) + int(acted)


async def surroundings(redis: Redis, keys: Keys, users: Sequence[str], newest: int) -> Surroundings:
    """Read what the fields of users are made from.

    Args:
        newest: activities of each friend.

    Raises:
        StoreUnavailable: Redis does not answer.
    """
    part = keys.partition()
    edges = await edges_of(redis, keys, users)
    friends = sorted({to for of_his in edges.values() for to, *_ in of_his})
    edges |= await edges_of(redis, keys, [friend for friend in friends if friend not in edges])
    async with answering():
        found = await answers(redis, [packed("LRANGE", part.activity(friend), -newest, -1) for friend in friends])
    done = [[read_kept(one) for one in of_his] for of_his in found]
    return Surroundings(edges, dict(zip(friends, done, strict=True)), await rewarded_by(redis, keys, friends))


async def rewarded_by(redis: Redis, keys: Keys, users: Sequence[str]) -> dict[str, list[Rewarded]]:
    """Return user -> the items that he rewarded, oldest first.

    Raises:
        StoreUnavailable: Redis does not answer.
    """
    async with answering(), redis.pipeline(transaction=False) as pipe:
        for user in users:
            pipe.zrange(keys.partition().took(user), 0, -1, withscores=True)
        return {user: [_rewarded(*one) for one in took] for user, took in zip(users, await pipe.execute(), strict=True)}


async def fields_of(redis: Redis, keys: Keys, users: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return user -> the fields that decisions read; {} where there are none.

    Raises:
        StoreUnavailable: Redis does not answer.
    """
    async with answering(), redis.pipeline(transaction=False) as pipe:
        for user in users:
            pipe.get(keys.partition().graph(user))
        return {user: _fields(stored) for user, stored in zip(users, await pipe.execute(), strict=True)}


async def read_user(commit: GroupCommit, keys: Keys, user: str) -> tuple[list[Kept], str, dict[str, Any]]:
    """Return a user's activity that is kept, where the log of activity ends, and these fields.

    It is one round trip, which others share.

    Raises:
        StoreUnavailable: Redis did not answer.
    """
    part = keys.partition()
    named = (part.activity(user), part.activity_log, part.graph(user))
    kept, end, stored = await commit.run(script("read_user"), named, ())
    return [read_kept(entry) for entry in kept], end.decode(), _fields(stored)


async def publish(commit: GroupCommit, keys: Keys, user: str, number: int, fields: Mapping[str, Any] | None) -> bool:
    """Write a user's fields; False where his neighbourhood has changed since it was marked with `number`.

    Args:
        fields: with `number` as their version; {}: he has none; None: they are what they were.

    Raises:
        StoreUnavailable: Redis did not answer.
    """
    part = keys.partition()
    body = b"=" if fields is None else orjson.dumps({**fields, "version": number}) if fields else b""
    places = (part.graph_stale, part.graph(user))
    return bool(await commit.run(script("publish_graph"), places, (user, number, body)))


def _rewarded(member: bytes, at: float) -> Rewarded:
    item, share, _ = orjson.loads(member)
    return int(at), item, share


def _fields(stored: bytes | None) -> dict[str, Any]:
    return {} if stored is None else orjson.loads(stored)
