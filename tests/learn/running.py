"""A learner at work for the time of a test, and a runner of one policy."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from redis.asyncio import Redis

from service.learn.learner import Learner
from service.learn.runner import PolicyRunner
from service.settings import Settings
from service.store.keys import Keys


@asynccontextmanager
async def running(redis: Redis, settings: Settings) -> AsyncIterator[Learner]:
    """Run a learner."""
    stop, found = asyncio.Event(), Learner(redis, settings)
    task = asyncio.create_task(found.run(stop))
    try:
        yield found
    finally:
        stop.set()
        await asyncio.wait_for(task, 30)


async def opened(redis: Redis, keys: Keys, settings: Settings, name: str = "linucb") -> PolicyRunner:
    """Open a runner, as if the one before had died."""
    await redis.delete(keys.lease(name))
    found = PolicyRunner(redis, keys, name, settings)
    assert await found.open()
    return found
