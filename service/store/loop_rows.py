"""All that a loop keeps in Redis as rows, for a backup; and rows as the keys of another loop."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Collection, Sequence
from itertools import islice
from typing import Any, NamedTuple

import orjson
from redis.asyncio import Redis

from service.store.connection import answering
from service.store.keys import Keys

HOME = "home"
AT_ONCE = 200  # keys that are read or written in one round trip
PART = 500  # members of one row; a key with more has several rows
LEFT_OUT = ("lease:", "adopted", "events-kept", "activity-log-kept")  # who works on the loop now, and what is not whole


class Row(NamedTuple):
    """One key of a loop, or a part of it."""

    room: str  # `home`, or the number of a partition
    key: str  # what follows the room's prefix
    type: str  # string | hash | list | set | zset | stream
    ttl: int | None  # ms that it had left
    # string: [value]; list, set: members; hash: (field, value); zset: (member, score); stream: (id, [field, value, …])
    value: Sequence[Any]


class BadRow(ValueError):
    """A row that this version did not write."""


def _prefixes(keys: Keys) -> dict[str, str]:
    return {HOME: keys.home, "0": keys.partition(0).prefix}


async def read_rows(redis: Redis, keys: Keys) -> AsyncIterator[Row]:
    """Read every key of a loop but its record. Nobody may write meanwhile.

    Raises:
        StoreUnavailable: Redis does not answer.
    """
    for room, prefix in _prefixes(keys).items():
        async with answering():
            names = sorted({key async for key in redis.scan_iter(match=prefix + "*", count=1000)})
        for start in range(0, len(names), AT_ONCE):
            some = names[start : start + AT_ONCE]
            async with answering(), redis.pipeline(transaction=False) as pipe:
                for name in some:
                    pipe.type(name).pttl(name)
                found = await pipe.execute()
            for name, sort, ttl in zip(some, found[::2], found[1::2], strict=True):
                key = name.decode().removeprefix(prefix)
                if not key.startswith(LEFT_OUT):
                    async for value in _values(redis, name, sort.decode()):
                        yield Row(room, key, sort.decode(), ttl if ttl >= 0 else None, value)


async def _values(redis: Redis, name: bytes, sort: str) -> AsyncIterator[Sequence[Any]]:
    """Read one key in parts."""
    async with answering():
        match sort:
            case "string":
                if (value := await redis.get(name)) is not None:
                    yield [value]
            case "hash":
                for part in _parts(sorted((await redis.hgetall(name)).items())):
                    yield part
            case "list":
                for part in _parts(await redis.lrange(name, 0, -1)):
                    yield part
            case "set":
                for part in _parts(sorted(await redis.smembers(name))):
                    yield part
            case "zset":
                for start in range(0, await redis.zcard(name), PART):
                    yield await redis.zrange(name, start, start + PART - 1, withscores=True)
            case "stream":
                after = "-"
                while entries := await redis.xrange(name, min=after, count=PART):
                    yield [(place, [part for pair in fields.items() for part in pair]) for place, fields in entries]
                    after = f"({entries[-1][0].decode()}"


def _parts(members: Any) -> list[list[Any]]:
    left, parts = iter(members), []
    while part := list(islice(left, PART)):
        parts.append(part)
    return parts


async def search(redis: Redis, keys: Keys, spellings: Collection[bytes]) -> Counter[str]:
    """Return in how many places a loop holds one of these texts, by sort of key: what stands before its first colon.

    A place is a member of a list, set or stream, or the value of a field. All that the loop keeps is read.
    """
    found: Counter[str] = Counter()
    for prefix in _prefixes(keys).values():
        async with answering():
            async for name in redis.scan_iter(match=prefix + "*", count=1000):
                sort = name.decode().removeprefix(prefix).partition(":")[0]
                async for members in _values(redis, name, (await redis.type(name)).decode()):
                    for member in members:
                        parts = member[1] if isinstance(member, tuple) else member
                        text = b"".join(parts) if isinstance(parts, list) else parts
                        found[sort] += isinstance(text, bytes) and any(spelled in text for spelled in spellings)
    return +found


async def write_rows(redis: Redis, keys: Keys, rows: Sequence[Row], *, later_ms: int) -> None:
    """Write rows as keys of a loop that is not there yet.

    Args:
        later_ms: added to the deadlines of decisions, and of early reports: nobody could report or decide while the
            loop was gone.

    Raises:
        BadRow: a row is none that `read_rows` gives.
        StoreUnavailable: Redis does not answer.
    """
    prefixes = _prefixes(keys)
    async with answering(), redis.pipeline(transaction=False) as pipe:
        for row in rows:
            if row.room not in prefixes:
                raise BadRow(f"there is no room {row.room!r}")
            _write(pipe, prefixes[row.room] + row.key, _shifted(row, later_ms))
        await pipe.execute()


def _write(pipe: Any, name: str, row: Row) -> None:
    match row.type:
        case "string":
            pipe.set(name, row.value[0])
        case "hash":
            pipe.hset(name, mapping=dict(row.value))
        case "list":
            pipe.rpush(name, *row.value)
        case "set":
            pipe.sadd(name, *row.value)
        case "zset":
            pipe.zadd(name, dict(row.value))
        case "stream":
            for place, parts in row.value:
                pipe.execute_command("XADD", name, place, *parts)
        case _:
            raise BadRow(f"{row.key}: there is no type {row.type!r}")
    if row.ttl is not None:
        pipe.pexpire(name, row.ttl)


def _shifted(row: Row, later_ms: int) -> Row:
    """Move deadlines. They lie in `pending` and in each decision, those of early reports in `early-due` and in each."""
    if row.room == HOME:
        return row
    if row.key in ("pending", "early-due"):
        return row._replace(value=[(decision, deadline + later_ms) for decision, deadline in row.value])
    if row.key.startswith("decision:"):
        later = [(field, b"%d" % (int(v) + later_ms) if field == b"deadline" else v) for field, v in row.value]
        return row._replace(value=later)
    if row.key.startswith("early:"):
        reports = map(orjson.loads, row.value)
        return row._replace(value=[orjson.dumps([str(int(due) + later_ms), *rest]) for due, *rest in reports])
    return row
