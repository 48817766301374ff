"""Learned embeddings of a loop, in Redis: one hash at the loop's home, the newest version alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson
from redis.asyncio import Redis

from service.records import START
from service.store.codec import FORMAT, check_format, digest_of
from service.store.connection import answering, script
from service.store.keys import CHANGES, Keys

LEASE = "@embedding"  # stands where leases of policies do; no policy has such a name


@dataclass(frozen=True)
class EmbeddingRecord:
    """The embeddings of a loop as its home holds them."""

    version: int = 0  # 0: nothing was published yet
    position: str = START  # the last entry of the log when they were trained
    state: bytes | None = None  # None: nothing was published yet, or they were withdrawn


@dataclass(frozen=True)
class EmbeddingSummary:
    """The same, for people, and to see whether it is time for a training."""

    version: int
    events: int  # appended to the log when they were trained; 0: they were withdrawn
    rewarded: int  # that they were trained on
    bytes: int
    published: float  # unix seconds
    judged: Mapping[str, Any] | None  # version, events, recall, popular: of the version before; None: not judged


async def read_embedding(redis: Redis, keys: Keys) -> EmbeddingRecord:
    """Read the newest version; an empty one where there is none.

    Raises:
        ValueError: these are not the bytes that were published.
        NewerFormat: a newer version of Rebound wrote it.
    """
    async with answering():
        v, version, position, digest, state = await redis.hmget(
            keys.embedding, "v", "version", "position", "digest", "state"
        )
    if version is None:
        return EmbeddingRecord()
    check_format(f"the embeddings of loop {keys.loop!r}", v)
    if not state:
        return EmbeddingRecord(int(version))
    if digest_of(state) != digest:
        raise ValueError("these are not the bytes that were published")
    return EmbeddingRecord(int(version), position.decode(), state)


async def read_summary(redis: Redis, keys: Keys) -> EmbeddingSummary | None:
    """Describe the newest version; None where there is none."""
    async with answering():
        version, events, rewarded, published, judged = await redis.hmget(
            keys.embedding, "version", "events", "rewarded", "published", "judged"
        )
        size = await redis.hstrlen(keys.embedding, "state")
    if version is None:
        return None
    told = orjson.loads(judged) if judged else None
    return EmbeddingSummary(int(version), int(events), int(rewarded), int(size), int(published) / 1000, told)


async def save_embedding(
    redis: Redis,
    keys: Keys,
    *,
    seen: int,
    position: str,
    events: int,
    rewarded: int,
    state: bytes,
    judged: Mapping[str, Any] | None = None,
) -> bool:
    """Publish the version after `seen`, if that is the newest; False when it is not, or the loop is gone."""
    fields: dict[str, str | bytes | int] = {
        "v": FORMAT,
        "position": position,
        "events": events,
        "rewarded": rewarded,
        "digest": digest_of(state),
        "state": state,
        "judged": b"" if judged is None else orjson.dumps(judged),
    }
    args = [part for pair in fields.items() for part in pair]
    keys_of_script = (keys.record, keys.embedding)
    return bool(await script("save_retrieval")(redis, keys_of_script, (keys.id, seen, CHANGES, keys.loop, *args)))


async def withdraw(redis: Redis, keys: Keys) -> None:
    """Publish that there are none, if there are: a user is erased whose events they have learned.

    A training that began before cannot publish any more.
    """
    while (found := await read_summary(redis, keys)) is not None:
        if await save_embedding(redis, keys, seen=found.version, position=START, events=0, rewarded=0, state=b""):
            return
        async with answering():
            if not await redis.exists(keys.record):
                return
