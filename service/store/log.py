"""The event log in Redis: one ordered stream a loop, the learner's only input."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress

import orjson
from redis.asyncio import Redis

from service.store.connection import Script, script
from service.store.keys import Keys
from service.store.loops import answering

START = "0-0"  # before the first entry

Entry = tuple[str, Mapping[bytes, bytes]]


async def append_imported(redis: Redis, loop: str, events: Sequence[tuple[str, bytes, bytes, float]]) -> int:
    """Append (event id, e, x, reward) rows that are not there yet, atomically; how many were new."""
    keys = Keys(loop)
    args: list[str | bytes] = []
    for event_id, e, x, reward in events:
        args += (event_id, e, x, repr(reward))
    run: Script = script("import")
    return int(await run(redis, (keys.imported, keys.events, keys.stats), args))


async def append_training(redis: Redis, loop: str, policy: str) -> str:
    """Ask `policy`, at this place in the log, to train on all that stands before; the position."""
    async with answering():
        position: bytes = await redis.xadd(Keys(loop).events, {"c": b'{"train":"' + policy.encode() + b'"}'})
    return position.decode()


async def read(redis: Redis, loop: str, after: str, *, most: int = 1000, until: str = "+") -> list[Entry]:
    """Entries after a position, in order, up to and including `until`."""
    async with answering():
        entries = await redis.xrange(Keys(loop).events, min=f"({after}", max=until, count=most)
    return [(position.decode(), fields) for position, fields in entries]


async def wait(redis: Redis, loop: str, after: str, *, within_ms: int, most: int = 1000) -> list[Entry]:
    """Like `read`, but waits up to `within_ms` for a first entry."""
    async with answering():
        answer = await redis.xread({Keys(loop).events: after}, count=most, block=within_ms)
    if not answer:
        return []
    ((_, entries),) = answer.items() if isinstance(answer, dict) else answer
    if entries and isinstance(entries[0], list):  # RESP3 wraps the entries once more
        (entries,) = entries
    return [(position.decode(), fields) for position, fields in entries]


async def scan(redis: Redis, loop: str, *, until: str = "+", batch: int = 1000) -> AsyncIterator[list[Entry]]:
    """The whole retained log in batches, up to and including `until`."""
    after = START
    while entries := await read(redis, loop, after, most=batch, until=until):
        yield entries
        after = entries[-1][0]


async def newest_decisions(redis: Redis, loop: str) -> AsyncIterator[str]:
    """Decision ids of the log's events, newest first; an id comes once for each event."""
    until = "+"
    while True:
        async with answering():
            entries = await redis.xrevrange(Keys(loop).events, max=until, count=1000)
        for _, fields in entries:
            if b"e" in fields:
                with suppress(ValueError, KeyError, TypeError):
                    yield str(orjson.loads(fields[b"e"])["decision_id"])
        if not entries:
            return
        until = f"({entries[-1][0].decode()}"


async def dead_letter(redis: Redis, loop: str, position: str, why: str) -> None:
    """Set an undecodable entry aside, once however many policies meet it."""
    keys = Keys(loop)
    async with answering():
        if await redis.hsetnx(keys.dead, position, why):
            await redis.hincrby(keys.stats, "dead_letters", 1)


async def trim(redis: Redis, loop: str, *, keep: int, read_to: Sequence[str]) -> None:
    """Drop the oldest entries beyond `keep`, but none that a policy has still to read."""
    keys = Keys(loop)
    async with answering():
        excess = await redis.xlen(keys.events) - keep
        if excess < keep // 100 + 1:  # not worth a pass
            return
        oldest = await redis.xrange(keys.events, count=excess + 1)
        floor = min(oldest[-1][0].decode(), min(read_to, key=order, default=oldest[-1][0].decode()), key=order)
        going = [fields for position, fields in oldest if order(position.decode()) < order(floor)]
        await redis.xtrim(keys.events, minid=floor, approximate=False)
        await redis.hincrby(keys.stats, "trimmed", sum(b"c" not in fields for fields in going))


async def read_stats(redis: Redis, loop: str) -> dict[str, int]:
    """The loop's counters, and how many decisions still wait for their feedback."""
    keys = Keys(loop)
    async with answering():
        stats = {name.decode(): int(value) for name, value in (await redis.hgetall(keys.stats)).items()}
        stats["pending"] = await redis.zcard(keys.pending)
    return stats


def order(position: str) -> tuple[int, int]:
    """Positions compare as numbers, not as text."""
    ms, sequence = position.split("-")
    return int(ms), int(sequence)
