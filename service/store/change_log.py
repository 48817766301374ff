"""The log of administrative changes: who changed what, when, from what to what.

A change of a loop's record, policies or items is written down by the script that makes it. What changes a partition
(trainings, imports, schemas of a loop in use) is written down before it is made: it lies on another node of a cluster.
So is the deletion of a loop, which takes the loop's own log with it, and a restore.
"""

from __future__ import annotations

from itertools import chain

from redis.asyncio import Redis

from service.records import Change, order
from service.store.codec import change_body, read_change
from service.store.connection import answering
from service.store.keys import OF_LOOPS, Keys

MOST = 1000  # entries of one log; what is older is dropped, some tens at a time


def logged(change: Change | None) -> tuple[int, bytes]:
    """Return the arguments by which a script writes a change down; None: it is nobody's, and not written down."""
    return MOST, b"" if change is None else change_body(change)


async def append(redis: Redis, stream: str, change: Change) -> None:
    """Write down a change that is about to be made."""
    async with answering():
        await redis.xadd(stream, {"c": change_body(change)}, maxlen=MOST, approximate=True)


async def append_of_loop(redis: Redis, loop: str, change: Change) -> None:
    """Write down that a loop is about to be deleted, or restored: outside the loop, whose log goes or comes with it."""
    async with answering():
        await redis.xadd(OF_LOOPS, {"c": change_body(change), "loop": loop}, maxlen=MOST, approximate=True)


async def read(redis: Redis, stream: str, *, before: str | None, most: int) -> list[tuple[str, Change]]:
    """Return (id, change), newest first, of those older than the id `before`."""
    async with answering():
        entries = await redis.xrevrange(stream, max="+" if before is None else f"({before}", count=most)
    return [(place.decode(), read_change(place.decode(), fields)) for place, fields in entries]


async def read_of_loop(redis: Redis, loop: str) -> list[tuple[str, Change]]:
    """Return (id, change) of the deletions and restores of loops of this name."""
    async with answering():
        entries = await redis.xrange(OF_LOOPS)
    return [
        (place.decode(), read_change(place.decode(), fields))
        for place, fields in entries
        if fields[b"loop"] == loop.encode()
    ]


def merged(*found: list[tuple[str, Change]], before: str | None) -> list[tuple[str, Change]]:
    """Put (id, change) of several streams into one order, newest first: ids are those of one clock."""
    older = [one for one in chain(*found) if before is None or order(one[0]) < order(before)]
    return sorted(older, key=lambda one: order(one[0]), reverse=True)


async def newest(redis: Redis, keys: Keys) -> tuple[int, Change | None]:
    """Return how many changes the log of a loop holds, and the newest."""
    async with answering():
        count = await redis.xlen(keys.change_log)
    found = await read(redis, keys.change_log, before=None, most=1) if count else []
    return count, found[0][1] if found else None
