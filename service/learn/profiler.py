"""Keeps the profile of one loop: reads its log from the checkpoint on, counts, and writes down what is wrong.

Position and profile are written in one atomic step, and only by who began where the last one ended. So each event
counts once, whatever crashes and however many learners are at work; a lease keeps them from doing the work twice. An
entry that the log dropped before it was counted is not counted: a profile holds up no trimming.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Any

import structlog
from redis.asyncio import Redis

from service.errors import NotFound, StoreUnavailable
from service.learn.bell import Bell, rest
from service.learn.fitter import Fitter
from service.records import START, Entry, Erasure, Event, LoopRecord, Successor, order
from service.represent.notices import Notice, notices_of
from service.represent.profile import Profile
from service.represent.schema import FeatureSchema
from service.represent.stored import is_left_to_the_service
from service.store import event_log, loop_store, profile_store
from service.store.codec import NewerFormat, pack, unpack
from service.store.keys import Keys
from service.store.policy_store import Lease
from service.store.profile_store import LEASE, ProfileRecord

LEASE_MS = 5000
POLL_S = 0.5
YOUNG = 1000  # events up to which entries are waited for, on a connection, so that the first fits come early
GATHER_S = 0.1  # between two reads of a young log
PERIOD_S = 2.0  # least time between two checkpoints
SHARE = 0.05  # of its time that checkpoints may take
RETRY_S, MOST_RETRY_S = 0.5, 30.0

log = structlog.get_logger()


class CountedElsewhere(Exception):
    """Another learner has counted meanwhile, or the loop is gone."""


class Profiler:
    """Profiles one loop. `step` is one iteration; `run` loops it; `drain` runs it until the log is empty.

    Attributes:
        position: of the last entry that was counted.
        due_at: when the profile is to be written down next, on the monotonic clock, in seconds.
    """

    def __init__(self, redis: Redis, keys: Keys) -> None:
        self._redis, self._keys = redis, keys
        self._lease = Lease(redis, keys, LEASE, ttl_ms=LEASE_MS)
        self._loop: LoopRecord
        self._profile: Profile
        self.position: str
        self._saved: str  # and the last whose count was written
        self._clean_to = START  # what this erasure and those before it erased was gone when the counting began
        self._quiet_to = START  # counting anew after an erasure: nothing is written down before the log's newest
        self.due_at = 0.0
        self._fitter = Fitter(redis, keys)
        self._left: str | None = None  # what was counted to when the lease was let go for want of work

    async def open(self) -> bool:
        """Take the lease and go on from the checkpoint; False while another learner holds it.

        Raises:
            NotFound: the loop is gone.
            NewerFormat: a newer version wrote the profile.
        """
        await self._read_loop()
        if not await self._lease.acquire():
            return False
        left, self._left = self._left, None
        if left not in (None, START) and left == await profile_store.read_position(self._redis, self._keys):
            return True  # what is in memory is what is written
        record = await profile_store.read_profile(self._redis, self._keys)
        try:
            state = None if record.state is None else unpack(record.state)
            self._profile = Profile() if state is None else await asyncio.to_thread(Profile.load, state)
        except ValueError as error:  # of an older version, or garbled: the log tells it again
            log.warning("the profile is made anew", loop=self._keys.loop, why=str(error))
            await profile_store.drop_profile(self._redis, self._keys)
            record, self._profile = ProfileRecord(), Profile()
        self.position = self._saved = record.position
        self._clean_to = self._quiet_to = START
        if self.position == START:
            self._clean_to = await event_log.newest_erasure(self._redis, self._keys)
        return True

    async def _behind(self) -> bool:
        """Return whether the log holds what was not counted.

        Raises:
            NotFound: the loop is gone.
        """
        await self._read_loop()
        position = await profile_store.read_position(self._redis, self._keys)
        (end,) = await event_log.ends(self._redis, [self._keys])
        return order(end) > order(position)

    async def _read_loop(self) -> None:
        loop = await loop_store.read_loop(self._redis, self._keys.loop)
        if loop.id != self._keys.id:
            raise NotFound(f"the loop {loop.name!r} of then is gone", code="unknown_loop")
        self._loop = loop

    async def step(self) -> int:
        """Count the next entries, write the profile down when it is time; return the number of entries read.

        Raises:
            CountedElsewhere: what was counted since the checkpoint is thrown away.
            NewerFormat: a newer version wrote the next entry.
        """
        if self._young:
            within_ms = int(1000 * POLL_S)
            entries = await event_log.wait(self._redis, self._keys, self.position, within_ms=within_ms)
        else:
            entries = await event_log.read(self._redis, self._keys, self.position)
        if entries:
            await self._take(entries)
        if self.position != self._saved and time.monotonic() >= self.due_at:
            await self.save()
        return len(entries)

    @property
    def _young(self) -> bool:
        return self._profile.events < YOUNG

    async def drain(self) -> int:
        """Count all that is in the log now, write it down, and return the number of entries read."""
        total = 0
        while entries := await event_log.read(self._redis, self._keys, self.position):
            await self._take(entries)
            total += len(entries)
        await self.save()
        return total

    async def _take(self, entries: Sequence[Entry]) -> None:
        if self.position == START:  # the first schema may change until there are events; later ones are in the log
            await self._read_loop()
            self._profile.declare(_schema(self._loop.schema))
        if not await asyncio.to_thread(self._count, entries):
            self._profile, self.position = Profile(), START
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
        if order(self.position) < order(self._quiet_to):
            return
        started = time.monotonic()
        await self._read_loop()
        state, notices = await asyncio.to_thread(self._state)
        record = ProfileRecord(self.position, self._profile.events, state)
        said = [asdict(notice) for notice in notices]
        if not await profile_store.save_profile(self._redis, self._keys, seen=self._saved, record=record, notices=said):
            raise CountedElsewhere(self._keys.loop)
        self._saved = self.position
        await self._fitter.heed(notices, self._profile.events)
        now = time.monotonic()
        self.due_at = now + max(PERIOD_S, (now - started) / SHARE)

    def _state(self) -> tuple[bytes, list[Notice]]:
        loop = self._loop
        fits = is_left_to_the_service(loop.schema, declared=loop.declared, fits=loop.settings.fit_schema)
        found = notices_of(self._profile, reward_range=loop.settings.reward_range, fits=fits)
        return pack(self._profile.state()), found

    async def run(self, stop: asyncio.Event, bell: Bell) -> None:
        """Count until `stop`, or until the loop is gone; at the end write down what was counted and let go.

        While the loop is not used and there is nothing to count it holds no lease, and sleeps until the bell rings.
        """
        pause = RETRY_S
        while not stop.is_set():
            rung = bell.next
            try:
                if not bell.awake and not await self._behind():
                    await rest(stop, rung)
                    continue
                if await self.open():
                    pause = RETRY_S
                    await self._hold(stop, bell)
                    continue
            except (NotFound, CountedElsewhere):
                if await self._gone():
                    return
            except StoreUnavailable:
                pass  # what was counted since the checkpoint is read again
            except NewerFormat as error:
                log.error("this loop is not profiled any further", loop=self._keys.loop, why=str(error))
                pause = MOST_RETRY_S
            except Exception:
                log.exception("profiling failed; going on from the checkpoint", loop=self._keys.loop)
                pause = min(2 * pause, MOST_RETRY_S)
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), pause)

    async def _gone(self) -> bool:
        try:
            await self._read_loop()
        except NotFound:
            return True
        except Exception:
            return False
        return False

    async def _hold(self, stop: asyncio.Event, bell: Bell) -> None:
        renewed, read = time.monotonic(), 1
        while not stop.is_set() and (read or bell.awake or self.position != self._saved):
            read = await self.step()
            if read < 1000 and await self._fitter.is_due(self._profile.events):
                await self._fit()
            if (now := time.monotonic()) - renewed > LEASE_MS / 4000:
                renewed = now
                if not await self._lease.renew():
                    raise CountedElsewhere(self._keys.loop)
            if read < 1000:
                with suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), GATHER_S if self._young else POLL_S)
        if self.position != self._saved:
            await self.save()
        await self._lease.release()
        self._left = self._saved

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
