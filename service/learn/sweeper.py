"""Ends the wait: decisions past their deadline get their default reward, and the log is kept to its length."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import structlog
from redis.asyncio import Redis

from service.errors import NotFound, StoreUnavailable
from service.store import log as event_log
from service.store import loops, policies
from service.store.connection import GroupCommit
from service.store.decisions import settle_due

log = structlog.get_logger()


class Sweeper:
    """Sweeps one loop. Several may sweep the same loop: a decision is settled once (`settle.lua`)."""

    def __init__(self, redis: Redis, loop: str) -> None:
        self._redis, self._loop = redis, loop
        self._commit = GroupCommit(redis)

    async def step(self) -> int:
        """Settle what is due now; the number of events appended."""
        settings = (await loops.read_loop(self._redis, self._loop)).settings
        appended = 0
        while settled := await settle_due(self._redis, self._commit, self._loop, settings):
            appended += settled
        names = await policies.policy_names(self._redis, self._loop)
        positions = [(await policies.read_policy(self._redis, self._loop, name)).position for name in names]
        await event_log.trim(self._redis, self._loop, keep=settings.retention, read_to=positions)
        return appended

    async def run(self, stop: asyncio.Event, *, every_s: float = 0.25) -> None:
        """Sweep until `stop`, or until the loop is gone."""
        while not stop.is_set():
            try:
                await self.step()
            except NotFound:
                return
            except StoreUnavailable:
                pass  # nothing is lost: the deadlines wait in Redis too
            except Exception:
                log.exception("sweep failed", loop=self._loop)
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), every_s)
