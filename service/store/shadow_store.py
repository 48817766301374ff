"""What is known of a loop's shadow policies, in Redis: one hash at the loop's home, which goes with the loop."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson
from redis.asyncio import Redis

from service.records import START
from service.store.codec import FORMAT, check_format
from service.store.connection import answering, script
from service.store.keys import Keys

LEASE = "@shadows"  # stands where leases of policies do; no policy has such a name


async def read_position(redis: Redis, keys: Keys) -> str:
    """Return the position of the last entry of the log that was looked at, START where there is none."""
    async with answering():
        position = await redis.hget(keys.shadows, "position")
    return START if position is None else str(position.decode())


async def read_state(redis: Redis, keys: Keys) -> tuple[str, dict[str, Any]]:
    """Return that position, and policy -> what is known of it, as `Shadow.state` says it.

    Raises:
        NewerFormat: a newer version wrote it.
    """
    async with answering():
        v, position, state = await redis.hmget(keys.shadows, "v", "position", "state")
    if position is None:
        return START, {}
    check_format(f"what is known of the shadows of loop {keys.loop!r}", v)
    return position.decode(), orjson.loads(state)


async def read_estimates(redis: Redis, keys: Keys) -> dict[str, dict[str, Any]]:
    """Return policy -> what is said of it; policies that are no shadow any more are left out."""
    async with answering():
        said = await redis.hget(keys.shadows, "said")
    return {} if said is None else dict(orjson.loads(said))


async def save(
    redis: Redis,
    keys: Keys,
    *,
    seen: str,
    position: str,
    state: Mapping[str, Mapping[str, Any]],
    said: Mapping[str, Mapping[str, Any]],
) -> bool:
    """Write it, if it still stands at position `seen`; False when it does not, or the loop is gone."""
    fields: dict[str, str | bytes | int] = {
        "v": FORMAT,
        "position": position,
        "state": orjson.dumps(state),
        "said": orjson.dumps(said),
    }
    args = [part for pair in fields.items() for part in pair]
    return bool(await script("save_fold")(redis, (keys.record, keys.shadows), (keys.id, seen, *args)))
