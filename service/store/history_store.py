"""The history of a loop in Redis: one hash of bins at the loop's home, and a stream of people's marks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import orjson
from redis.asyncio import Redis

from service.records import START
from service.store.codec import FORMAT, check_format
from service.store.connection import answering, now, script
from service.store.keys import Keys
from service.store.open_time import open_times

LEASE = "@history"  # stands where leases of policies do; no policy has such a name
MOST_MARKS = 1000  # of a loop; what is older is dropped, some tens at a time


@dataclass(frozen=True)
class Mark:
    """What somebody noted beside the history of a loop."""

    at: float  # unix seconds
    kind: str
    text: str


async def read_position(redis: Redis, keys: Keys) -> str:
    """Return the position of the last entry that the history has counted, START where there is none.

    Raises:
        NewerFormat: a newer version wrote the history.
    """
    async with answering():
        v, position = await redis.hmget(keys.bins, "v", "position")
    if position is None:
        return START
    check_format(f"the history of loop {keys.loop!r}", v)
    return str(position.decode())


async def read_bins(redis: Redis, keys: Keys, names: Sequence[str]) -> dict[str, bytes]:
    """Return name -> content of those of these bins that are there."""
    if not names:
        return {}
    async with answering():
        found = await redis.hmget(keys.bins, names)
    return {name: content for name, content in zip(names, found, strict=True) if content is not None}


async def save(
    redis: Redis, keys: Keys, *, seen: str, position: str, gone: Sequence[str], bins: Mapping[str, bytes]
) -> bool:
    """Write bins, if the history still stands at position `seen`; False when it does not, or the loop is gone."""
    content = [part for pair in bins.items() for part in pair]
    args = (keys.id, seen, FORMAT, position, len(gone), *gone, *content)
    return bool(await script("save_history")(redis, (keys.record, keys.bins), args))


async def size(redis: Redis, keys: Keys) -> tuple[int, int]:
    """Return how many bins are kept, and the bytes that they take in Redis, about."""
    async with answering(), redis.pipeline(transaction=False) as pipe:
        pipe.hlen(keys.bins)
        pipe.memory_usage(keys.bins)
        fields, used = await pipe.execute()
    return max(int(fields) - 2, 0), int(used or 0)


async def add_mark(redis: Redis, keys: Keys, *, at: float | None, text: str, by: str) -> Mark:
    """Note something beside the history of a loop.

    Args:
        at: unix seconds; None: now.
    """
    mark = Mark(await now(redis) if at is None else at, "note", text)
    body = orjson.dumps({"v": FORMAT, "at": mark.at, "text": text, "by": by})
    async with answering():
        await redis.xadd(keys.marks, {"m": body}, maxlen=MOST_MARKS, approximate=True)
    return mark


async def read_marks(redis: Redis, keys: Keys) -> list[Mark]:
    """Return what people noted, and the alarms of the policies.

    Raises:
        NewerFormat: a newer version wrote one.
    """
    async with answering(), redis.pipeline(transaction=False) as pipe:
        pipe.xrevrange(keys.marks, count=MOST_MARKS)
        pipe.xrevrange(keys.alarms, count=MOST_MARKS)
        noted, alarms = await pipe.execute()
    marks = []
    for _, fields in noted:
        said = orjson.loads(fields[b"m"])
        check_format("a mark", said.get("v"))
        marks.append(Mark(said["at"], "note", said["text"]))
    for _, fields in alarms:
        said = orjson.loads(fields[b"alarm"])
        marks.append(Mark(said["at"], said["reaction"], f"{said['policy']}: {said['reaction']} after a change"))
    return marks


async def waiting(redis: Redis, keys: Keys, ends: Sequence[int], *, wait_ms: int) -> list[int]:
    """Count the decisions that wait, by the time at which their wait began.

    Args:
        ends: of spans of time that follow upon each other, in unix seconds: m + 1 of them, in order.
        wait_ms: the loop's wait time. A decision that was made under another one counts at another time.

    Returns:
        The m counts.
    """
    due = [ms + wait_ms for ms in await open_times(redis, [1000 * end for end in ends])]
    async with answering(), redis.pipeline(transaction=False) as pipe:
        for since, until in pairwise(due):
            pipe.zcount(keys.partition().pending, since, f"({until}")
        return [int(count) for count in await pipe.execute()]
