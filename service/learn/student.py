"""A policy and its place in the log: applies entries in order, in one way for new ones and for a replay."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import structlog
from redis.asyncio import Redis

from service.events import Event, UndecodableEvent, decode
from service.learn.drift import Drift
from service.policies import KINDS, Arrays, Batch, NumericalError, Policy
from service.store import log as event_log
from service.store.codec import unpack
from service.store.loops import LoopRecord
from service.store.policies import PolicyRecord

ALARMS_KEPT = 100  # in a policy's record; all stay in the log for as long as it reaches

log = structlog.get_logger()


class Student:
    """One policy from its record, having learned nothing; `position` and `events` tell how far it has come."""

    def __init__(self, redis: Redis, record: LoopRecord, of: PolicyRecord) -> None:
        kind = KINDS[of.kind]
        self.policy: Policy = kind(record.d, kind.Params.model_validate(of.params), seed=of.seed)
        self.position, self.events = event_log.START, 0
        self.alarms: list[dict[str, Any]] = []  # the newest ALARMS_KEPT, oldest first
        self._drift = Drift(self.policy)
        self._redis, self._loop, self._name, self._d = redis, record.name, of.name, record.d
        self._reward_range = record.settings.reward_range

    def resume(self, record: PolicyRecord, state: bytes) -> None:
        """Go on from a checkpoint.

        Raises:
            ValueError: the state is garbled, or was written by another version of this policy's code.
        """
        try:
            self._drift.load(unpack(state))
        except KeyError as error:
            raise ValueError(
                f"the checkpoint has no {error}: another version of Rebound wrote it. Make the policy again under"
                " another name; it learns the retained log, and the old one serves on meanwhile"
            ) from error
        self.position, self.events, self.alarms = record.position, record.events, list(record.alarms)

    def state(self) -> Arrays:
        """All that learning needs to go on, bit for bit."""
        return self._drift.state()

    async def learn(self, entries: Sequence[event_log.Entry]) -> bool:
        """Apply entries that follow the position; True when the policy trained on the way."""
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
                asked = self.policy.train_due(self.events + len(run))
            else:
                asked = entry.train == self._name
            if asked:
                await self._update(run)
                await self._train(until=position)
                run, trained = [], True
        await self._update(run)
        self.position = entries[-1][0]
        return trained

    async def _update(self, events: Sequence[Event]) -> None:
        if not events:
            return
        for event, error in await asyncio.to_thread(self._apply, events):
            await self._dead_letter(event.position, error)

    def _apply(self, events: Sequence[Event]) -> list[tuple[Event, NumericalError]]:
        """Learn events; those that could not be learned come back."""
        refused = []
        for rows in self._drift.parts(len(events)):
            part = events[rows]
            try:
                self._learn(part)
            except NumericalError as error:  # nothing was changed
                if len(part) == 1:
                    refused.append((part[0], error))
                else:
                    for event in part:
                        refused += self._apply([event])
        return refused

    def _learn(self, part: Sequence[Event]) -> None:
        position = part[-1].position
        at = event_log.order(position)[0] / 1000
        places = [event.place for event in part]
        reaction = self._drift.update(batch_of(part, self._reward_range), at, places)
        self.events += len(part)
        if reaction is not None:
            number = self.alarms[-1]["number"] + 1 if self.alarms else 1
            alarm = {"number": number, "at": at, "events": self.events, "position": position, "reaction": reaction}
            self.alarms = [*self.alarms, alarm][-ALARMS_KEPT:]
            log.warning("the world has changed", loop=self._loop, policy=self._name, **alarm)

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
                history.append(batch_of(events, self._reward_range))
        started = time.monotonic()
        try:
            await asyncio.to_thread(self.policy.train, history)
        except NumericalError as error:  # `train` left the weights as they were
            log.error("training failed", loop=self._loop, policy=self._name, why=str(error))
            return
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


def batch_of(events: Sequence[Event], reward_range: tuple[float, float]) -> Batch:
    """B events as arrays, in log order; of each reward, the share of the loop's range that it reaches."""
    low, high = reward_range
    reward = np.array([event.reward for event in events], dtype=np.float64)
    return Batch(
        x=np.stack([event.x for event in events]),
        item=[event.item for event in events],
        user=[event.user for event in events],
        reward=(reward - low) / (high - low),
        propensity=np.array([np.nan if event.propensity is None else event.propensity for event in events]),
    )
