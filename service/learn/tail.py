"""What the tasks of one loop share when they read its log: an entry that several of them read is decoded once.

Every read asks Redis, whose answer alone says what the log holds; so trims, erasures and restored data need no care.
Of the bytes that it answers, those that were decoded before are not decoded again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from redis.asyncio import Redis

from service.records import Entry, Erasure
from service.store import event_log
from service.store.codec import read_entries, read_entry
from service.store.keys import Keys

MOST_ENTRIES = 4000  # four batches: tasks that are no further apart share what they read
MOST_BYTES = 4 * 2**20  # of the entries as Redis holds them


class Tail:
    """Reads one loop's log, and keeps what it decoded last. Who reads must not change the entries.

    It belongs to one event loop. Its reads may overlap.

    Attributes:
        size: bytes of what it keeps, as Redis holds them.
    """

    def __init__(self, redis: Redis, keys: Keys) -> None:
        self._redis, self._keys = redis, keys
        self._kept: dict[str, tuple[Mapping[bytes, bytes], Entry]] = {}  # by position, in the order of decoding
        self.size = 0

    async def read(self, after: str, *, most: int = 1000, until: str = "+") -> list[Entry]:
        """Read as `event_log.read` does.

        Raises:
            NewerFormat: the next entry was written by a newer version.
        """
        return await event_log.read(self._redis, self._keys, after, most=most, until=until, decode=self._decode)

    async def wait(self, after: str, *, within_ms: int, most: int = 1000) -> list[Entry]:
        """Read as `event_log.wait` does.

        Raises:
            NewerFormat: the next entry was written by a newer version.
        """
        return await event_log.wait(self._redis, self._keys, after, within_ms=within_ms, most=most, decode=self._decode)

    def forget(self) -> None:
        """Give the memory back. What is read again is decoded again."""
        self._kept, self.size = {}, 0

    def _decode(self, entries: Sequence[tuple[bytes, Mapping[bytes, bytes]]]) -> list[Entry]:
        return read_entries(entries, self._entry)

    def _entry(self, position: str, fields: Mapping[bytes, bytes]) -> Entry:
        if (kept := self._kept.get(position)) is not None:
            if kept[0] == fields:  # else Redis lost its newest entries, or was restored
                return kept[1]
            self._drop(position)
        entry = read_entry(position, fields)
        if isinstance(entry, Erasure):
            self.forget()  # some of it is the user's
        self._kept[position] = fields, entry
        self.size += _size(fields)
        while len(self._kept) > MOST_ENTRIES or self.size > MOST_BYTES:
            self._drop(next(iter(self._kept)))
        return entry

    def _drop(self, position: str) -> None:
        fields, _ = self._kept.pop(position)
        self.size -= _size(fields)


def _size(fields: Mapping[bytes, bytes]) -> int:
    return sum(map(len, fields.values()))
