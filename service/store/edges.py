"""Whom users know, in Redis: each edge lies with the user that it leaves, on his partition.

An edge is written in two steps, since the two users may lie on two partitions. The first writes it with the user and
says that his edges are pending. The second, `link`, writes a reverse entry at each user whom they name, and says which
neighbourhoods have changed. Before it writes a reverse entry, it notes in `linked` that there may be one: so whoever
goes on where it was cut off, or erases the user, finds them all. A reverse entry that is there in vain is harmless.

A field of the hash of edges is a digest of [to, kind]; its value is `weight at body`: a number, unix milliseconds, and
the JSON [to, kind].
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import orjson
from redis.asyncio import Redis

from service.loop import LoopSettings
from service.store.connection import Value, answering, answers, packed, script
from service.store.group_commit import GroupCommit
from service.store.keys import Keys

MOST_KNOWN_BY = 10_000  # users whose edges name one and the same user
AT_ONCE = 50  # users whose edges are linked in one go
# Of the longest edge: its id as JSON has 128 characters of six bytes, a digest, three numbers and a kind beside it. Its
# id stands in `linked`, too, and the user's own in the reverse entry, as it is and as JSON.
EDGE_BYTES = 864 + 512 + 512 + 792


@dataclass(frozen=True, slots=True)
class SentEdge:
    """One edge, as a client sent it."""

    user: str  # that it leaves
    to: str
    kind: str
    weight: float  # > 0
    at: int | None = None  # unix milliseconds; None: now


KeptEdge = tuple[str, str, float, int]
"""To, kind, weight, unix milliseconds."""


async def take_edges(
    commit: GroupCommit, keys: Keys, settings: LoopSettings, sent: Mapping[str, Sequence[SentEdge]]
) -> dict[str, list[str]]:
    """Write edges, by user; return user -> for each of his, in order, `accepted`, `duplicate`, or `full`.

    Raises:
        StoreUnavailable: Redis did not answer. They may be sent again.
    """
    take = script("take_edges")

    async def of_user(user: str, of_his: Sequence[SentEdge]) -> list[str]:
        args: list[Value] = [user, settings.edges_kept]
        for one in of_his:
            body = orjson.dumps([one.to, one.kind])
            args += (_digest(body), repr(one.weight), "" if one.at is None else one.at, body)
        return [answer.decode() for answer in await commit.run(take, _places(keys, user), args, uses=keys.loop)]

    found = await asyncio.gather(*(of_user(user, of_his) for user, of_his in sent.items()))
    return dict(zip(sent, found, strict=True))


async def drop_edges(commit: GroupCommit, keys: Keys, user: str, edges: Iterable[tuple[str, str]]) -> int:
    """Delete edges of a user, named by (to, kind); return how many there were.

    Raises:
        StoreUnavailable: Redis did not answer.
    """
    digests = [_digest(orjson.dumps(edge)) for edge in edges]
    if not digests:
        return 0
    return int(await commit.run(script("drop_edges"), _places(keys, user), [user, *digests], uses=keys.loop))


async def edges_of(redis: Redis, keys: Keys, users: Sequence[str]) -> dict[str, list[KeptEdge]]:
    """Return user -> his edges, in the order of (to, kind).

    Raises:
        StoreUnavailable: Redis does not answer.
    """
    async with answering():
        found = await answers(redis, [packed("HVALS", keys.partition().edges(user)) for user in users])
    return {user: sorted(map(_read, values)) for user, values in zip(users, found, strict=True)}


async def known_by(redis: Redis, keys: Keys, users: Sequence[str]) -> dict[str, list[str]]:
    """Return user -> those whose edges name him, in order.

    Raises:
        StoreUnavailable: Redis does not answer.
    """
    async with answering(), redis.pipeline(transaction=False) as pipe:
        for user in users:
            pipe.hkeys(keys.partition().known_by(user))
        return {
            user: sorted(name.decode() for name in names)
            for user, names in zip(users, await pipe.execute(), strict=True)
        }


async def pending(redis: Redis, keys: Keys, most: int = AT_ONCE) -> list[tuple[str, int]]:
    """Return users whose change of edges waits for its second step, and its number, the oldest first.

    Raises:
        StoreUnavailable: Redis does not answer.
    """
    async with answering():
        found = await redis.zrange(keys.partition().edges_pending, 0, most - 1, withscores=True)
    return [(user.decode(), int(number)) for user, number in found]


async def link(commit: GroupCommit, redis: Redis, keys: Keys, due: Sequence[tuple[str, int]]) -> None:
    """Take the second step of changes of edges. It may be taken again, and by several processes.

    An edge to a user whom `MOST_KNOWN_BY` others name is deleted.

    Args:
        due: users, and the numbers of their changes, as `pending` gives them.

    Raises:
        StoreUnavailable: Redis did not answer: it is to be taken again.
    """
    part, users = keys.partition(), [user for user, _ in due]
    edges = await edges_of(redis, keys, users)
    wanted = {user: sorted({to for to, *_ in edges[user]}) for user in users}
    linked = await _linked(redis, keys, users)
    async with answering(), redis.pipeline(transaction=False) as pipe:
        for user in users:
            if new := [to for to in wanted[user] if to not in linked[user]]:
                pipe.sadd(part.linked(user), *new)
        await pipe.execute()
    gone = {user: sorted(linked[user].difference(wanted[user])) for user in users}

    async def write(user: str, number: int) -> list[str]:
        """Write a user's reverse entries; return at whom there is no room."""
        args: tuple[Value, ...] = (user, number, orjson.dumps(user), MOST_KNOWN_BY)
        link_edge, unlink_edge = script("link_edge"), script("unlink_edge")
        rooms = await asyncio.gather(*(commit.run(link_edge, (part.known_by(to),), args) for to in wanted[user]))
        await asyncio.gather(*(commit.run(unlink_edge, (part.known_by(to),), (user, number)) for to in gone[user]))
        return [to for to, room in zip(wanted[user], rooms, strict=True) if not room]

    full = dict(zip(users, await asyncio.gather(*(write(user, number) for user, number in due)), strict=True))
    followers = await known_by(redis, keys, users)
    await mark_stale(redis, keys, sorted({*users, *(one for others in followers.values() for one in others)}))

    async def settle(user: str, number: int) -> None:
        places = (part.edges_pending, part.linked(user), part.edges(user), part.stats)
        unlinked = [*gone[user], *full[user]]
        left_out = [_digest(orjson.dumps((to, kind))) for to, kind, *_ in edges[user] if to in full[user]]
        await commit.run(script("settle_edges"), places, (user, number, len(unlinked), *unlinked, *left_out))

    await asyncio.gather(*(settle(user, number) for user, number in due))


