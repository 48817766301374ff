"""Has evaluations done, each in a process of its own.

An evaluation is minutes of pure computing. In the learner's own process it would hold up learning, and in an API
worker's it would hold up answers.
"""

from __future__ import annotations

import asyncio
import os
import sys
from contextlib import suppress
from typing import Any
from uuid import uuid4

import structlog
from redis.asyncio import Redis

from service.errors import Conflict, NotFound
from service.settings import Settings
from service.store import evaluation_store
from service.store.connection import now
from service.store.keys import Keys

TRIES = 3  # processes that may die over one evaluation
GRACE_S = 5.0  # for a process to end

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
                code = await self._have_done(keys, evaluation, token, stop)
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

    async def _have_done(self, keys: Keys, evaluation: str, token: str, stop: asyncio.Event) -> int:
        """Run the process that does it, and end it when this learner is to stop; return its exit code."""
        await evaluation_store.read_evaluation(self._redis, keys, evaluation)
        environment = {**os.environ, "REBOUND_REDIS_URL": str(self._settings.redis_url)}
        for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
            environment[name] = "1"
        command = (sys.executable, "-m", "service", "judge", keys.loop, keys.id, evaluation, token)
        process = await asyncio.create_subprocess_exec(*command, env=environment)
        ended, stopped = asyncio.create_task(process.wait()), asyncio.create_task(stop.wait())
        try:
            await asyncio.wait({ended, stopped}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopped.cancel()
            if process.returncode is None:
                process.terminate()
                with suppress(TimeoutError):
                    await asyncio.wait_for(asyncio.shield(ended), GRACE_S)
            if process.returncode is None:
                process.kill()
        return await ended
