"""Ends the wait: decisions past their deadline get their default reward, and the log is kept to its length."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress

import structlog
from redis.asyncio import Redis

from service.errors import NotFound, StoreUnavailable
from service.learn.bell import Bell, rest
from service.store import encoders, event_log, loop_store, policy_store
from service.store.activity import take_all_rewarded
from service.store.decisions import give_up_early, next_due_in, settle_due
from service.store.group_commit import GroupCommit
from service.store.keys import Keys

ENCODERS_S = 60.0  # from one look for encoders that nothing names to the next

log = structlog.get_logger()


class Sweeper:
    """Sweeps one loop. Several may sweep the same loop: a decision is settled once (`settle_decision.lua`)."""

    def __init__(self, redis: Redis, keys: Keys) -> None:
        self._redis, self._keys = redis, keys
        self._commit = GroupCommit(redis)
        self._rewards = True  # whether rewarded items may wait to be taken up as activity
        self._looked = time.monotonic()  # for encoders that nothing names any more

    async def step(self) -> int:
        """Settle what is due now, give up early reports; return the number of events appended.

        Raises:
            NotFound: the loop is gone.
        """
        loop = await loop_store.read_loop(self._redis, self._keys.loop)
        if loop.id != self._keys.id:
            raise NotFound(f"the loop {loop.name!r} of then is gone", code="unknown_loop")
        appended = 0
        while settled := await settle_due(self._redis, self._commit, self._keys, loop.settings):
            appended += settled
        await give_up_early(self._redis, self._commit, self._keys)
        if loop.settings.reward_activity or self._rewards:  # once more when it was switched off
            await take_all_rewarded(self._redis, self._commit, self._keys, loop.settings)
        self._rewards = loop.settings.reward_activity
        positions = []
        for name in await policy_store.policy_names(self._redis, self._keys):
            with suppress(NotFound):  # deleted this very moment
                positions.append((await policy_store.read_policy(self._redis, self._keys, name)).position)
        await self._forget_encoders()
        await event_log.trim(self._redis, self._keys, keep=loop.settings.retention, read_to=positions)
        return appended

    async def _forget_encoders(self) -> None:
        if time.monotonic() - self._looked > ENCODERS_S:
            self._looked = time.monotonic()
            await encoders.forget_unused(self._redis, self._keys)

    async def run(self, stop: asyncio.Event, bell: Bell, *, every_s: float = 0.25) -> None:
        """Sweep until `stop`, or until the loop is gone: often while it is used, else at the next deadline."""
        failing = False
        while not stop.is_set():
            rung = bell.next
            try:
                await self.step()
                failing = False
                if not bell.awake:
                    due_in = await next_due_in(self._redis, self._keys)
                    await rest(stop, rung, within_s=None if due_in is None else max(due_in, every_s))
                    continue
            except NotFound:
                return
            except StoreUnavailable:
                pass  # nothing is lost: the deadlines wait in Redis too
            except Exception:
                if not failing:  # told once, however long it lasts
                    log.exception("sweep failed", loop=self._keys.loop)
                failing = True
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), every_s)
