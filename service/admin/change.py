"""How an administrator's change is made: look, decide, write if nobody else wrote meanwhile; else look again."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

from redis.asyncio import Redis

from service.errors import StaleEpoch
from service.records import LoopRecord
from service.store import loop_store

TRIES = 200  # of one change; each lost try means that somebody else's change went through


async def change(redis: Redis, loop: str, attempt: Callable[[LoopRecord], Awaitable[int]]) -> tuple[LoopRecord, int]:
    """Carry out one change of a loop.

    Args:
        attempt: makes the change from the loop as it is seen; returns the new epoch, or raises StaleEpoch.

    Returns:
        The loop as the change saw it, and its new epoch.

    Raises:
        NotFound: there is no such loop.
        StaleEpoch: others changed the loop at every try.
    """
    for left in reversed(range(TRIES)):
        seen = await loop_store.read_loop(redis, loop)
        try:
            return seen, await attempt(seen)
        except StaleEpoch:
            if not left:
                raise
            await asyncio.sleep(random.uniform(0, 0.01))  # or the same two meet again
    raise AssertionError("unreachable")
