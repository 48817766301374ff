"""A learner at work for the time of a test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from redis.asyncio import Redis

from service.learn.learner import Learner
from service.settings import Settings


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
