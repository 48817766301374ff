"""Counts what the sources of a loop's funnel are made from, and publishes it (`service/retrieve/counts.py`).

It is a fold over the loop's log (`log_fold.py`), and follows its catalogue's log of changes, too. Where a source needs
it, it follows the log of activity; after an erasure it counts that anew.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import structlog
from redis.asyncio import Redis

from service.learn.log_fold import LogFold
from service.learn.tail import Tail
from service.records import START, Entry, Event, order
from service.retrieve.counts import Counts
from service.retrieve.covisits import Covisits
from service.store import activity_log, event_log, item_store, retrieval_store
from service.store.codec import pack, unpack
from service.store.keys import Keys
from service.store.retrieval_store import LEASE

BATCHES = 10  # of the log of activity, between two looks at the lease

log = structlog.get_logger()


class Indexer(LogFold):
    """Counts for one loop, as long as it has a funnel."""

    name, period_s = "count for the funnel", 2.0

    def __init__(self, redis: Redis, keys: Keys, tail: Tail | None = None) -> None:
        super().__init__(redis, keys, LEASE, tail)
        self._counts: Counts
        self._version = self._followed = 0  # the newest version, and that of the catalogue that it has followed
        self._reached = START  # in the log of activity, by the newest version
        self._more = False  # whether that log goes on

    @property
    def _wanted(self) -> bool:
        return bool(self._loop.settings.funnel)

    @property
    def _dirty(self) -> bool:
        moved = self._counts.catalogue != self._followed or self._counts.covisits.position != self._reached
        return super()._dirty or moved or self._more

    async def _read_position(self) -> str:
        position, *_ = await retrieval_store.read_reach(self._redis, self._keys)
        return position

    async def _behind(self) -> bool:
        _, catalogue, activity = await retrieval_store.read_reach(self._redis, self._keys)
        if await super()._behind() or self._loop.catalogue > catalogue:
            return True
        if not self._loop.settings.funnel.follows_activity:
            return False
        return order(await activity_log.end_of(self._redis, self._keys)) > order(activity)

    async def _load(self) -> str:
        record = await retrieval_store.read_retrieval(self._redis, self._keys)
        self._version, position, self._counts = record.version, START, Counts()
        if record.state is not None:
            try:
                self._counts = await asyncio.to_thread(Counts.load, unpack(record.state))
                position = record.position
            except ValueError as error:  # of an older version: the log tells it again
                log.warning("what sources are made from is made anew", loop=self._keys.loop, why=str(error))
        self._followed, self._reached = self._counts.catalogue, self._counts.covisits.position
        return position

    async def _take(self, entries: Sequence[Entry]) -> None:
        self._counts.add([entry for entry in entries if isinstance(entry, Event)])
        self.position = entries[-1].position

    async def _at_rest(self) -> None:
        await self._read_loop()
        while changes := await item_store.read_turnover(self._redis, self._keys, self._counts.catalogue):
            self._counts.follow(changes)
        # Changes that are no longer kept are not waited for.
        self._counts.catalogue = max(self._counts.catalogue, self._loop.catalogue)
        await self._follow_activity()

    async def _follow_activity(self) -> None:
        """Count some of the next activity, if a source needs it."""
        counts, self._more = self._counts, False
        if not self._loop.settings.funnel.follows_activity:
            if counts.covisits:
                counts.covisits = Covisits()
            return
        stats = await event_log.read_stats(self._redis, self._keys)
        if (erased := stats.get("activity_erased", 0)) != counts.covisits.erased:
            counts.covisits = Covisits(erased=erased)
        for _ in range(BATCHES):
            last, activity = await activity_log.read_log(self._redis, self._keys, counts.covisits.position)
            if last is None:
                return
            await asyncio.to_thread(counts.covisits.add, activity, last)
        self._more = True

    async def drain(self) -> int:
        await self._at_rest()
        while self._more:
            await self._at_rest()
        return await super().drain()

    async def _write(self) -> bool:
        state = await asyncio.to_thread(lambda: pack(self._counts.state()))
        saved = await retrieval_store.save_retrieval(
            self._redis,
            self._keys,
            seen=self._version,
            position=self.position,
            catalogue=self._counts.catalogue,
            activity=self._counts.covisits.position,
            events=self._counts.events,
            items=len(self._counts),
            together=len(self._counts.covisits),
            state=state,
        )
        if saved:
            self._version += 1
            self._followed, self._reached = self._counts.catalogue, self._counts.covisits.position
        return saved
