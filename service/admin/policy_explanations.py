"""Which fields a policy predicts by: asked for over HTTP, and found by a process of its own, as evaluations are.

They share the queue, the lease, the bound and the store of evaluations (`evaluations.py`, `judge.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator, Mapping
from functools import partial
from typing import Any
from uuid import uuid4

from redis.asyncio import Redis

from service.admin.encoders import encoder_for
from service.errors import Conflict, NotFound
from service.evaluate.importance import Findings, Observed, importance
from service.policies import KINDS, Arrays, Params, Scorer, new_policy, new_scorer
from service.records import Event, LoopRecord, PolicyRecord
from service.represent.stored import AnyEncoder
from service.store import evaluation_store, event_log, item_store, loop_store, policy_store
from service.store.codec import encoder_of
from service.store.connection import now
from service.store.evaluation_store import EvaluationRecord
from service.store.keys import Keys

EXPLAINS = "explains"  # in the request of a job: the policy; no evaluation has it
MOST = 5000  # newest events that are learned
CONFIDENCE = 0.95  # that all intervals hold at once


def is_explanation(record: EvaluationRecord) -> bool:
    """Return whether a job is to explain a policy, and is no evaluation."""
    return EXPLAINS in record.request


async def create_explanation(redis: Redis, loop: str, policy: str) -> EvaluationRecord:
    """Queue the explanation of a policy.

    Raises:
        NotFound: there is no such loop or policy.
        Conflict: too many jobs have not ended; or the policy learns in trainings only, or has no version yet.
    """
    record = await loop_store.read_loop(redis, loop)
    keys = Keys(loop, record.id)
    found = await policy_store.read_policy(redis, keys, policy)
    if found.kind not in KINDS or KINDS[found.kind].batch_trained:
        raise Conflict(
            f"policy {policy!r} does not learn event by event, so what it predicted before it learned cannot be told",
            code="learns_in_batches",
        )
    if not found.version:
        raise Conflict(f"policy {policy!r} has learned nothing yet", code="not_learned_yet")
    made = EvaluationRecord(uuid4().hex[:12], {EXPLAINS: policy}, created=await now(redis))
    await evaluation_store.create_evaluation(redis, keys, made)
    return made


async def read_explanation(redis: Redis, loop: str, policy: str) -> EvaluationRecord:
    """Return the newest explanation of a policy.

    Raises:
        NotFound: there is no such loop, or no explanation.
    """
    record = await loop_store.read_loop(redis, loop)
    keys = Keys(loop, record.id)
    for one in await evaluation_store.list_evaluations(redis, keys):
        if one.request.get(EXPLAINS) == policy:
            await evaluation_store.queue(redis, keys, [one])
            return one
    raise NotFound(
        f"policy {policy!r} of loop {loop!r} was not explained yet; POST /policies/{policy}/explanation has it done",
        code="unknown_explanation",
    )


async def explain_policy(
    redis: Redis, loop: str, policy: str, *, progress: Callable[[int, int], None]
) -> Mapping[str, Any]:
    """Find which fields a policy predicts by, and describe that as JSON.

    A policy of its kind, parameters and seed learns the newest events of the log through its encoder of now.

    Raises:
        NotFound: there is no such loop or policy.
        Conflict: it has no version any more, or the log holds too few events.
    """
    record = await loop_store.read_loop(redis, loop)
    keys = Keys(loop, record.id)
    found = await policy_store.read_policy(redis, keys, policy)
    snapshot = await policy_store.read_snapshot(redis, keys, policy, found.version)
    if snapshot is None:
        raise Conflict(f"policy {policy!r} has learned nothing yet", code="not_learned_yet")
    encoder = await encoder_for(redis, record, encoder_of(snapshot))
    events, first, last = await _read_log(redis, record, keys, encoder)
    steps = _steps(found, encoder, events)

    def step() -> int | Findings:
        try:
            return next(steps)
        except StopIteration as stop:
            result: Findings = stop.value
            return result

    try:
        while isinstance(done := await asyncio.to_thread(step), int):
            progress(done, len(events))
    except ValueError as error:
        raise Conflict(f"the log holds {len(events)} events, which are too few", code="too_few_events") from error
    return {
        "version": found.version,
        "kind": found.kind,
        "encoder": encoder.version,
        "from": first,
        "to": last,
        "events": len(events),
        "held_out": done.held_out,
        "loss": done.loss,
        "confidence": CONFIDENCE,
        "importance": [
            {
                "fields": [name for name in one.pair if name is not None],
                "context": one.pair.context,
                "item": one.pair.item,
                "loss": one.loss._asdict(),
            }
            for one in done.found
        ],
    }


def _steps(record: PolicyRecord, encoder: AnyEncoder, events: list[Observed]) -> Generator[int, None, Findings]:
    params = KINDS[record.kind].Params.model_validate(record.params)
    policy = new_policy(record.kind, encoder.d, encoder.layout, params, seed=record.seed)
    scorer_of = partial(_scorer_of, record.kind, encoder, params)
    return importance(policy, scorer_of, encoder, events, confidence=CONFIDENCE)


def _scorer_of(kind: str, encoder: AnyEncoder, params: Params, snapshot: Arrays) -> Scorer:
    return new_scorer(kind, snapshot, encoder.d, encoder.layout, params)


async def _read_log(
    redis: Redis, record: LoopRecord, keys: Keys, encoder: AnyEncoder
) -> tuple[list[Observed], str | None, str | None]:
    """Return the newest events, and the positions of the first and the last."""
    low, high = encoder.reward_range or record.settings.reward_range
    items: dict[str, dict[str, Any]] | None = None
    found, positions = [], []
    async for entries in event_log.scan(redis, keys, newest=MOST):
        for entry in entries:
            if not isinstance(entry, Event):
                continue
            features = entry.features
            if features is None:  # large ones are not written into the log
                items = items if items is not None else await item_store.read_stand_ins(redis, keys, record.catalogue)
                features = items.get(entry.item, {})
            share = (entry.reward - low) / (high - low)
            propensity = float("nan") if entry.propensity is None else entry.propensity
            found.append(Observed(entry.context, features, entry.item, entry.user, share, propensity))
            positions.append(entry.position)
    return found, positions[0] if positions else None, positions[-1] if positions else None
