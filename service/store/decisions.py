"""Decisions in Redis: stored before they are answered, joined with their feedback, settled at the deadline."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import orjson
import structlog
from numpy.typing import NDArray
from redis.asyncio import Redis

from service.errors import NotFound, StoreUnavailable
from service.loop import LoopSettings
from service.records import Decision, Features
from service.store.codec import decision_bytes, read_decision, row_bytes, slate_bodies
from service.store.connection import answering, script
from service.store.group_commit import GroupCommit
from service.store.keys import Keys
from service.store.limits import Limits, limit_keys
from service.store.open_time import read_opening

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class PendingDecision:
    """A decision that is to be stored, with what its events will carry."""

    keys: Keys
    decision: Decision
    rows: NDArray[np.float32]  # (k, d): of each item of the slate
    features: Sequence[Features]  # of each item of the slate, as it was shown
    wait_ms: int
    ledger_ms: int = 600_000
    aggregation: str = "first"
    displayed: bool = True  # False: it waits for its display
    activity_above: float | None = None  # an item with a higher reward counts as activity of its user; None: none does
    limits: Limits | None = None  # to be checked when it is stored, and counted


class Overtaken(Exception):
    """Limits do not allow a decision; nothing was stored.

    Others came first, or Redis does not answer, and nobody else knows whether an item has a budget left (`alone`).
    Then it may be stored all the same.
    """

    def __init__(self, shown: Collection[str], spent: Collection[str], *, alone: bool = False) -> None:
        super().__init__()
        self.shown, self.spent, self.alone = shown, spent, alone


class DecisionWriter:
    """Stores decisions by group commit; while Redis is gone they wait in a bounded buffer, in order.

    `degraded` counts decisions that were answered without Redis, `dropped` those of them that were lost: for want of
    room, or because Redis refused them.
    """

    def __init__(self, commit: GroupCommit, *, buffer: int, usable: Callable[[], bool] = lambda: True) -> None:
        """`usable` says whether what answers is the Redis with our data."""
        self._commit, self._most, self._usable = commit, buffer, usable
        self._buffer: deque[PendingDecision] = deque()
        self._drainer: asyncio.Task[None] | None = None
        self.degraded = self.dropped = 0

    @property
    def buffered(self) -> int:
        """Decisions that were answered and still wait for Redis."""
        return len(self._buffer)

    async def append(self, pending: PendingDecision) -> tuple[Decision, bool]:
        """Store a decision; return the one that stands under its id, and whether it is still only in memory.

        Raises:
            Overtaken: its limits do not allow it.
        """
        if not self._buffer and self._usable():
            try:
                stored = await self._store(pending)
            except StoreUnavailable:
                pass
            else:
                if isinstance(stored, list):
                    raise _overtaken(stored)
                return (read_decision(stored) if stored else pending.decision), False
        if pending.limits is not None:
            if pending.limits.budgets:
                raise Overtaken((), pending.limits.budgets, alone=True)
            pending = replace(pending, limits=replace(pending.limits, enforce=False))
        self.degraded += 1
        if len(self._buffer) == self._most:
            self.dropped += 1
        else:
            self._buffer.append(replace(pending, decision=replace(pending.decision, rung="store_down")))
        if self._drainer is None or self._drainer.done():
            self._drainer = asyncio.create_task(self._drain())
        return pending.decision, True

    async def _store(self, pending: PendingDecision) -> bytes | list[bytes] | None:
        """Store one; the record that stood under this id before, None where there was none.

        A list: what its limits do not allow.
        """
        decision = pending.decision
        args: list[str | bytes | int] = [decision.decision_id, decision_bytes(decision), pending.wait_ms]
        keys = ledger_keys(pending.keys, decision.decision_id)
        args += (int(pending.displayed), pending.aggregation, pending.ledger_ms, _above(pending.activity_above))
        if pending.limits is None:
            args.append("")
        else:
            args.append(pending.limits.as_json)
            keys += limit_keys(pending.keys, decision.user_id)
        bodies = slate_bodies(decision, pending.features)
        for item, body, row in zip(decision.items, bodies, pending.rows, strict=True):
            args += (item.id, body, row_bytes(row))
        stored: bytes | list[bytes] | None = await self._commit.run(
            script("store_decision"), keys, args, uses=pending.keys.loop
        )
        return stored

    async def _drain(self) -> None:
        """Write the buffer out. To write a decision twice is harmless (`store_decision.lua`)."""
        pause = 0.1
        while self._buffer:
            chunk = list(self._buffer)[:200] if self._usable() else []
            results = await asyncio.gather(*map(self._store, chunk), return_exceptions=True)
            if not chunk or any(isinstance(result, StoreUnavailable) for result in results):
                await asyncio.sleep(pause)
                pause = min(pause * 1.5, 1.0)
                continue
            for result in results:
                lost = self._buffer.popleft()
                if isinstance(result, BaseException):
                    self.dropped += 1
                    log.error("decision lost", decision_id=lost.decision.decision_id, why=repr(result))

    async def close(self, *, within_s: float = 2.0) -> None:
        """Write out what still waits, as far as Redis takes it in time."""
        if self._drainer is not None and not self._drainer.done():
            with suppress(TimeoutError):
                await asyncio.wait_for(self._drainer, within_s)


def _overtaken(said: Sequence[bytes]) -> Overtaken:
    items: dict[bytes, list[str]] = {b"shown": [], b"spent": []}
    for sort, item in zip(said[::2], said[1::2], strict=True):
        items[sort].append(item.decode())
    return Overtaken(items[b"shown"], items[b"spent"])


def ledger_keys(keys: Keys, decision_id: str) -> tuple[str, ...]:
    """Return the keys of the scripts that include `ledger.lua`."""
    part = keys.partition()
    return (
        part.decision(decision_id),
        part.pending,
        part.events,
        part.stats,
        part.early(decision_id),
        part.early_due,
        part.rewarded,
    )


def _above(reward: float | None) -> str:
    return "" if reward is None else repr(reward)


async def join_feedback(
    commit: GroupCommit,
    keys: Keys,
    settings: LoopSettings,
    *,
    decision_id: str,
    item: str,
    reward: float,
    feedback_id: str,
    replaces: str = "",
    early_ms: int = 0,
) -> str:
    """Join one feedback; return the answer of `join_feedback.lua`.

    Args:
        replaces: the feedback id of the report that this one corrects.
        early_ms: how long it is kept where the decision is not there yet; 0: the decision cannot come.
    """
    of_loop = (settings.aggregation, settings.ledger_ms, early_ms, _above(settings.activity_above))
    args = (decision_id, item, repr(reward), feedback_id, replaces, *of_loop)
    answer: bytes = await commit.run(script("join_feedback"), ledger_keys(keys, decision_id), args, uses=keys.loop)
    return answer.decode()


async def display_decision(commit: GroupCommit, keys: Keys, decision_id: str, *, early_ms: int) -> str:
    """Say that a deferred decision was displayed; return the answer of `display_decision.lua`."""
    args = (decision_id, early_ms)
    answer: bytes = await commit.run(script("display_decision"), ledger_keys(keys, decision_id), args, uses=keys.loop)
    return answer.decode()


async def settle_due(redis: Redis, commit: GroupCommit, keys: Keys, settings: LoopSettings, *, most: int = 1000) -> int:
    """Give every overdue decision its default (or aggregated) reward; return the number of events appended.

    One that was never displayed gets none.
    """
    part = keys.partition()
    at = (await read_opening(redis)).known_ms
    async with answering():
        due = await redis.zrangebyscore(part.pending, "-inf", f"({at}", start=0, num=most)
    low, high = settings.reward_range
    args = (at, repr(settings.default_reward), repr(low), repr(high), settings.aggregation, settings.ledger_ms)
    settle = script("settle_decision")
    appended = (
        commit.run(settle, ledger_keys(keys, name), (name, *args), uses=keys.loop) for name in map(bytes.decode, due)
    )
    return sum(await asyncio.gather(*appended))


async def give_up_early(redis: Redis, commit: GroupCommit, keys: Keys, *, most: int = 1000) -> int:
    """Give up reports whose decision has not come in time; return how many."""
    at = (await read_opening(redis)).known_ms
    async with answering():
        due = await redis.zrangebyscore(keys.partition().early_due, "-inf", f"({at}", start=0, num=most)
    give_up = script("give_up_early")
    names = map(bytes.decode, due)
    return sum(await asyncio.gather(*(commit.run(give_up, ledger_keys(keys, name), (name, at)) for name in names)))


async def next_due_in(redis: Redis, keys: Keys) -> float | None:
    """Return the seconds until the next decision or early report is due, below 0 when overdue; None: none waits."""
    part = keys.partition()
    async with answering(), redis.pipeline(transaction=False) as pipe:
        for waiting in (part.pending, part.early_due):
            pipe.zrange(waiting, 0, 0, withscores=True)
        earliest = [due for found in await pipe.execute() for _, due in found]
    return (min(earliest) - (await read_opening(redis)).known_ms) / 1000 if earliest else None


async def read_ledger(redis: Redis, keys: Keys, decision_id: str) -> dict[str, Any]:
    """Return a decision's record, what became of it, and every feedback seen.

    Raises:
        NotFound: no such decision, or its time in the ledger is over.
    """
    async with answering():
        stored = await redis.hgetall(keys.partition().decision(decision_id))
    closed_ms = (await read_opening(redis)).closed_ms
    if not stored:
        raise NotFound(f"no decision {decision_id!r} in loop {keys.loop!r}", code="unknown_decision")
    items = [stored[b"item%d" % i].decode() for i in range(int(stored[b"n"]))]
    feedback = []
    for number in range(int(stored.get(b"seen", 0))):
        item, reward, feedback_id, outcome, at, *more = orjson.loads(stored[b"feedback%d" % number])
        feedback.append(
            {
                "item_id": items[item],
                "reward": float(reward),
                "feedback_id": feedback_id or None,
                "status": outcome,
                "at": int(at) / 1000,
                **({"replaces": more[1]} if more and more[1] else {}),
            }
        )
    return {
        "decision": orjson.loads(stored[b"record"]),
        "status": stored[b"status"].decode(),
        "deadline": (int(stored[b"deadline"]) + closed_ms) / 1000,
        "feedback": feedback,
    }


async def read_stored_decision(redis: Redis, keys: Keys, decision_id: str) -> Decision:
    """Return a decision as it was stored.

    Raises:
        NotFound: no such decision, or its time in the ledger is over.
    """
    async with answering():
        record = await redis.hget(keys.partition().decision(decision_id), "record")
    if record is None:
        raise NotFound(f"no decision {decision_id!r} in loop {keys.loop!r}", code="unknown_decision")
    return read_decision(record)
