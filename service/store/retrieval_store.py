"""What a loop's sources are made from, in Redis: one hash at the loop's home, the newest version alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from redis.asyncio import Redis

from service.records import START
from service.store.codec import FORMAT, check_format, digest_of
from service.store.connection import answering, script
from service.store.keys import CHANGES, Keys

LEASE = "@retrieval"  # stands where leases of policies do; no policy has such a name


@dataclass(frozen=True)
class RetrievalRecord:
    """The counts of a loop as its home holds them."""

    version: int = 0  # 0: nothing was published yet
    position: str = START  # the last entry of the log that is counted
    state: bytes | None = None  # None: nothing was published yet, or these are not the bytes that were published


@dataclass(frozen=True)
class RetrievalSummary:
    """The same, for people."""

    version: int
    events: int  # counted
    items: int  # known
    together: int  # of which it is known what is taken with them
    bytes: int
    published: float  # unix seconds


async def read_retrieval(redis: Redis, keys: Keys) -> RetrievalRecord:
    """Read the newest version; an empty one where there is none.

    Raises:
        NewerFormat: a newer version of Rebound wrote it.
    """
    async with answering():
        v, version, position, digest, state = await redis.hmget(
            keys.retrieval, "v", "version", "position", "digest", "state"
        )
    if version is None:
        return RetrievalRecord()
    check_format(f"what the sources of loop {keys.loop!r} are made from", v)
    if state is None or digest_of(state) != digest:
        return RetrievalRecord(int(version))
    return RetrievalRecord(int(version), position.decode(), state)


async def read_reach(redis: Redis, keys: Keys) -> tuple[str, int, str]:
    """Return what the newest version counts: up to which entry of the log, version of the catalogue, and activity."""
    async with answering():
        position, catalogue, activity = await redis.hmget(keys.retrieval, "position", "catalogue", "activity")
    if position is None:
        return START, 0, START
    return position.decode(), int(catalogue), START if activity is None else activity.decode()


async def read_versions(redis: Redis, loops: Sequence[Keys]) -> list[tuple[int, int]]:
    """Return the newest version of each loop's counts, and of its learned embeddings; 0 where there is none."""
    async with answering(), redis.pipeline(transaction=False) as pipe:
        for keys in loops:
            pipe.hget(keys.retrieval, "version").hget(keys.embedding, "version")
        found = [int(version or 0) for version in await pipe.execute()]
    return list(zip(found[::2], found[1::2], strict=True))


async def read_summary(redis: Redis, keys: Keys) -> RetrievalSummary | None:
    """Describe the newest version; None where there is none."""
    async with answering():
        version, events, items, together, published = await redis.hmget(
            keys.retrieval, "version", "events", "items", "together", "published"
        )
        size = await redis.hstrlen(keys.retrieval, "state")
    if version is None:
        return None
    return RetrievalSummary(int(version), int(events), int(items), int(together or 0), int(size), int(published) / 1000)


async def save_retrieval(
    redis: Redis,
    keys: Keys,
    *,
    seen: int,
    position: str,
    catalogue: int,
    activity: str,
    events: int,
    items: int,
    together: int,
    state: bytes,
) -> bool:
    """Publish the version after `seen`, if that is the newest; False when it is not, or the loop is gone."""
    fields: dict[str, str | bytes | int] = {
        "v": FORMAT,
        "position": position,
        "catalogue": catalogue,
        "activity": activity,
        "events": events,
        "items": items,
        "together": together,
        "digest": digest_of(state),
        "state": state,
    }
    args = [part for pair in fields.items() for part in pair]
    keys_of_script = (keys.record, keys.retrieval)
    return bool(await script("save_retrieval")(redis, keys_of_script, (keys.id, seen, CHANGES, keys.loop, *args)))
