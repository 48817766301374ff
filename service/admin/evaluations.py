"""Evaluations that are asked for over HTTP: made, looked at, cancelled. `judge.py` does them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import uuid4

from pydantic import BaseModel, Field
from redis.asyncio import Redis

from service.admin.policy_explanations import is_explanation
from service.admin.validation import checked_params
from service.errors import Conflict, InvalidRequest, NotFound
from service.evaluate.comparison import INTERVALS
from service.evaluate.estimators import ESTIMATORS
from service.store import evaluation_store, loop_store, policy_store
from service.store.connection import now
from service.store.evaluation_store import EvaluationRecord
from service.store.keys import Keys


class EvaluationStatus(BaseModel):
    """An evaluation that has not ended."""

    loop: str
    id: str
    status: str = Field(description="waiting or running")
    done: int = Field(description="decisions judged")
    total: int | None = Field(description="decisions to judge; null: not known yet")


async def create_evaluation(redis: Redis, loop: str, request: Mapping[str, Any]) -> EvaluationRecord:
    """Queue an evaluation.

    Args:
        request: `targets`, and what `evaluate` takes.

    Raises:
        NotFound: there is no such loop, policy or version.
        InvalidRequest: there is no such kind, estimator or interval, or a parameter is wrong.
        Conflict: too many have not ended.
    """
    record = await loop_store.read_loop(redis, loop)
    keys = Keys(loop, record.id)
    _check_method(request["estimator"], request["interval"])
    for number, target in enumerate(request["targets"]):
        await _check_target(redis, keys, target, f"targets.{number}")
    made = EvaluationRecord(uuid4().hex[:12], request, created=await now(redis))
    await evaluation_store.create_evaluation(redis, keys, made)
    return made


def _check_method(estimator: str, interval: str) -> None:
    for field, value, known in (("estimator", estimator, list(ESTIMATORS)), ("interval", interval, list(INTERVALS))):
        if value not in known:
            raise InvalidRequest(field, f"there is no {value!r}; there are {', '.join(known)}")
    if interval != "bootstrap" and estimator != "ips":
        raise InvalidRequest("interval", f"{interval} goes with the estimator ips only")


async def _check_target(redis: Redis, keys: Keys, target: Mapping[str, Any], field: str) -> None:
    if (target.get("policy") is None) == (target.get("kind") is None):
        raise InvalidRequest(field, "name a policy, or a kind")
    if target.get("kind") is not None:
        if target.get("version") is not None:
            raise InvalidRequest(f"{field}.version", "a kind has no version")
        checked_params(target["kind"], target.get("params") or {})
    else:
        if target.get("params"):
            raise InvalidRequest(f"{field}.params", "a policy has its parameters already")
        await policy_store.read_policy(redis, keys, target["policy"])


async def list_evaluations(redis: Redis, loop: str) -> Sequence[EvaluationRecord]:
    """Return a loop's evaluations, newest first.

    Raises:
        NotFound: there is no such loop.
    """
    record = await loop_store.read_loop(redis, loop)
    keys = Keys(loop, record.id)
    found = await evaluation_store.list_evaluations(redis, keys)
    await evaluation_store.queue(redis, keys, found)
    return [one for one in found if not is_explanation(one)]


async def read_evaluation(redis: Redis, loop: str, evaluation: str) -> EvaluationRecord:
    """Return one evaluation.

    Raises:
        NotFound: there is no such loop or evaluation.
    """
    record = await loop_store.read_loop(redis, loop)
    keys = Keys(loop, record.id)
    found = await _read(redis, keys, evaluation)
    await evaluation_store.queue(redis, keys, [found])
    return found


async def cancel_evaluation(redis: Redis, loop: str, evaluation: str) -> EvaluationRecord:
    """Cancel an evaluation; one that has ended stays as it is.

    Raises:
        NotFound: there is no such loop or evaluation.
    """
    record = await loop_store.read_loop(redis, loop)
    keys = Keys(loop, record.id)
    await _read(redis, keys, evaluation)
    await evaluation_store.change_evaluation(redis, keys, evaluation, status="cancelled", ended=await now(redis))
    return await evaluation_store.read_evaluation(redis, keys, evaluation)


async def _read(redis: Redis, keys: Keys, evaluation: str) -> EvaluationRecord:
    """Return one that is no explanation of a policy (`policy_explanations.py`).

    Raises:
        NotFound.
    """
    found = await evaluation_store.read_evaluation(redis, keys, evaluation)
    if is_explanation(found):
        raise NotFound(f"there is no evaluation {evaluation!r} in loop {keys.loop!r}", code="unknown_evaluation")
    return found


async def unfinished(redis: Redis) -> list[EvaluationStatus]:
    """Return the evaluations of all loops that have not ended, oldest first."""
    found = []
    for keys, evaluation in await evaluation_store.queued(redis):
        try:
            one = await evaluation_store.read_evaluation(redis, keys, evaluation)
        except (NotFound, Conflict):  # its loop was deleted; or it cannot be read
            continue
        if one.status not in evaluation_store.ENDED:
            status = EvaluationStatus(loop=keys.loop, id=one.id, status=one.status, done=one.done, total=one.total)
            found.append(status)
    return found
