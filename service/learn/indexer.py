"""Counts what the sources of a loop's funnel are made from, and publishes it (`service/retrieve/counts.py`).

Position and counts are written in one atomic step, and only by who began where the last one ended. So each event
counts once, whatever crashes and however many learners are at work; a lease keeps them from doing the work twice. An
entry that the log dropped before it was counted is not counted: counts hold up no trimming.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress

import structlog
from redis.asyncio import Redis

from service.errors import NotFound, StoreUnavailable
from service.learn.bell import Bell, rest
from service.records import START, Event, LoopRecord, order
from service.retrieve.counts import Counts
from service.store import event_log, item_store, loop_store, retrieval_store
from service.store.codec import NewerFormat, pack, unpack
from service.store.keys import Keys
from service.store.policy_store import Lease
from service.store.retrieval_store import LEASE

LEASE_MS = 5000
POLL_S = 0.5
PERIOD_S = 2.0  # least time between two versions
SHARE = 0.05  # of its time that publishing may take
RETRY_S, MOST_RETRY_S = 0.5, 30.0

log = structlog.get_logger()


class CountedElsewhere(Exception):
    """Another learner has counted meanwhile, or the loop is gone."""


class Indexer:
    """Counts for one loop. `step` is one iteration; `run` loops it; `drain` counts all that there is."""

    def __init__(self, redis: Redis, keys: Keys) -> None:
        self._redis, self._keys = redis, keys
        self._lease = Lease(redis, keys, LEASE, ttl_ms=LEASE_MS)
        self._loop: LoopRecord
        self._counts: Counts
        self._position = self._saved = START
        self._version = self._followed = 0  # the newest version, and that of the catalogue that it has followed
        self._due_at = 0.0  # when the next version is to be published, on the monotonic clock, in seconds

    async def open(self) -> bool:
        """Take the lease and go on from the newest version; False while another learner holds it.

        Raises:
            NotFound: the loop is gone.
            NewerFormat: a newer version of Rebound wrote the counts.
        """
        await self._read_loop()
        if not await self._lease.acquire():
            return False
        record = await retrieval_store.read_retrieval(self._redis, self._keys)
        self._version, self._position, self._counts = record.version, START, Counts()
        if record.state is not None:
            try:
                self._counts = await asyncio.to_thread(Counts.load, unpack(record.state))
                self._position = record.position
            except ValueError as error:  # of an older version: the log tells it again
                log.warning("what sources are made from is made anew", loop=self._keys.loop, why=str(error))
        self._saved = self._position
        self._followed = self._counts.catalogue
        return True

    async def _read_loop(self) -> None:
        loop = await loop_store.read_loop(self._redis, self._keys.loop)
        if loop.id != self._keys.id:
            raise NotFound(f"the loop {loop.name!r} of then is gone", code="unknown_loop")
        self._loop = loop

    @property
    def _dirty(self) -> bool:
        return self._position != self._saved or self._counts.catalogue != self._followed

    async def step(self) -> int:
        """Count the next entries and changes, publish when it is time; return how many were read.

        Raises:
            CountedElsewhere: what was counted since the newest version is thrown away.
            NewerFormat: a newer version wrote the next entry.
        """
        read = await self._take()
        if self._dirty and time.monotonic() >= self._due_at:
            await self.save()
        return read

    async def drain(self) -> None:
        """Count all that there is now, and publish it."""
        while await self._take():
            pass
        await self.save()

    async def _take(self) -> int:
        entries = await event_log.read(self._redis, self._keys, self._position)
        if entries:
            self._counts.add([entry for entry in entries if isinstance(entry, Event)])
            self._position = entries[-1].position
        changes = await item_store.read_turnover(self._redis, self._keys, self._counts.catalogue)
        self._counts.follow(changes)
        if not changes:  # changes that are no longer kept are not waited for
            self._counts.catalogue = max(self._counts.catalogue, self._loop.catalogue)
        return len(entries) + len(changes)

    async def save(self) -> None:
        """Publish the next version.

        Raises:
            CountedElsewhere.
        """
        started = time.monotonic()
        state = await asyncio.to_thread(lambda: pack(self._counts.state()))
        saved = await retrieval_store.save_retrieval(
            self._redis,
            self._keys,
            seen=self._version,
            position=self._position,
            catalogue=self._counts.catalogue,
            events=self._counts.events,
            items=len(self._counts),
            state=state,
        )
        if not saved:
            raise CountedElsewhere(self._keys.loop)
        self._version += 1
        self._saved, self._followed = self._position, self._counts.catalogue
        now = time.monotonic()
        self._due_at = now + max(PERIOD_S, (now - started) / SHARE)

    async def run(self, stop: asyncio.Event, bell: Bell) -> None:
        """Count until `stop`, or until the loop has no funnel or is gone; at the end publish and let go.

        While the loop is not used it holds no lease, and sleeps until the bell rings.
        """
        pause = RETRY_S
        while not stop.is_set():
            rung = bell.next
            try:
                await self._read_loop()
                if not self._loop.settings.funnel:
                    return
                if not bell.awake and not await self._behind():
                    await rest(stop, rung)
                    continue
                if await self.open():
                    pause = RETRY_S
                    await self._hold(stop, bell)
                    continue
            except NotFound:
                return
            except (CountedElsewhere, StoreUnavailable):
                pass  # what was counted since the newest version is read again
            except NewerFormat as error:
                log.error("nothing is counted for this loop's funnel any further", loop=self._keys.loop, why=str(error))
                pause = MOST_RETRY_S
            except Exception:
                log.exception("counting failed; going on from the newest version", loop=self._keys.loop)
                pause = min(2 * pause, MOST_RETRY_S)
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), pause)

    async def _behind(self) -> bool:
        """Return whether there is what the newest version does not count."""
        [end] = await event_log.ends(self._redis, [self._keys])
        position, catalogue = await retrieval_store.read_reach(self._redis, self._keys)
        return order(end) > order(position) or self._loop.catalogue > catalogue

    async def _hold(self, stop: asyncio.Event, bell: Bell) -> None:
        renewed, read = time.monotonic(), 1
        while not stop.is_set() and self._loop.settings.funnel and (read or bell.awake or self._dirty):
            read = await self.step()
            if (now := time.monotonic()) - renewed > LEASE_MS / 4000:
                renewed = now
                await self._read_loop()
                if not await self._lease.renew():
                    raise CountedElsewhere(self._keys.loop)
            if read < 1000:
                with suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), POLL_S)
        if self._dirty:
            await self.save()
        await self._lease.release()
