"""How much memory Redis has taken, and how much it may take."""

from __future__ import annotations

from typing import NamedTuple

from redis.asyncio import Redis

from service.store.connection import answering


class Memory(NamedTuple):
    """Bytes."""

    used: int
    limit: int  # `maxmemory`, or where that is 0 the memory of its machine; 0: it does not say


async def read_memory(redis: Redis) -> Memory:
    """Ask Redis for its memory.

    Raises:
        StoreUnavailable: Redis does not answer.
    """
    async with answering():
        about = await redis.info("memory")
    return Memory(int(about["used_memory"]), int(about.get("maxmemory") or about.get("total_system_memory") or 0))
