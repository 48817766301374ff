"""The process `rebound learn`: a runner for every policy of every loop, a sweeper and a profiler for each loop."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable
from contextlib import suppress

import structlog
from redis.asyncio import Redis

from service.errors import NotFound, StoreUnavailable, UnreadableRecord
from service.learn.profiler import Profiler
from service.learn.runner import PolicyRunner
from service.learn.sweeper import Sweeper
from service.settings import Settings
from service.store import loop_store, policy_store, workers
from service.store.codec import NewerFormat
from service.store.connection import connect
from service.store.keys import Keys
from service.store.profile_store import LEASE as PROFILE
from service.store.upgrade import upgrade

PERIOD_S = 0.5

log = structlog.get_logger()


class Learner:
    """Starts a task for whatever is new. Tasks of what is gone end by themselves."""

    def __init__(self, redis: Redis, settings: Settings) -> None:
        self._redis, self._settings = redis, settings
        self._tasks: dict[tuple[Keys, str], asyncio.Task[None]] = {}
        self._unreadable: set[str] = set()  # loops that cannot be read, each told once
        self._identity: str | None = None  # of the data, when it was first seen

    async def follow(self, stop: asyncio.Event) -> None:
        """Start a task for every loop and policy that has none.

        Raises:
            StoreUnavailable: Redis does not answer.
        """
        self._tasks = {key: task for key, task in self._tasks.items() if not task.done()}
        for name in await loop_store.loop_names(self._redis):
            try:
                record = await loop_store.read_loop(self._redis, name)
                self._unreadable.discard(name)
            except NotFound:  # deleted this very moment
                continue
            except (UnreadableRecord, NewerFormat) as error:
                if name not in self._unreadable:
                    log.error("loop cannot be read", loop=name, why=str(error))
                self._unreadable.add(name)
                continue
            keys = Keys(name, record.id)
            if (keys, "") not in self._tasks:
                self._tasks[keys, ""] = asyncio.create_task(Sweeper(self._redis, keys).run(stop))
            if (keys, PROFILE) not in self._tasks:
                self._tasks[keys, PROFILE] = asyncio.create_task(Profiler(self._redis, keys).run(stop))
            for policy in await policy_store.policy_names(self._redis, keys):
                if (keys, policy) not in self._tasks:
                    runner = PolicyRunner(self._redis, keys, policy, self._settings)
                    self._tasks[keys, policy] = asyncio.create_task(runner.run(stop))

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop`; then every policy is checkpointed and every lease let go."""
        await asyncio.gather(self._repeat(self._beat, stop), self._repeat(lambda: self._look(stop), stop))
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def _repeat(self, step: Callable[[], Awaitable[None]], stop: asyncio.Event) -> None:
        while not stop.is_set():
            with suppress(StoreUnavailable):
                await step()
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), PERIOD_S)

    async def _beat(self) -> None:
        """Say that this learner is at work. It does not wait for `_look`, which takes long with many loops."""
        if await self._data_is_ours():
            await workers.learner_heartbeat(self._redis)

    async def _look(self, stop: asyncio.Event) -> None:
        if await self._data_is_ours():
            await self.follow(stop)
            await loop_store.forget_deleted(self._redis)
        elif self._identity is not None:
            log.error("redis lost its data; nothing is learned until a person restarts the learner")

    async def _data_is_ours(self) -> bool:
        """Return whether Redis holds the data that this learner began with."""
        found = await workers.read_identity(self._redis)
        self._identity = self._identity or found
        return found is not None and found == self._identity


async def run(settings: Settings) -> None:
    """Run a learner until SIGTERM or SIGINT."""
    assert settings.redis_url is not None
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    redis = connect(settings.redis_url, name="learner", timeout_s=settings.store_timeout_s + 1, connections=1024)
    try:
        await upgrade(redis, stop)
        await Learner(redis, settings).run(stop)
    finally:
        await redis.aclose()
