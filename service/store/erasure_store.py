"""Erasures of users in Redis: what was asked for, how far it is; and the queue of those that have not ended.

The user's id stands in the record until the erasure has ended, and a digest of it for longer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import orjson
from redis.asyncio import Redis

from service.errors import Conflict, NotFound
from service.store.codec import FORMAT, check_format
from service.store.connection import Value, answering
from service.store.keys import ERASURES, Keys

KEPT = 100  # of a loop; of more the oldest that have ended go
UNFINISHED = 100  # of a loop, at most
# What is done one after the other. Each step may be done again.
STEPS = ("decisions", "activity", "edges", "events", "traces", "learning", "search", "files", "done")


@dataclass(frozen=True)
class ErasureRecord:
    """An erasure as its loop's home holds it."""

    id: str
    digest: str  # of the user's id, by which who knows the id finds the erasure
    by: str  # name of the key, or of the command
    created: float  # unix seconds
    user: str | None = None  # None: the id is not needed any more
    step: str = STEPS[0]  # that is to be done next; `done`: it has ended
    ended: float | None = None
    decisions: int = 0  # deleted, as the next three
    activity: int = 0
    edges: int = 0
    events: int = 0
    waits_for: tuple[str, ...] = ()  # policies, and `the profile`, that have still to learn the log anew
    remains: tuple[str, ...] = ()  # what could not be erased, and what to do, in sentences for people


def digest_of(keys: Keys, user: str) -> str:
    """Return what stands for an id in what outlives it. It differs from loop to loop."""
    return blake2b(user.encode(), key=keys.id.encode(), digest_size=16).hexdigest()


def _place(keys: Keys, erasure: str) -> str:
    return f"{keys.loop}/{keys.id}/{erasure}"


def _read(erasure: str, stored: Mapping[bytes, bytes]) -> ErasureRecord:
    check_format(f"erasure {erasure!r}", stored.get(b"v"))
    return ErasureRecord(
        id=erasure,
        digest=stored[b"digest"].decode(),
        by=stored[b"by"].decode(),
        created=float(stored[b"created"]),
        user=stored[b"user"].decode() if b"user" in stored else None,
        step=stored[b"step"].decode(),
        ended=float(stored[b"ended"]) if b"ended" in stored else None,
        decisions=int(stored.get(b"decisions", 0)),
        activity=int(stored.get(b"activity", 0)),
        edges=int(stored.get(b"edges", 0)),
        events=int(stored.get(b"events", 0)),
        waits_for=tuple(orjson.loads(stored.get(b"waits_for", b"[]"))),
        remains=tuple(orjson.loads(stored.get(b"remains", b"[]"))),
    )


async def create_erasure(redis: Redis, keys: Keys, record: ErasureRecord) -> None:
    """Write a new erasure down, and queue it.

    Raises:
        Conflict: as many as may wait do.
    """
    found = await list_erasures(redis, keys)
    ended = [one.id for one in reversed(found) if one.ended is not None]
    if len(found) - len(ended) >= UNFINISHED:
        raise Conflict(
            f"{UNFINISHED} erasures of loop {keys.loop!r} have not ended; wait for them", code="too_many_erasures"
        )
    fields: dict[str, Value] = {
        "v": FORMAT,
        "user": record.user or "",
        "digest": record.digest,
        "by": record.by,
        "created": record.created,
        "step": record.step,
    }
    async with answering(), redis.pipeline(transaction=True) as pipe:
        for old in ended[: max(0, len(found) - KEPT + 1)]:
            pipe.delete(keys.erasure(old))
            pipe.zrem(keys.erasures, old)
        pipe.hset(keys.erasure(record.id), mapping=fields)
        pipe.zadd(keys.erasures, {record.id: record.created})
        await pipe.execute()
    await queue(redis, keys, [record])


async def queue(redis: Redis, keys: Keys, records: Sequence[ErasureRecord]) -> None:
    """Queue those that have not ended; one that is queued keeps its place.

    Whoever looks at erasures calls it: they are not queued after a restore, or where a request was cut off.
    """
    waiting: dict[str, float] = {_place(keys, one.id): one.created for one in records if one.ended is None}
    if waiting:
        async with answering():
            await redis.zadd(ERASURES, waiting, nx=True)


async def list_erasures(redis: Redis, keys: Keys) -> list[ErasureRecord]:
    """Return those of a loop, newest first.

    Raises:
        NewerFormat: a newer version wrote one.
    """
    async with answering():
        ids = [name.decode() for name in await redis.zrange(keys.erasures, 0, -1, desc=True)]
        async with redis.pipeline(transaction=False) as pipe:
            for erasure in ids:
                pipe.hgetall(keys.erasure(erasure))
            found = await pipe.execute()
    return [_read(erasure, stored) for erasure, stored in zip(ids, found, strict=True) if stored]


async def count_unfinished(redis: Redis, keys: Keys) -> int:
    """Return how many of a loop have not ended."""
    return sum(one.ended is None for one in await list_erasures(redis, keys))


async def read_erasure(redis: Redis, keys: Keys, erasure: str) -> ErasureRecord:
    """Return one.

    Raises:
        NotFound: there is no such erasure.
        NewerFormat: a newer version wrote it.
    """
    async with answering():
        stored = await redis.hgetall(keys.erasure(erasure))
    if not stored:
        raise NotFound(f"there is no erasure {erasure!r} in loop {keys.loop!r}", code="unknown_erasure")
    return _read(erasure, stored)


async def change_erasure(
    redis: Redis, keys: Keys, erasure: str, *, forget_user: bool = False, **fields: Any
) -> ErasureRecord:
    """Change fields of one; return it. One that has `ended` leaves the queue.

    Args:
        forget_user: delete the user's id from it.

    Raises:
        NotFound: it is no longer there: its loop was deleted.
    """
    written = {name: orjson.dumps(value) if isinstance(value, list) else value for name, value in fields.items()}
    async with answering():
        async with redis.pipeline(transaction=True) as pipe:
            pipe.hset(keys.erasure(erasure), mapping=written)
            if forget_user:
                pipe.hdel(keys.erasure(erasure), "user")
            await pipe.execute()
        if "ended" in fields:
            await redis.zrem(ERASURES, _place(keys, erasure))
        if not await redis.hexists(keys.erasure(erasure), "digest"):  # what was written stands alone
            await redis.delete(keys.erasure(erasure))
    return await read_erasure(redis, keys, erasure)


async def queued(redis: Redis) -> list[tuple[Keys, str]]:
    """Return those that have not ended, oldest first, 100 at most."""
    async with answering():
        places = await redis.zrange(ERASURES, 0, 99)
    found = []
    for place in places:
        loop, loop_id, erasure = place.decode().split("/")
        found.append((Keys(loop, loop_id), erasure))
    return found


async def forget_queued(redis: Redis, keys: Keys, erasure: str) -> None:
    """Take out of the queue what is not there any more."""
    async with answering():
        await redis.zrem(ERASURES, _place(keys, erasure))
