"""The event log in Redis: one ordered stream a partition, the learner's only input."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TypeAlias

import orjson
from redis.asyncio import Redis

from service.records import START, Entry, PolicyRecord, Unreadable, order
from service.store.announcements import announce_use
from service.store.codec import read_entries, retry_body, training_body
from service.store.connection import answering, script
from service.store.keys import Keys

Decode: TypeAlias = Callable[[Sequence[tuple[bytes, Mapping[bytes, bytes]]]], list[Entry]]

TRIMMED_AT_ONCE = 10_000  # entries that one pass reads and drops


async def append_imported(
    redis: Redis, keys: Keys, events: Sequence[tuple[str, bytes, bytes, float, int | None]], *, remember: int
) -> int | None:
    """Append (event id, e, x, reward, time in ms) rows that are not there yet, all or nothing.

    Args:
        events: oldest first.
        remember: event ids of imports that are kept, to know a repeat by.

    Returns:
        How many were new; None where a new one is older than what was imported before.
    """
    part = keys.partition()
    args: list[str | bytes | int] = [remember]
    for event_id, e, x, reward, at in events:
        args += (event_id, e, x, repr(reward), "" if at is None else at)
    appended = int(await script("import_events")(redis, (part.imported, part.events, part.stats), args))
    async with answering():
        await announce_use(redis, keys.loop)
    return None if appended < 0 else appended


async def first_too_old(redis: Redis, keys: Keys, events: Sequence[tuple[str, int]]) -> int | None:
    """Return which of these (event id, time in ms) `append_imported` would refuse first; None: it takes all."""
    part = keys.partition()
    async with answering():
        reached = await redis.hget(part.stats, "imported_to")
        older = [] if reached is None else [number for number, (_, at) in enumerate(events) if at < int(reached)]
        if not older:
            return None
        known = await redis.zmscore(part.imported, [events[number][0] for number in older])
    return next((number for number, score in zip(older, known, strict=True) if score is None), None)


async def append_training(redis: Redis, keys: Keys, policy: str, policy_id: str) -> str:
    """Ask `policy`, at this place in the log, to train on all that stands before; return the position."""
    async with answering():
        position: bytes = await redis.xadd(keys.partition().events, {"c": training_body(policy, policy_id)})
        await announce_use(redis, keys.loop)
    return position.decode()


async def append_retries(redis: Redis, keys: Keys, policy: str, policy_id: str, positions: Sequence[str]) -> int:
    """Have `policy` learn the events at these positions once more; return how many the log still holds."""
    events = keys.partition().events
    async with answering():
        async with redis.pipeline(transaction=False) as pipe:
            for position in positions:
                pipe.xrange(events, min=position, max=position)
            found = [entry for entries in await pipe.execute() for entry in entries]
        async with redis.pipeline(transaction=True) as pipe:
            for position, fields in found:
                pipe.xadd(events, {**fields, b"c": retry_body(policy, policy_id, position.decode())})
            await pipe.execute()
        await announce_use(redis, keys.loop)
    return len(found)


async def held(redis: Redis, keys: Keys, positions: Sequence[str]) -> set[str]:
    """Return those of these positions at which the log still holds an entry."""
    if not positions:
        return set()
    async with answering(), redis.pipeline(transaction=False) as pipe:
        for position in positions:
            pipe.xrange(keys.partition().events, min=position, max=position)
        found = await pipe.execute()
    return {position for position, entries in zip(positions, found, strict=True) if entries}


async def newest_erasure(redis: Redis, keys: Keys) -> str:
    """Return the position of the newest erasure that the log ever held, START where there was none."""
    async with answering():
        position = await redis.hget(keys.partition().erasure, "newest")
    return START if position is None else position.decode()


async def read(
    redis: Redis, keys: Keys, after: str, *, most: int = 1000, until: str = "+", decode: Decode = read_entries
) -> list[Entry]:
    """Read entries after a position, in order, up to and including `until`.

    Args:
        decode: turns what Redis answers into entries, as `read_entries` does.

    Raises:
        NewerFormat: the next entry was written by a newer version.
    """
    async with answering():
        entries = await redis.xrange(keys.partition().events, min=f"({after}", max=until, count=most)
    return decode(entries)


async def wait(
    redis: Redis, keys: Keys, after: str, *, within_ms: int, most: int = 1000, decode: Decode = read_entries
) -> list[Entry]:
    """Read like `read`, but wait up to `within_ms` for a first entry."""
    async with answering():
        answer = await redis.xread({keys.partition().events: after}, count=most, block=within_ms)
    if not answer:
        return []
    ((_, entries),) = answer.items() if isinstance(answer, dict) else answer
    if entries and isinstance(entries[0], list):  # RESP3 wraps the entries once more
        (entries,) = entries
    return decode(entries)


async def ends(redis: Redis, loops: Sequence[Keys]) -> list[str]:
    """Return the position of the last entry of each loop's log, START where there is none."""
    async with answering(), redis.pipeline(transaction=False) as pipe:
        for keys in loops:
            pipe.xrevrange(keys.partition().events, count=1)
        found = await pipe.execute()
    return [entries[0][0].decode() if entries else START for entries in found]


