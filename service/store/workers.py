"""Which processes are alive, which data they work on, and which API worker serves which epoch of a loop."""

from __future__ import annotations

import asyncio
import time
from uuid import uuid4

from redis.asyncio import Redis

from service.store.connection import answering, now
from service.store.keys import LEARNER, STORE, WORKERS, Keys

WORKER_TTL_S = 3.0  # a worker that has not been heard of for so long does not count as live
LEARNER_TTL_MS = 10_000


async def store_identity(redis: Redis) -> str:
    """Return the identity of the data in Redis; it is made when there is none."""
    async with answering():
        await redis.set(STORE, uuid4().hex, nx=True)
        identity: bytes = await redis.get(STORE)
        return identity.decode()


async def read_identity(redis: Redis) -> str | None:
    """Return the identity of the data in Redis, None when it holds none of ours."""
    async with answering():
        identity = await redis.get(STORE)
        return identity.decode() if identity else None


async def sign_off(redis: Redis, worker: str) -> None:
    """Say that an API worker stops, so that no call waits for it."""
    async with answering():
        await redis.zrem(WORKERS, worker)


async def live_workers(redis: Redis) -> set[str]:
    """Return the API workers that were heard of lately."""
    at = await now(redis)
    async with answering():
        names = await redis.zrangebyscore(WORKERS, at - WORKER_TTL_S, "+inf")
    return {name.decode() for name in names}


async def adopt(redis: Redis, keys: Keys, worker: str, epoch: int) -> None:
    """Say that a worker serves this epoch of a loop."""
    async with answering():
        await redis.hset(keys.adopted, worker, epoch)


async def adopted(redis: Redis, keys: Keys, epoch: int, *, within_s: float = 10.0) -> tuple[list[str], list[str]]:
    """Wait until every live worker serves `epoch` of the loop; return those that do, and the live ones that do not."""
    deadline = time.monotonic() + within_s
    pause = 0.002
    while True:
        live = await live_workers(redis)
        async with answering():
            epochs = {worker.decode(): int(at) for worker, at in (await redis.hgetall(keys.adopted)).items()}
            there = {worker for worker, at in epochs.items() if at >= epoch}
            if gone := epochs.keys() - live:
                await redis.hdel(keys.adopted, *gone)
        if live <= there or time.monotonic() > deadline:
            return sorted(live & there), sorted(live - there)
        await asyncio.sleep(pause)
        pause = min(pause * 1.5, 0.05)


async def learner_heartbeat(redis: Redis) -> None:
    """Say that a learner is at work."""
    async with answering():
        await redis.set(LEARNER, 1, px=LEARNER_TTL_MS)


async def learner_alive(redis: Redis) -> bool:
    """Return whether a learner has been heard of lately."""
    async with answering():
        return bool(await redis.exists(LEARNER))
