"""Activity in Redis: the last of each user, on the user's partition, in the order in which it was accepted.

The script that accepts it also appends it to the log of activity (`activity_log.py`).

An entry of the list is `number at body`: how many were accepted of this user with this one, unix milliseconds, and
the JSON [item, type]. Beside it lie the digests of the ids that came, 8 bytes each, oldest first.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import orjson
from redis.asyncio import Redis

from service.loop import LoopSettings
from service.store.connection import Value, answering, now, script
from service.store.group_commit import GroupCommit
from service.store.keys import Keys

IDS_KEPT = 1000  # of a user: a request is known when it comes again whole
ENTRY_BYTES = 848  # of the longest entry: an item of 128 characters, six bytes each, a type of 32, and its numbers


@dataclass(frozen=True, slots=True)
class Sent:
    """One activity, as a client sent it."""

    user: str
    item: str
    type: str
    at: int | None = None  # unix milliseconds; None: now
    activity_id: str | None = None


Kept = tuple[int, int, str, str]
"""Number, unix milliseconds, item, type."""


async def take_activity(
    commit: GroupCommit,
    keys: Keys,
    settings: LoopSettings,
    sent: Mapping[str, Sequence[Sent]],
    *,
    edges: bool = False,
) -> dict[str, list[str]]:
    """Append activity, by user; return user -> for each of his, in order, `accepted` or `duplicate`.

    Args:
        edges: whether the loop has edges: then the keeper of its graph is told who acted.

    Raises:
        StoreUnavailable: Redis did not answer. What has ids may be sent again.
    """
    part, taken = keys.partition(), settings.caps.taken
    types = () if taken is None else taken.activity
    take = script("take_activity")

    async def of_user(user: str, of_his: Sequence[Sent]) -> list[str]:
        args: list[Value] = [*_accepting(user, settings), IDS_KEPT, settings.caps.kept, settings.caps.ms, int(edges)]
        for one in of_his:
            digest = b"" if one.activity_id is None else blake2b(one.activity_id.encode(), digest_size=8).digest()
            args += (digest, "" if one.at is None else one.at, orjson.dumps([one.item, one.type]))
            args.append(one.item if one.type in types else "")
        named = (
            part.activity(user),
            part.activity_users,
            part.stats,
            part.activity_log,
            part.activity_ids(user),
            part.taken(user),
            part.capped_users,
            part.acted,
        )
        return [answer.decode() for answer in await commit.run(take, named, args, uses=keys.loop)]

    answers = await asyncio.gather(*(of_user(user, of_his) for user, of_his in sent.items()))
    return dict(zip(sent, answers, strict=True))


async def take_rewarded(commit: GroupCommit, keys: Keys, settings: LoopSettings, user: str) -> int:
    """Take up the rewarded items of a user as his activity; return how many there were.

    Raises:
        StoreUnavailable: Redis did not answer.
    """
    part = keys.partition()
    named = (part.activity(user), part.activity_users, part.stats, part.activity_log, part.rewarded)
    return int(await commit.run(script("take_rewarded"), named, _accepting(user, settings)))


async def take_all_rewarded(redis: Redis, commit: GroupCommit, keys: Keys, settings: LoopSettings) -> int:
    """Take up the rewarded items of all users as their activity; return how many there were.

    Raises:
        StoreUnavailable: Redis does not answer.
    """
    async with answering():
        users = [user.decode() for user in await redis.hkeys(keys.partition().rewarded)]
    return sum(await asyncio.gather(*(take_rewarded(commit, keys, settings, user) for user in users)))


async def count_waiting(redis: Redis, keys: Keys) -> int:
    """Return of how many users rewarded items wait to be taken up as activity.

    Raises:
        StoreUnavailable: Redis does not answer.
    """
    async with answering():
        return int(await redis.hlen(keys.partition().rewarded))


def _accepting(user: str, settings: LoopSettings) -> list[Value]:
    """Return the arguments of `accept.lua`."""
    return [user, orjson.dumps(user), settings.activity_kept, settings.activity_ms, settings.retention]


async def activity_of(redis: Redis, keys: Keys, users: Sequence[str]) -> dict[str, list[Kept]]:
    """Return user -> what is kept of him.

    Raises:
        StoreUnavailable: Redis does not answer.
    """
    async with answering(), redis.pipeline(transaction=False) as pipe:
        for user in users:
            pipe.lrange(keys.partition().activity(user), 0, -1)
        return {
            user: [read_kept(entry) for entry in entries]
            for user, entries in zip(users, await pipe.execute(), strict=True)
        }


async def count_users(redis: Redis, keys: Keys) -> int:
    """Return of how many users activity is kept.

    Raises:
        StoreUnavailable: Redis does not answer.
    """
    at = round(1000 * await now(redis))
    async with answering():
        return int(await redis.zcount(keys.partition().activity_users, f"({at}", "+inf"))


def bytes_at_most(settings: LoopSettings) -> int:
    """Return the most bytes that the activity of one user takes, without what Redis needs beside."""
    return settings.activity_kept * ENTRY_BYTES + 8 * IDS_KEPT


def read_kept(entry: bytes) -> Kept:
    """Read an entry of what is kept of a user."""
    number, at, body = entry.split(b" ", 2)
    item, type_ = orjson.loads(body)
    return int(number), int(at), item, type_
