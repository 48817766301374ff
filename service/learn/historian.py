"""Keeps the history of one loop: a fold over its log (`log_fold.py`) into bins (`evaluate/history.py`)."""

from __future__ import annotations

from collections.abc import Sequence

from redis.asyncio import Redis

from service.evaluate.history import Bin, BinId, add, alive, bins_of, dump, expired, load
from service.learn.log_fold import LogFold
from service.learn.tail import Tail
from service.records import START, Entry, Event
from service.store import history_store
from service.store.history_store import LEASE
from service.store.keys import Keys

MOST_HELD = 2000  # bins; with more, they are written down at once


class Historian(LogFold):
    """Keeps the history of one loop. It holds the bins that changed since the last checkpoint, and no others."""

    name, period_s = "history", 1.0

    def __init__(self, redis: Redis, keys: Keys, tail: Tail | None = None) -> None:
        super().__init__(redis, keys, LEASE, tail)
        self._bins: dict[BinId, Bin] = {}

    async def _read_position(self) -> str:
        return await history_store.read_position(self._redis, self._keys)

    async def _load(self) -> str:
        self._bins = {}
        return await self._read_position()

    async def _take(self, entries: Sequence[Entry]) -> None:
        found = [(entry, bins) for entry in entries if isinstance(entry, Event) and (bins := bins_of(entry))]
        new = sorted({bin for _, bins in found for bin in bins} - self._bins.keys())
        stored = await history_store.read_bins(self._redis, self._keys, [bin.name for bin in new])
        self._bins |= {bin: load(stored[bin.name]) if bin.name in stored else {} for bin in new}
        for event, bins in found:
            add(event, [self._bins[bin] for bin in bins])
        self.position = entries[-1].position
        if len(self._bins) > MOST_HELD:
            self.due_at = 0.0

    async def _write(self) -> bool:
        saved = await history_store.save(
            self._redis,
            self._keys,
            seen=self._saved,
            position=self.position,
            bins={bin.name: dump(sums) for bin, sums in self._bins.items() if alive(bin, self.position)},
            gone=[] if self._saved == START else [bin.name for bin in expired(self._saved, self.position)],
        )
        self._bins = {}
        return saved
