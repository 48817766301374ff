"""The profile of a loop in Redis: one hash at the loop's home, which goes with the loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from redis.asyncio import Redis

from service.records import START
from service.store.codec import FORMAT, check_format
from service.store.connection import answering, script
from service.store.keys import Keys

LEASE = "@profile"  # stands where leases of policies do; no policy has such a name


@dataclass(frozen=True)
class ProfileRecord:
    """A profile as its loop's home holds it."""

    position: str = START  # the last entry of the log that it has counted
    events: int = 0  # counted
    state: bytes | None = None  # None: nothing was counted yet


async def read_profile(redis: Redis, keys: Keys) -> ProfileRecord:
    """Read the profile; an empty one where there is none.

    Raises:
        NewerFormat: a newer version wrote it.
    """
    async with answering():
        v, position, events, state = await redis.hmget(keys.profile, "v", "position", "events", "state")
    if position is None:
        return ProfileRecord()
    check_format(f"the profile of loop {keys.loop!r}", v)
    return ProfileRecord(position.decode(), int(events), state)


async def read_position(redis: Redis, keys: Keys) -> str:
    """Return the position of the last entry that the profile has counted, START where there is none."""
    async with answering():
        position = await redis.hget(keys.profile, "position")
    return START if position is None else position.decode()


async def save_profile(
    redis: Redis, keys: Keys, *, seen: str, record: ProfileRecord, notices: Sequence[Mapping[str, Any]]
) -> bool:
    """Write the profile, if it still stands at position `seen`; False when it does not, or the loop is gone."""
    fields: dict[str, str | bytes | int] = {
        "v": FORMAT,
        "position": record.position,
        "events": record.events,
        "state": record.state or b"",
        "notices": orjson.dumps(notices),
    }
    args = [part for pair in fields.items() for part in pair]
    return bool(await script("save_fold")(redis, (keys.record, keys.profile), (keys.id, seen, *args)))


async def drop_profile(redis: Redis, keys: Keys) -> None:
    """Forget the profile: it is made again from the retained log."""
    async with answering():
        await redis.delete(keys.profile)


async def read_summary(redis: Redis, keys: Keys) -> tuple[int, list[dict[str, Any]], int]:
    """Return how many events the profile has counted, its notices, and the bytes of its state."""
    async with answering():
        events, notices = await redis.hmget(keys.profile, "events", "notices")
        size = await redis.hstrlen(keys.profile, "state")
    return int(events or 0), orjson.loads(notices) if notices else [], int(size)
