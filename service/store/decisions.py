"""Decisions in Redis: stored before they are answered, joined with their feedback, settled at the deadline."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import orjson
from redis.asyncio import Redis

from service.errors import NotFound, StoreUnavailable
from service.loop import LoopSettings
from service.store.connection import GONE, GroupCommit, script
from service.store.keys import Keys


@dataclass(frozen=True, slots=True)
class SlateItem:
    """What the event of one item of the slate will carry."""

    item: str
    e: bytes
    x: bytes


@dataclass(frozen=True, slots=True)
class Decision:
    """A decision as it is stored: its record (JSON) and its slate."""

    loop: str
    decision_id: str
    record: bytes
    wait_ms: int
    slate: Sequence[SlateItem]


class DecisionLog:
    """Stores decisions by group commit; while Redis is gone they wait in a bounded buffer, in order."""

    def __init__(self, commit: GroupCommit, *, buffer: int) -> None:
        self._commit, self._most = commit, buffer
        self._buffer: deque[Decision] = deque()
        self._drainer: asyncio.Task[None] | None = None
        self.degraded = self.dropped = 0  # decisions answered without Redis; of these, lost for want of room

    @property
    def buffered(self) -> int:
        """Decisions that were answered and still wait for Redis."""
        return len(self._buffer)

    async def append(self, decision: Decision) -> tuple[bytes, bool]:
        """(the record that stands under this id, whether it is still only in memory)."""
        if not self._buffer:
            try:
                return await self._store(decision) or decision.record, False
            except StoreUnavailable:
                pass
        self.degraded += 1
        if len(self._buffer) == self._most:
            self.dropped += 1
        else:
            self._buffer.append(decision)
        if self._drainer is None or self._drainer.done():
            self._drainer = asyncio.create_task(self._drain())
        return decision.record, True

    async def _store(self, decision: Decision) -> bytes | None:
        keys = Keys(decision.loop)
        args: list[str | bytes | int] = [decision.decision_id, decision.record, decision.wait_ms]
        for item in decision.slate:
            args += (item.item, item.e, item.x)
        stored: bytes | None = await self._commit.run(
            script("decide"), (keys.decision(decision.decision_id), keys.pending, keys.stats), args
        )
        return stored

    async def _drain(self) -> None:
        """Write the buffer out; `decide.lua` makes writing a decision twice harmless."""
        pause = 0.1
        while self._buffer:
            chunk = list(self._buffer)[:200]
            results = await asyncio.gather(*map(self._store, chunk), return_exceptions=True)
            if any(isinstance(result, StoreUnavailable) for result in results):
                await asyncio.sleep(pause)
                pause = min(pause * 1.5, 1.0)
                continue
            for _ in chunk:
                self._buffer.popleft()

    async def close(self, *, within_s: float = 2.0) -> None:
        """Write out what still waits, as far as Redis takes it in time."""
        if self._drainer is not None and not self._drainer.done():
            with suppress(TimeoutError):
                await asyncio.wait_for(self._drainer, within_s)


async def join(
    commit: GroupCommit,
    loop: str,
    settings: LoopSettings,
    *,
    decision_id: str,
    item: str,
    reward: float,
    feedback_id: str,
) -> str:
    """Join one feedback; see `scripts/join.lua` for the answers."""
    keys = Keys(loop)
    answer: bytes = await commit.run(
        script("join"),
        (keys.decision(decision_id), keys.pending, keys.events, keys.stats),
        (decision_id, item, repr(reward), feedback_id, settings.aggregation, settings.ledger_ms),
    )
    return answer.decode()


async def settle_due(redis: Redis, commit: GroupCommit, loop: str, settings: LoopSettings, *, most: int = 1000) -> int:
    """Give every overdue decision its default (or aggregated) reward; the number of events appended."""
    keys = Keys(loop)
    try:
        seconds, micros = await redis.time()
        now = seconds * 1000 + micros // 1000
        due = await redis.zrangebyscore(keys.pending, "-inf", f"({now}", start=0, num=most)
    except GONE as error:
        raise StoreUnavailable("Redis does not answer") from error
    low, high = settings.reward_range
    args = (repr(settings.default_reward), repr(low), repr(high), settings.ledger_ms)
    appended = await asyncio.gather(
        *(
            commit.run(script("settle"), (keys.decision(name), keys.pending, keys.events, keys.stats), (name, *args))
            for name in map(bytes.decode, due)
        )
    )
    return sum(appended)


async def ledger(redis: Redis, loop: str, decision_id: str) -> dict[str, Any]:
    """A decision's record, what became of it, and every feedback seen.

    Raises:
        NotFound: no such decision, or its time in the ledger is over.
    """
    try:
        stored = await redis.hgetall(Keys(loop).decision(decision_id))
    except GONE as error:
        raise StoreUnavailable("Redis does not answer") from error
    if not stored:
        raise NotFound(f"no decision {decision_id!r} in loop {loop!r}", code="unknown_decision")
    items = [stored[b"item%d" % i].decode() for i in range(int(stored[b"n"]))]
    feedback = []
    for number in range(int(stored.get(b"seen", 0))):
        position, reward, feedback_id, outcome, at = orjson.loads(stored[b"feedback%d" % number])
        feedback.append(
            {
                "item_id": items[position],
                "reward": float(reward),
                "feedback_id": feedback_id or None,
                "status": outcome,
                "at": int(at) / 1000,
            }
        )
    return {
        "decision": orjson.loads(stored[b"record"]),
        "status": stored[b"status"].decode(),
        "deadline": int(stored[b"deadline"]) / 1000,
        "feedback": feedback,
    }