async def scan(
    redis: Redis, keys: Keys, *, until: str = "+", batch: int = 1000, newest: int | None = None
) -> AsyncIterator[list[Entry]]:
    """Read the retained log in batches, up to and including `until`; of its events the `newest`, if given, else all."""
    after = START if newest is None else await _before_newest(redis, keys, newest, until=until)
    while entries := await read(redis, keys, after, most=batch, until=until):
        yield entries
        after = entries[-1].position


async def _before_newest(redis: Redis, keys: Keys, events: int, *, until: str) -> str:
    """Return the position after which the log holds so many events up to `until`, START where it holds fewer."""
    found = 0
    while True:
        async with answering():
            entries = await redis.xrevrange(keys.partition().events, max=until, count=1000)
        for position, fields in entries:
            found += b"e" in fields and b"c" not in fields
            if found > events:
                return str(position.decode())
        if not entries:
            return START
        until = f"({entries[-1][0].decode()}"


def scan_in_thread(
    redis: Redis, keys: Keys, *, until: str, loop: asyncio.AbstractEventLoop, newest: int | None = None
) -> Iterator[list[Entry]]:
    """Read like `scan`, from another thread than that of the event loop; entries are held a batch at a time.

    Args:
        loop: runs meanwhile, and belongs to `redis`.
    """
    batches = scan(redis, keys, until=until, newest=newest)

    async def following() -> list[Entry] | None:
        return await anext(batches, None)

    while (entries := asyncio.run_coroutine_threadsafe(following(), loop).result()) is not None:
        yield entries


async def size(redis: Redis, keys: Keys) -> int:
    """Return the number of entries that the log retains."""
    async with answering():
        return int(await redis.xlen(keys.partition().events))


async def newest_decisions(redis: Redis, keys: Keys) -> AsyncIterator[str]:
    """Yield decision ids of the log's events, newest first; an id comes once for each event."""
    until = "+"
    while True:
        async with answering():
            entries = await redis.xrevrange(keys.partition().events, max=until, count=1000)
        for _, fields in entries:
            if b"e" in fields:
                with suppress(ValueError, KeyError, TypeError):
                    yield str(orjson.loads(fields[b"e"])["decision_id"])
        if not entries:
            return
        until = f"({entries[-1][0].decode()}"


async def set_aside(redis: Redis, keys: Keys, letters: Sequence[Unreadable]) -> None:
    """Put entries among the dead letters, each once however many policies meet it."""
    part = keys.partition()
    async with answering():
        for letter in letters:
            if await redis.hsetnx(part.dead, letter.position, letter.why):
                await redis.hincrby(part.stats, "dead_letters", 1)


async def trim(redis: Redis, keys: Keys, *, keep: int, read_to: Sequence[str]) -> None:
    """Drop the oldest entries beyond `keep`, but none that a policy has still to read.

    A dead letter is kept for as long as its entry.
    """
    part = keys.partition()
    async with answering():
        excess = await redis.xlen(part.events) - keep
        if excess < keep // 100 + 1:  # not worth a pass
            return
        oldest = await redis.xrange(part.events, count=min(excess, TRIMMED_AT_ONCE) + 1)
        if not oldest:  # the loop was deleted this very moment
            return
        floor = min([oldest[-1][0].decode(), *read_to], key=order)
        going = [fields for position, fields in oldest if order(position.decode()) < order(floor)]
        dead = [position for position in await redis.hkeys(part.dead) if order(position.decode()) < order(floor)]
    if going:
        events = sum(b"c" not in fields for fields in going)
        args = (oldest[0][0], floor, events, *dead)
        await script("trim_log")(redis, (part.events, part.stats, part.dead), args)


async def read_stats(redis: Redis, keys: Keys) -> dict[str, int]:
    """Return the loop's counters, how many decisions still wait for their feedback, and reports for their decision."""
    part = keys.partition()
    async with answering():
        stats = {name.decode(): int(value) for name, value in (await redis.hgetall(part.stats)).items()}
        stats["pending"] = await redis.zcard(part.pending)
    stats["early_waiting"] = stats.get("early", 0) - stats.get("found", 0) - stats.get("unknown", 0)
    return stats


def lag(stats: Mapping[str, int], policy: PolicyRecord) -> int:
    """Return how many events of the log a policy has still to learn."""
    return max(0, stats.get("events", 0) - policy.skipped - policy.events)


async def count_misfits(redis: Redis, keys: Keys, counts: dict[str, int]) -> None:
    """Add to the counts of values that the encoder could not use, by `side/field/reason`."""
    async with answering(), redis.pipeline(transaction=False) as pipe:
        for name, count in counts.items():
            pipe.hincrby(keys.partition().misfits, name, count)
        await pipe.execute()


async def read_misfits(redis: Redis, keys: Keys) -> dict[str, int]:
    """Return the counts of values that the encoder could not use, by `side/field/reason`."""
    async with answering():
        found = await redis.hgetall(keys.partition().misfits)
    return {name.decode(): int(count) for name, count in found.items()}