async def _linked(redis: Redis, keys: Keys, users: Sequence[str]) -> dict[str, set[str]]:
    async with answering(), redis.pipeline(transaction=False) as pipe:
        for user in users:
            pipe.smembers(keys.partition().linked(user))
        return {
            user: {name.decode() for name in names} for user, names in zip(users, await pipe.execute(), strict=True)
        }


async def link_pending(commit: GroupCommit, redis: Redis, keys: Keys) -> None:
    """Take the second step of every change of edges that was made before this call.

    Raises:
        StoreUnavailable: Redis did not answer.
    """
    async with answering():
        newest = await redis.zrange(keys.partition().edges_pending, -1, -1, withscores=True)
    until = int(newest[0][1]) if newest else 0
    while due := [(user, number) for user, number in await pending(redis, keys) if number <= until]:
        await link(commit, redis, keys, due)


async def mark_stale(redis: Redis, keys: Keys, users: Sequence[str]) -> None:
    """Have the fields of users' neighbourhoods computed again.

    Raises:
        StoreUnavailable: Redis does not answer.
    """
    part = keys.partition()
    for start in range(0, len(users), 1000):
        await script("mark_stale")(redis, (part.graph_stale, part.stats), users[start : start + 1000])


async def erase_edges(commit: GroupCommit, redis: Redis, keys: Keys, user: str) -> int:
    """Delete a user's edges and those that name him, with all their reverse entries; return how many edges there were.

    It may be done again. What is sent meanwhile may stay.

    Raises:
        StoreUnavailable: Redis did not answer.
    """
    await link_pending(commit, redis, keys)  # or an edge that was just sent would have no reverse entry to find it by
    others = (await known_by(redis, keys, [user]))[user]
    deleted = 0
    for one, edges in (await edges_of(redis, keys, [user, *others])).items():
        deleted += await drop_edges(commit, keys, one, [(to, kind) for to, kind, *_ in edges if user in (one, to)])
    await link_pending(commit, redis, keys)
    await _unlink_in_vain(commit, redis, keys, user, others)
    return deleted


async def _unlink_in_vain(commit: GroupCommit, redis: Redis, keys: Keys, user: str, others: Sequence[str]) -> None:
    """Delete those of the reverse entries of `others` at a user that no edge stands behind."""
    place = keys.partition().known_by(user)
    async with answering():
        entries = await redis.hmget(place, others) if others else []
    named_by = {one for one, edges in (await edges_of(redis, keys, others)).items() if user in (to for to, *_ in edges)}
    for one, entry in zip(others, entries, strict=True):
        if entry is not None and one not in named_by:
            await commit.run(script("unlink_edge"), (place,), (one, entry.split(b" ", 1)[0]))


def bytes_at_most(settings: LoopSettings) -> int:
    """Return the most bytes that the edges of one user take, reverse entries among them, without what Redis needs."""
    return settings.edges_kept * EDGE_BYTES


def _places(keys: Keys, user: str) -> tuple[str, ...]:
    part = keys.partition()
    return part.edges(user), part.edges_pending, part.stats


def _digest(body: bytes) -> bytes:
    return blake2b(body, digest_size=16).digest()


def _read(value: bytes) -> KeptEdge:
    weight, at, body = value.split(b" ", 2)
    to, kind = orjson.loads(body)
    return to, kind, float(weight), int(at)
