"""The log of activity in Redis: one ordered stream a partition, beside the log of events.

The script that accepts an activity appends it, so what is accepted is logged. An entry has the fields `u` (the user's
id as JSON), `a` (the entry of what is kept of him, `activity.py`) and `k` (ms after which he is forgotten).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping
from uuid import uuid4

import orjson
from redis.asyncio import Redis

from service.records import START, LoggedActivity
from service.store.activity import read_kept
from service.store.connection import answering, script
from service.store.keys import Keys

AT_ONCE = 1000  # entries of one round trip


async def read_log(
    redis: Redis, keys: Keys, after: str, *, most: int = AT_ONCE, until: str = "+"
) -> tuple[str | None, list[LoggedActivity]]:
    """Read the next entries after a position, in order, up to and including `until`. Garbled ones are left out.

    Returns:
        The position of the last entry that was looked at, None where there was none, and the activity.
    """
    async with answering():
        entries = await redis.xrange(keys.partition().activity_log, min=f"({after}", max=until, count=most)
    return (entries[-1][0].decode() if entries else None), list(_activity(entries))


def _activity(entries: Iterable[tuple[bytes, Mapping[bytes, bytes]]]) -> Iterable[LoggedActivity]:
    for position, fields in entries:
        try:
            number, at, item, type_ = read_kept(fields[b"a"])
            user, kept_ms = orjson.loads(fields[b"u"]), int(fields[b"k"])
        except (KeyError, TypeError, ValueError):
            continue
        yield LoggedActivity(position.decode(), user, number, at, item, type_, kept_ms)


async def scan_log(redis: Redis, keys: Keys, *, until: str = "+") -> AsyncIterator[list[LoggedActivity]]:
    """Read all that is retained in batches, up to and including `until`."""
    after: str | None = START
    while after is not None:
        after, activity = await read_log(redis, keys, after, until=until)
        yield activity


async def end_of(redis: Redis, keys: Keys) -> str:
    """Return the position of the newest entry, START where there is none."""
    async with answering():
        entries = await redis.xrevrange(keys.partition().activity_log, count=1)
    return entries[0][0].decode() if entries else START


async def size_of(redis: Redis, keys: Keys) -> tuple[int, int]:
    """Return the number of entries that the log retains, and about how many bytes of memory they take."""
    part = keys.partition()
    async with answering(), redis.pipeline(transaction=False) as pipe:
        pipe.xlen(part.activity_log)
        pipe.memory_usage(part.activity_log)
        held, taken = await pipe.execute()
    return int(held), int(taken or 0)


async def erase_of(redis: Redis, keys: Keys, user: str, *, counted: str) -> bool:
    """Delete a user's activity from the log; False: another process does it meanwhile.

    Until it is done, Redis holds the log twice.

    Args:
        counted: field of the partition's erasures that says how many activities were deleted.
    """
    part, token = keys.partition(), uuid4().hex
    async with answering(), redis.pipeline(transaction=True) as pipe:
        pipe.hdel(part.erasure, "activity-copied")
        pipe.hset(part.erasure, "activity-token", token)
        pipe.delete(part.activity_log_kept)
        await pipe.execute()
    places = (part.activity_log, part.activity_log_kept, part.erasure, part.stats)
    args = (token, orjson.dumps(user), AT_ONCE, counted)
    while not (done := await script("erase_activity")(redis, places, args)):
        pass
    return bool(done == 1)
