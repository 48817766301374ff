"""A process shows its supervisor that its event loop runs: a byte through a pipe, again and again.

A process that hangs has not died, so nobody would start it again. A byte says nothing about Redis: a process that waits
for Redis is alive.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, TypeVar

BEAT_S = 0.2
BOOT_S = 60.0  # a process that has never shown life is given so long to import what it needs

T = TypeVar("T")


async def beating(work: Coroutine[Any, Any, T], fd: int | None) -> T:
    """Await `work`; meanwhile write a byte to a pipe every 200 ms.

    Args:
        fd: the pipe's end to write to; None: nobody watches.
    """
    if fd is None:
        return await work
    os.set_blocking(fd, False)
    heart = asyncio.create_task(_beat(fd))
    try:
        return await work
    finally:
        heart.cancel()


async def _beat(fd: int) -> None:
    while True:
        with suppress(BlockingIOError, BrokenPipeError):  # nobody reads just now, or any more
            os.write(fd, b"\0")
        await asyncio.sleep(BEAT_S)


class Watched:
    """The supervisor's end of one child's pipe.

    Args:
        now: seconds of the monotonic clock.

    Attributes:
        fd: the end that the child inherits.
    """

    def __init__(self, now: float) -> None:
        self._read, self.fd = os.pipe()
        os.set_blocking(self._read, False)
        self._last = now + BOOT_S  # when a byte was read

    def started(self) -> None:
        """Close the child's end here: the child has it now."""
        os.close(self.fd)

    def silence(self, now: float) -> float:
        """Return for how many seconds the child has shown no life; until its first sign, those beyond 60.

        Bytes that waited while the supervisor itself stood still count as of now.
        """
        with suppress(BlockingIOError):
            if os.read(self._read, 1 << 16):
                self._last = now
        return max(0.0, now - self._last)

    def close(self) -> None:
        """Give the pipe back."""
        os.close(self._read)
