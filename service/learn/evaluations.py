"""Has evaluations done, each in a process of its own.

An evaluation is minutes of pure computing. In the learner's own process it would hold up learning, and in an API
worker's it would hold up answers.
"""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import uuid4

import structlog
from redis.asyncio import Redis

from service.errors import Conflict, NotFound
from service.learn.child import have_done
from service.settings import Settings
from service.store import evaluation_store
from service.store.connection import now
from service.store.keys import Keys

TRIES = 3  # processes that may die over one evaluation

log = structlog.get_logger()


class Evaluator:
    """Takes evaluations from the queue, one at a time."""

    def __init__(self, redis: Redis, settings: Settings) -> None:
        self._redis, self._settings = redis, settings
        self._unreadable: set[str] = set()  # each told once

    async def step(self, stop: asyncio.Event) -> None:
        """Have all done that nobody works on.

        Raises:
            StoreUnavailable: Redis does not answer.
        """
        for keys, evaluation in await evaluation_store.queued(self._redis):
            if stop.is_set():
                return
            token = uuid4().hex
            if not await evaluation_store.take_lease(self._redis, keys, evaluation, token):
                continue
            try:
                await evaluation_store.read_evaluation(self._redis, keys, evaluation)
                code = await have_done(self._settings, ("judge", keys.loop, keys.id, evaluation, token), stop)
                if code != 0:  # 0: it has ended, or somebody else has its lease
                    await self._not_done(keys, evaluation, code, stopped=stop.is_set())
            except NotFound:  # its loop was deleted
                await evaluation_store.forget_queued(self._redis, keys, evaluation)
            except Conflict as error:
                if evaluation not in self._unreadable:
                    log.error("an evaluation cannot be read", loop=keys.loop, evaluation=evaluation, why=str(error))
                self._unreadable.add(evaluation)
            finally:
                await evaluation_store.drop_lease(self._redis, keys, evaluation, token)

    async def _not_done(self, keys: Keys, evaluation: str, code: int, *, stopped: bool) -> None:
        """Have it wait for another try, of which there are a few if its processes die."""
        record = await evaluation_store.read_evaluation(self._redis, keys, evaluation)
        changes: dict[str, Any] = {"status": "waiting"}
        if not stopped:
            log.error("an evaluation's process died", loop=keys.loop, evaluation=evaluation, code=code)
            changes["tries"] = record.tries + 1
            if record.tries + 1 >= TRIES:
                detail = f"{TRIES} processes died over it, the last with code {code}"
                error = {"code": "died", "detail": detail}
                changes |= {"status": "failed", "ended": await now(self._redis), "error": error}
        await evaluation_store.change_evaluation(self._redis, keys, evaluation, **changes)
