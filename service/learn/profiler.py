"""Keeps the profile of one loop: a fold over its log (`log_fold.py`), and what is wrong with its data beside it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import structlog
from redis.asyncio import Redis

from service.learn.fitter import Fitter
from service.learn.log_fold import LEASE_MS, SHARE, LogFold
from service.learn.tail import Tail
from service.records import START, Entry, Erasure, Event, Successor, order
from service.represent.notices import Notice, notices_of
from service.represent.profile import Profile
from service.represent.schema import FeatureSchema
from service.represent.stored import is_left_to_the_service
from service.store import event_log, profile_store
from service.store.codec import pack, unpack
from service.store.keys import Keys
from service.store.profile_store import LEASE, ProfileRecord

YOUNG = 1000  # events up to which entries are waited for, so that the first fits come early
LOOK_S = 0.25  # least time between two looks at what the profile tells, which take SHARE of the time at most

log = structlog.get_logger()


class Profiler(LogFold):
    """Profiles one loop.

    Attributes:
        look_at: when the profile is to be looked at next, on the monotonic clock, in seconds.
    """

    name, period_s = "profile", 2.0

    def __init__(self, redis: Redis, keys: Keys, tail: Tail | None = None) -> None:
        super().__init__(redis, keys, LEASE, tail)
        self._profile: Profile
        self._clean_to = START  # what this erasure and those before it erased was gone when the counting began
        self._quiet_to = START  # counting anew after an erasure: nothing is written down before the log's newest
        self._looked = START  # position of the last entry after which the profile was looked at
        self.look_at = 0.0
        self._fitter = Fitter(redis, keys)

    async def _read_position(self) -> str:
        return await profile_store.read_position(self._redis, self._keys)

    async def _load(self) -> str:
        record = await profile_store.read_profile(self._redis, self._keys)
        try:
            state = None if record.state is None else unpack(record.state)
            self._profile = Profile() if state is None else await asyncio.to_thread(Profile.load, state)
        except ValueError as error:  # of an older version, or garbled: the log tells it again
            log.warning("the profile is made anew", loop=self._keys.loop, why=str(error))
            await profile_store.drop_profile(self._redis, self._keys)
            record, self._profile = ProfileRecord(), Profile()
        self._clean_to = self._quiet_to = START
        if record.position == START:
            self._clean_to = await event_log.newest_erasure(self._redis, self._keys)
        return record.position

    @property
    def _eager(self) -> bool:
        return self._profile.events < YOUNG

    async def _at_rest(self) -> None:
        if self._fits and self.position != self._looked and time.monotonic() >= self.look_at:
            await self._look()
        if await self._fitter.is_due(self._profile.events):
            await self._fit()

    async def _take(self, entries: Sequence[Entry]) -> None:
        if self.position == START:  # the first schema may change until there are events; later ones are in the log
            await self._read_loop()
            self._profile.declare(_schema(self._loop.schema))
        if not await asyncio.to_thread(self._count, entries):
            self._profile, self.position, self._looked = Profile(), START, START
            self._fitter = Fitter(self._redis, self._keys)  # the newest fit may be withdrawn
            self._clean_to = self._quiet_to = await event_log.newest_erasure(self._redis, self._keys)

    def _count(self, entries: Sequence[Entry]) -> bool:
        """Count entries; False where it turns out that something was counted which was erased since."""
        for entry in entries:
            if isinstance(entry, Erasure) and order(entry.position) > order(self._clean_to):
                return False
            if isinstance(entry, Successor) and entry.declared:
                self._profile.declare(_schema(entry.schema))
            elif isinstance(entry, Event):
                self._profile.add(
                    context=entry.context,
                    item=entry.item,
                    features=entry.features,
                    user=entry.user,
                    reward=entry.reward,
                    at=entry.time,
                    request=entry.decision_id,
                )
        self.position = entries[-1].position
        return True

    async def save(self) -> None:
        """Write the profile and its position down; not yet, where a part of it still shows what was erased.

        Raises:
            CountedElsewhere.
        """
        if order(self.position) >= order(self._quiet_to):
            await super().save()

    async def _write(self) -> bool:
        state, notices = await asyncio.to_thread(self._state)
        record = ProfileRecord(self.position, self._profile.events, state)
        said = [asdict(notice) for notice in notices]
        if not await profile_store.save_profile(self._redis, self._keys, seen=self._saved, record=record, notices=said):
            return False
        await self._heed(notices)
        return True

    async def _look(self) -> None:
        """Tell the fitter what the profile says now: a change of the data need not wait until it is written down."""
        started = time.monotonic()
        await self._heed(await asyncio.to_thread(self._notices))
        now = time.monotonic()
        self.look_at = now + max(LOOK_S, (now - started) / SHARE)

    async def _heed(self, notices: Sequence[Notice]) -> None:
        self._looked = self.position
        await self._fitter.heed(notices, self._profile.events)

    def _state(self) -> tuple[bytes, list[Notice]]:
        return pack(self._profile.state()), self._notices()

    def _notices(self) -> list[Notice]:
        return notices_of(self._profile, reward_range=self._loop.settings.reward_range, fits=self._fits)

    @property
    def _fits(self) -> bool:
        loop = self._loop
        return is_left_to_the_service(loop.schema, declared=loop.declared, fits=loop.settings.fit_schema)

    async def _fit(self) -> None:
        """Let the fitter work; it may take longer than a lease lasts."""
        fitting = asyncio.create_task(self._fitter.fit(self._profile, self.position))
        while not fitting.done():
            await asyncio.wait({fitting}, timeout=LEASE_MS / 4000)
            await self._lease.renew()
        await fitting


def _schema(said: Mapping[str, Any]) -> FeatureSchema | None:
    """Return the schema that a person declared; None where it leaves the fields to the service."""
    try:
        schema = FeatureSchema.model_validate(said)
    except ValueError:  # one that was fitted: its fields are no contract
        return None
    return schema if schema.context or schema.item else None
