"""Folds over the log of a loop that one learner at a time does: it reads from the checkpoint on, counts, writes down.

Position and result are written in one atomic step, and only by who began where the last one ended. So each entry counts
once, whatever crashes and however many learners are at work; a lease keeps them from doing the work twice. An entry
that the log dropped before it was counted is not counted: a fold holds up no trimming.
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from typing import ClassVar

import structlog
from redis.asyncio import Redis

from service.errors import NotFound, StoreUnavailable
from service.learn.bell import Bell, rest
from service.learn.tail import Tail
from service.records import START, Entry, LoopRecord, order
from service.store import event_log, loop_store
from service.store.codec import NewerFormat
from service.store.keys import Keys
from service.store.policy_store import Lease

LEASE_MS = 5000
POLL_S = 0.5
GATHER_S = 0.1  # between two reads of a log that is waited for
SHARE = 0.05  # of its time that checkpoints may take
RETRY_S, MOST_RETRY_S = 0.5, 30.0

log = structlog.get_logger()


class CountedElsewhere(Exception):
    """Another learner has counted meanwhile, or the loop is gone."""


class LogFold(ABC):
    """Folds one loop's log. `step` is one iteration; `run` loops it; `drain` runs it until the log is empty.

    Attributes:
        position: of the last entry that was counted.
        due_at: when the result is to be written down next, on the monotonic clock, in seconds.
    """

    name: ClassVar[str]  # for people
    period_s: ClassVar[float]  # least time between two checkpoints

    def __init__(self, redis: Redis, keys: Keys, lease: str, tail: Tail | None) -> None:
        self._redis, self._keys, self._tail = redis, keys, tail or Tail(redis, keys)
        self._lease = Lease(redis, keys, lease, ttl_ms=LEASE_MS)
        self._loop: LoopRecord
        self.position: str
        self._saved: str  # the last position that was written
        self.due_at = 0.0
        self._left: str | None = None  # what was counted to when the lease was let go for want of work

    @abstractmethod
    async def _read_position(self) -> str:
        """Return the position that is written down, START where there is none."""

    @abstractmethod
    async def _load(self) -> str:
        """Take up what is written down; return its position.

        Raises:
            NewerFormat: a newer version wrote it.
        """

    @abstractmethod
    async def _take(self, entries: Sequence[Entry]) -> None:
        """Count entries, and move `position` to the last."""

    @abstractmethod
    async def _write(self) -> bool:
        """Write the result and `position` down, if what is written stands at `_saved`; False when it does not."""

    @property
    def _wanted(self) -> bool:
        """Whether the loop asks for this fold; it ends where it does not."""
        return True

    @property
    def _dirty(self) -> bool:
        """Whether something was counted that is not written down."""
        return self.position != self._saved

    @property
    def _eager(self) -> bool:
        """Whether the next entries are waited for, on a connection."""
        return False

    async def _at_rest(self) -> None:
        """Do what is to be done when the log was read to its end: nothing, unless a fold says otherwise."""
        return

    async def open(self) -> bool:
        """Take the lease and go on from the checkpoint; False while another learner holds it.

        Raises:
            NotFound: the loop is gone.
            NewerFormat: a newer version wrote the result.
        """
        await self._read_loop()
        if not await self._lease.acquire():
            return False
        left, self._left = self._left, None
        if left not in (None, START) and left == await self._read_position():
            return True  # what is in memory is what is written
        self.position = self._saved = await self._load()
        return True

    async def _behind(self) -> bool:
        """Return whether the log holds what was not counted.

        Raises:
            NotFound: the loop is gone.
        """
        position = await self._read_position()
        (end,) = await event_log.ends(self._redis, [self._keys])
        return order(end) > order(position)

    async def _read_loop(self) -> None:
        loop = await loop_store.read_loop(self._redis, self._keys.loop)
        if loop.id != self._keys.id:
            raise NotFound(f"the loop {loop.name!r} of then is gone", code="unknown_loop")
        self._loop = loop

    async def step(self) -> int:
        """Count the next entries, write them down when it is time; return the number of entries read.

        Raises:
            CountedElsewhere: what was counted since the checkpoint is thrown away.
            NewerFormat: a newer version wrote the next entry.
        """
        if self._eager:
            within_ms = int(1000 * POLL_S)
            entries = await self._tail.wait(self.position, within_ms=within_ms)
        else:
            entries = await self._tail.read(self.position)
        if entries:
            await self._take(entries)
        if self._dirty and time.monotonic() >= self.due_at:
            await self.save()
        return len(entries)

    async def drain(self) -> int:
        """Count all that is in the log now, write it down, and return the number of entries read."""
        total = 0
        while entries := await self._tail.read(self.position):
            await self._take(entries)
            total += len(entries)
        await self.save()
        return total

    async def save(self) -> None:
        """Write down what was counted, and its position.

        Raises:
            CountedElsewhere.
        """
        started = time.monotonic()
        await self._read_loop()
        if not await self._write():
            raise CountedElsewhere(self._keys.loop)
        self._saved = self.position
        now = time.monotonic()
        self.due_at = now + max(self.period_s, (now - started) / SHARE)

    async def run(self, stop: asyncio.Event, bell: Bell) -> None:
        """Count until `stop`, or until the loop is gone or does not want it; at the end write it down and let go.

        While the loop is not used and there is nothing to count it holds no lease, and sleeps until the bell rings.
        """
        pause = RETRY_S
        while not stop.is_set():
            rung = bell.next
            try:
                await self._read_loop()
                if not self._wanted:
                    return
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
                log.error(f"the {self.name} of this loop goes no further", loop=self._keys.loop, why=str(error))
                pause = MOST_RETRY_S
            except Exception:
                log.exception(f"the {self.name} failed; going on from the checkpoint", loop=self._keys.loop)
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
        while not stop.is_set() and self._wanted and (read or bell.awake or self._dirty):
            read = await self.step()
            if read < 1000:
                await self._at_rest()
            if (now := time.monotonic()) - renewed > LEASE_MS / 4000:
                renewed = now
                if not await self._lease.renew():
                    raise CountedElsewhere(self._keys.loop)
            if read < 1000:
                with suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), GATHER_S if self._eager else POLL_S)
        if self._dirty:
            await self.save()
        await self._lease.release()
        self._left = self._saved
