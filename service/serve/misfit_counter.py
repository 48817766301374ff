"""Counts, for each loop, the values that the encoder could not use, and writes the counts to Redis now and then."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from redis.asyncio import Redis

from service.errors import StoreUnavailable
from service.represent.misfits import Misfits
from service.store import event_log
from service.store.keys import Keys

FLUSH_S = 1.0


class MisfitCounter:
    """One worker's counts. What was not written yet is lost with the worker: these counts are for people."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._of: dict[Keys, Misfits] = {}

    def of(self, keys: Keys) -> Misfits:
        """Return what to count a loop's misfits in."""
        found = self._of.get(keys)
        if found is None:
            found = self._of[keys] = Misfits()
        return found

    async def flush(self) -> None:
        """Write the counts down.

        Raises:
            StoreUnavailable: Redis does not answer; the counts are kept for the next time.
        """
        for keys, misfits in list(self._of.items()):
            if misfits:
                counts = {"/".join(name): count for name, count in misfits.counts.items()}
                self._of[keys] = Misfits()
                try:
                    await event_log.count_misfits(self._redis, keys, counts)
                except StoreUnavailable:
                    self._of[keys].merge(misfits)
                    raise
            else:
                del self._of[keys]

    async def run(self) -> None:
        """Flush again and again, until cancelled."""
        while True:
            await asyncio.sleep(FLUSH_S)
            with suppress(StoreUnavailable):
                await self.flush()
