"""`rebound judge`: does an evaluation, or explains a policy, in a process that a learner starts for it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from redis.asyncio import Redis

from service.admin.evaluation import Progress, described, evaluate, target_of
from service.admin.policy_explanations import EXPLAINS, explain_policy, is_explanation
from service.errors import ReboundError
from service.store import evaluation_store
from service.store.connection import end, now
from service.store.keys import Keys

PERIOD_S = 0.5  # of its signs of life


async def _evaluate(redis: Redis, loop: str, request: Mapping[str, Any], progress: Progress) -> Mapping[str, Any]:
    found = await evaluate(
        redis,
        loop,
        [target_of(**said) for said in request["targets"]],
        estimator=request["estimator"],
        interval=request["interval"],
        confidence=request["confidence"],
        segment=request["segment"],
        most=request["decisions"],
        progress=progress,
    )
    return described(found)


async def run_evaluation(redis: Redis, keys: Keys, evaluation: str, token: str) -> None:
    """Do an evaluation and store what came of it, unless it is cancelled or another process has its lease.

    Raises:
        NotFound: there is no such evaluation.
        StoreUnavailable: Redis does not answer; another process does it again.
    """
    record = await evaluation_store.read_evaluation(redis, keys, evaluation)
    request, seen = record.request, {"done": 0}

    def note(done: int, total: int) -> None:
        seen.update(done=done, total=total)

    started = await now(redis)
    if not await evaluation_store.change_evaluation(redis, keys, evaluation, status="running", started=started):
        return
    if is_explanation(record):
        work = asyncio.create_task(explain_policy(redis, keys.loop, request[EXPLAINS], progress=note))
    else:
        work = asyncio.create_task(_evaluate(redis, keys.loop, request, note))
    try:
        while not work.done():
            await asyncio.wait({work}, timeout=PERIOD_S)
            ours = await evaluation_store.take_lease(redis, keys, evaluation, token)
            if not ours or not await evaluation_store.change_evaluation(redis, keys, evaluation, **seen):
                return
    finally:
        await end(work)
    try:
        changes: dict[str, Any] = {"status": "done", "result": work.result()}
    except ReboundError as error:
        if error.status >= 500:
            raise
        changes = {"status": "failed", "error": {"code": error.code, "detail": error.detail}}
    await evaluation_store.change_evaluation(redis, keys, evaluation, **changes, ended=await now(redis))
