"""Waits until every live worker serves a change, so that a client reads its own writes whichever worker answers."""

from __future__ import annotations

from dataclasses import dataclass

from redis.asyncio import Redis

from service.serve.follower import Follower
from service.store import workers
from service.store.keys import Keys


@dataclass(frozen=True)
class Adoption:
    """Which live workers serve a change, and which do not yet."""

    epoch: int
    there: list[str]
    missing: list[str]


async def adoption(redis: Redis, follower: Follower, keys: Keys, epoch: int) -> Adoption:
    """Wait for all live workers to serve this epoch of a loop, for 10 s at most."""
    follower.nudge(keys.loop)
    return Adoption(epoch, *await workers.adopted(redis, keys, epoch))
