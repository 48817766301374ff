"""Wakes the tasks of a loop that is used, and lets those of any other loop sleep."""

from __future__ import annotations

import asyncio
import time

AWAKE_S = 5.0  # after a ring; longer than `store.announcements.EVERY_S`, so that no use of the loop goes unheard


class Bell:
    """Rings when a loop is used. Its tasks poll while it is `awake`; else each looks once, and sleeps until it rings.

    A task takes `next` before it looks: a ring that comes while it looks is not lost.

    Attributes:
        next: set by the next ring.
    """

    def __init__(self, *, awake: bool) -> None:
        self.next = asyncio.Event()
        self._until = time.monotonic() + AWAKE_S if awake else 0.0

    def ring(self) -> None:
        """Wake every task of the loop."""
        self._until = time.monotonic() + AWAKE_S
        self.next.set()
        self.next = asyncio.Event()

    @property
    def awake(self) -> bool:
        """Whether it rang in the last `AWAKE_S`."""
        return time.monotonic() < self._until


async def rest(stop: asyncio.Event, rung: asyncio.Event, *, within_s: float | None = None) -> None:
    """Wait until one of both is set, and no longer than `within_s`."""
    waiting = [asyncio.ensure_future(event.wait()) for event in (stop, rung)]
    try:
        await asyncio.wait(waiting, timeout=within_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for one in waiting:
            one.cancel()
