"""A policy and its place in the log: applies entries in order, in one way for new ones and for a replay."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress

import numpy as np
import structlog
from redis.asyncio import Redis

from service.events import Event, UndecodableEvent, decode
from service.policies import KINDS, Batch, NumericalError, Policy
from service.store import log as event_log
from service.store.codec import unpack
from service.store.policies import PolicyRecord

log = structlog.get_logger()


class Student:
    """One policy from its record, having learned nothing; `position` and `events` tell how far it has come."""

    def __init__(self, redis: Redis, loop: str, record: PolicyRecord, d: int) -> None:
        kind = KINDS[record.kind]
        self.policy: Policy = kind(d, kind.Params.model_validate(record.params), seed=record.seed)
        self.position, self.events = event_log.START, 0
        self._redis, self._loop, self._name, self._d = redis, loop, record.name, d

    def resume(self, record: PolicyRecord, state: bytes) -> None:
        """Go on from a checkpoint.

        Raises:
            ValueError: the state is garbled.
        """
        self.policy.load(unpack(state))
        self.position, self.events = record.position, record.events

    async def learn(self, entries: Sequence[event_log.Entry]) -> bool:
        """Apply entries that follow the position; True when one of them was this policy's order to train."""
        run: list[Event] = []
        trained = False
        for position, fields in entries:
            try:
                entry = decode(position, fields, self._d)
            except UndecodableEvent as error:
                await self._dead_letter(position, error)
                continue
            if isinstance(entry, Event):
                run.append(entry)
            elif entry.train == self._name:
                await self._update(run)
                await self._train(until=position)
                run, trained = [], True
        await self._update(run)
        self.position = entries[-1][0]
        return trained

    async def _update(self, events: Sequence[Event]) -> None:
        if not events:
            return
        try:
            await asyncio.to_thread(self.policy.update, batch_of(events))
            self.events += len(events)
        except NumericalError as error:  # `update` left the state as it was
            if len(events) == 1:
                await self._dead_letter(events[0].position, error)
                return
            for event in events:
                await self._update([event])

    async def _dead_letter(self, position: str, error: Exception) -> None:
        """Set the entry aside. It counts as learned: that number stays comparable with the number in the log."""
        log.error("dead letter", loop=self._loop, position=position, why=str(error))
        await event_log.dead_letter(self._redis, self._loop, position, str(error))
        self.events += 1

    async def _train(self, *, until: str) -> None:
        """Train on all that the log holds up to `until`."""
        history = []
        async for entries in event_log.scan(self._redis, self._loop, until=until):
            if events := self._decoded(entries):
                history.append(batch_of(events))
        started = time.monotonic()
        await asyncio.to_thread(self.policy.train, history)
        rows, seconds = sum(len(batch.item) for batch in history), round(time.monotonic() - started, 1)
        log.info("trained", loop=self._loop, policy=self._name, rows=rows, seconds=seconds)

    def _decoded(self, entries: Sequence[event_log.Entry]) -> list[Event]:
        events = []
        for position, fields in entries:
            with suppress(UndecodableEvent):
                entry = decode(position, fields, self._d)
                if isinstance(entry, Event):
                    events.append(entry)
        return events


def batch_of(events: Sequence[Event]) -> Batch:
    """B events as arrays, in log order."""
    return Batch(
        x=np.stack([event.x for event in events]),
        item=[event.item for event in events],
        user=[event.user for event in events],
        reward=np.array([event.reward for event in events], dtype=np.float64),
        propensity=np.array([np.nan if event.propensity is None else event.propensity for event in events]),
    )
