"""Builds what tests need, with defaults, so that a test states only what it is about.

First come batches and candidates of policies, then the records of the store.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any
from uuid import uuid4

import numpy as np
from numpy.typing import ArrayLike, NDArray
from redis.asyncio import Redis

from service.decide.assignment import divided, outside
from service.loop import LoopSettings
from service.policies import Arrays, Batch, Candidates, Policy, Scorer, part
from service.records import OUTSIDE, Arm, Decision, Event, Experiment, LoopRecord, PolicyRecord, SlateItem
from service.store.codec import event_body, loop_fields, row_bytes
from service.store.decisions import DecisionWriter, PendingDecision
from service.store.group_commit import GroupCommit
from service.store.keys import OPEN, Keys, loop_record

Array = NDArray[Any]


def batch_of(
    x: ArrayLike | None = None,
    reward: ArrayLike = 0.0,
    item: str | Sequence[str] = "a",
    *,
    user: str | Sequence[str | None] | None = None,
    propensity: ArrayLike = 1.0,
) -> Batch:
    """Build a batch. A single item, user, reward or propensity is that of every event.

    Args:
        x: (B, d); left out, one column of zeros.
    """
    if x is None:
        x = np.zeros((max(np.size(reward), 1 if isinstance(item, str) else len(item)), 1))
    rows = np.asarray(x, dtype=np.float32)
    B = len(rows)
    return Batch(
        x=rows,
        item=[item] * B if isinstance(item, str) else list(item),
        user=[user] * B if user is None or isinstance(user, str) else list(user),
        reward=np.broadcast_to(np.asarray(reward, dtype=np.float64), B).copy(),
        propensity=np.broadcast_to(np.asarray(propensity, dtype=np.float64), B).copy(),
    )


def candidates_of(x: ArrayLike, item: str | Sequence[str] | None = None, *, user: str | None = None) -> Candidates:
    """Build candidates from x (n, d). Their ids are item-0, item-1, … unless given; a single id is that of all."""
    rows = np.asarray(x, dtype=np.float32)
    if item is None:
        return Candidates(rows, [f"item-{i}" for i in range(len(rows))], user)
    return Candidates(rows, [item] * len(rows) if isinstance(item, str) else list(item), user)


def scorer_of(policy: Policy[Any], snapshot: Arrays | None = None) -> Scorer:
    """Build the scorer of a policy, from its present snapshot unless one is given."""
    return type(policy).scorer(policy.snapshot() if snapshot is None else snapshot, d=policy.d, params=policy.params)


def estimates_of(
    policy: Policy[Any], x: ArrayLike, item: str | Sequence[str] | None = None, *, user: str | None = None
) -> Array:
    """Compute the estimates (n, s) of candidates x (n, d) as the policy's present snapshot serves them."""
    return scorer_of(policy).estimate(candidates_of(x, item, user=user))


def pmf_of(
    policy: Policy[Any], x: ArrayLike, item: str | Sequence[str] | None = None, *, user: str | None = None
) -> Array:
    """Compute the probabilities (n,) of candidates x (n, d) as the policy's present snapshot serves them."""
    scorer = scorer_of(policy)
    return scorer.pmf(scorer.estimate(candidates_of(x, item, user=user)))


def parts_of(batch: Batch, size: int) -> list[Batch]:
    """Cut a batch into batches of `size` events; the last may be shorter."""
    return [part(batch, slice(at, at + size)) for at in range(0, len(batch.item), size)]


# ---- records

D = 4  # columns of a row in the records below


def new_id() -> str:
    """Make an id as loops and policies have them."""
    return uuid4().hex[:12]


def loop_of(name: str = "", *, id: str = "", d: int = D, **settings: Any) -> LoopRecord:
    """Build a loop's record as it is when the loop is made. Left out, name and id are new ones.

    Args:
        settings: of the loop.
    """
    return LoopRecord(
        name=name or f"t-{new_id()}",
        id=id or new_id(),
        settings=LoopSettings(**settings),
        schema={},
        d=d,
        encoder="test",
        epoch=1,
        catalogue=0,
        traffic={},
        pins={},
    )


async def store_loop(redis: Redis, record: LoopRecord) -> Keys:
    """Store a loop's record without listing it, so that no learner on the same Redis takes it up.

    Heartbeats of workers of other tests are forgotten: deadlines would wait for the next.
    """
    await redis.delete(OPEN)
    await redis.hset(loop_record(record.name), mapping=loop_fields(record))
    return Keys(record.name, record.id)


