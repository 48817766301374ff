"""Fits a schema to a loop's log as it grows, and appends it as a successor, for every policy to try.

A fit is due after 40 events, then each time the log has doubled, and when a notice tells that the data changed. It
looks at the newest 12 000 events. What it chose is in the log: a replay reads it there and fits nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence

import structlog
from redis.asyncio import Redis

from service.records import Entry, Event, LoopRecord
from service.represent.fit import WINDOW, Fitted, Raw, fit
from service.represent.learned import LearnedEncoder, LearnedSchema
from service.represent.notices import Notice
from service.represent.profile import Profile
from service.represent.schedule import Schedule
from service.represent.stored import is_left_to_the_service, schema_of
from service.store import encoders, event_log, loop_store
from service.store.keys import Keys

log = structlog.get_logger()


class Fitter:
    """Fits the schemas of one loop."""

    def __init__(self, redis: Redis, keys: Keys) -> None:
        self._redis, self._keys = redis, keys
        self._schedule: Schedule | None = None  # None: not looked up yet

    async def is_due(self, events: int) -> bool:
        """Return whether so many events call for a fit."""
        return (await self._looked_up()).is_due(events)

    async def heed(self, notices: Sequence[Notice], events: int) -> None:
        """Take note of what the profile of so many events tells: a change of the data calls for a fit."""
        (await self._looked_up()).heed(notices, events)

    async def _looked_up(self) -> Schedule:
        if self._schedule is None:
            self._schedule = Schedule(await encoders.fitted_on(self._redis, self._keys))
        return self._schedule

    async def fit(self, profile: Profile, position: str) -> bool:
        """Fit a schema to the log up to a position; return whether it was appended to the log.

        Args:
            profile: of the log up to there; it does not change meanwhile.

        Raises:
            NotFound: the loop is gone.
        """
        events = profile.events
        (await self._looked_up()).fitted(events)
        loop = await loop_store.read_loop(self._redis, self._keys.loop)
        if not is_left_to_the_service(loop.schema, declared=loop.declared, fits=loop.settings.fit_schema):
            return False
        former = await self._former(loop)
        history = event_log.scan_in_thread(
            self._redis, self._keys, until=position, loop=asyncio.get_running_loop(), newest=WINDOW
        )
        started = time.monotonic()
        fitted = await asyncio.to_thread(_fit, history, profile, former)
        if fitted is None:
            return False
        encoder = LearnedEncoder(fitted.schema)
        appended = await encoders.append_successor(
            self._redis,
            self._keys,
            fitted.schema.model_dump(mode="json"),
            encoder=encoder.version,
            events=events,
            why=f"fitted to {events} events",
        )
        log.info(
            "schema fitted",
            loop=self._keys.loop,
            events=events,
            encoder=encoder.version,
            columns=encoder.d,
            left_out=dict(fitted.left_out),
            seconds=round(time.monotonic() - started, 2),
            appended=appended is not None,
        )
        return appended is not None

    async def _former(self, loop: LoopRecord) -> LearnedSchema | None:
        """Return the newest schema, if it was learned."""
        if loop.newest is None:
            return None
        version = loop.newest["encoder"]
        schemas = await encoders.read_schemas(self._redis, self._keys, [version])
        schema = schema_of(schemas[version]) if version in schemas else None
        return schema if isinstance(schema, LearnedSchema) else None


def _fit(history: Iterator[Sequence[Entry]], profile: Profile, former: LearnedSchema | None) -> Fitted | None:
    records = [
        Raw(entry.context, entry.item, entry.features or {}, entry.user, entry.reward)
        for entries in history
        for entry in entries
        if isinstance(entry, Event)
    ]
    return fit(records, profile, former) if records else None