def experiment_of(shares: Mapping[str, float] | None = None, *, holdout: float = 0.0, **changes: Any) -> Experiment:
    """Build an experiment that runs for ever; each arm has the policy of its name."""
    shares = shares or {"control": 0.5, "bold": 0.5}
    made = Experiment(
        name="prices",
        id="1f2e",
        version=1,
        arms={name: Arm(name, share) for name, share in shares.items()},
        spans=divided(outside(), {name: (1 - holdout) * share for name, share in shares.items()} | {OUTSIDE: holdout}),
        unit="user",
        metric="reward",
        guardrails={},
        minimum_effect=0.05,
        confidence=0.95,
        holdout=holdout,
        starts=0.0,
        ends=None,
    )
    return replace(made, **changes)


def policy_of(kind: str = "linucb", *, name: str = "", retention: int = 1_000_000, **params: Any) -> PolicyRecord:
    """Build a policy's record as it is when the policy is made, under the name of its kind unless one is given."""
    return PolicyRecord(name or kind, new_id(), kind, params, seed=0, retention=retention)


def event_of(
    number: int = 0,
    *,
    item: str = "",
    x: ArrayLike | None = None,
    reward: float | None = None,
    position: str = "",
    user: str | None = None,
    slate_position: int | None = None,
    at: float | None = None,
    features: Mapping[str, Any] | None = None,
    context: Mapping[str, Any] | None = None,
    encoder: str | None = None,
) -> Event:
    """Build the event of this number: of one of three items, with a random row, every second one rewarded."""
    row = np.random.default_rng(number).normal(size=D) if x is None else x
    return Event(
        position=position or f"{1000 + number}-0",
        decision_id=f"d{number}",
        item=item or f"p{number % 3}",
        user=user,
        context={} if context is None else context,
        x=np.asarray(row, dtype="<f4"),
        n=3,
        propensity=0.5,
        policy=None,
        version=0,
        reward=float(number % 2) if reward is None else reward,
        source="import",
        slate_position=slate_position,
        at=at,
        features=features,
        encoder=encoder,
    )


def body_of(event: Event) -> bytes:
    """Write field `e` of an event."""
    return event_body(
        decision_id=event.decision_id,
        item=event.item,
        user=event.user,
        context=event.context,
        n=event.n,
        propensity=event.propensity,
        policy=event.policy,
        version=event.version,
        features=event.features,
        encoder=event.encoder,
        decided=event.decided,
        rung=event.rung,
        place=event.place,
        experiment=event.experiment,
        seen=event.seen,
    )


def fields_of(event: Event) -> dict[bytes, bytes]:
    """Write an event as the fields of its entry in the log."""
    return {
        b"e": body_of(event),
        b"x": row_bytes(event.x),
        b"o": b"" if event.slate_position is None else b"%d" % event.slate_position,
        b"r": repr(event.reward).encode(),
        b"s": event.source.encode(),
        b"t": b"" if event.at is None else b"%d" % round(1000 * event.at),
    }


def import_of(events: Sequence[Event]) -> list[tuple[str, bytes, bytes, float, int | None]]:
    """Write events as rows for `event_log.append_imported`."""
    return [
        (
            event.decision_id,
            body_of(event),
            row_bytes(event.x),
            event.reward,
            None if event.at is None else round(1000 * event.at),
        )
        for event in events
    ]


def decision_of(decision_id: str, items: Sequence[str] = "a", *, loop: str = "t", **changes: Any) -> Decision:
    """Build a decision with one slate place for each of `items`, out of nine candidates."""
    record: Mapping[str, Any] = {
        "at": 1_700_000_000.0,
        "user_id": None,
        "context": {},
        "candidates": None,
        "exclude": [],
        "catalogue": 1,
        "n": 9,
        "k": len(items),
        "policy": "p",
        "version": 1,
        "encoder": "test",
        "exploration_floor": 0.01,
        "seed": "0123456789abcdef",
        "items": tuple(SlateItem(item, 0.25, 0.5) for item in items),
    }
    return Decision(decision_id=decision_id, loop=loop, **{**record, **changes})


async def store_decisions(
    redis: Redis, keys: Keys, *decisions: Decision, wait_ms: int = 60_000, d: int = D, **more: Any
) -> None:
    """Store decisions whose items have rows of zeros; `more` goes to `PendingDecision`."""
    writer = DecisionWriter(GroupCommit(redis), buffer=0)
    rows = np.zeros((1, d), np.float32)
    pending = [
        PendingDecision(keys, one, np.repeat(rows, len(one.items), axis=0), [{}] * len(one.items), wait_ms, **more)
        for one in decisions
    ]
    answers = await asyncio.gather(*map(writer.append, pending))
    assert not any(degraded for _, degraded in answers)
