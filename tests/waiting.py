"""Waiting on a fact, with a deadline."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable


def _pause(began: float) -> float:
    """Seconds until the next look: a twentieth of the wait so far, so that a long wait does not cost a processor."""
    return min(0.1, max(0.005, (time.monotonic() - began) / 20))


def until(fact: Callable[[], object], what: str, *, within_s: float = 20.0) -> None:
    """Returns as soon as `fact()` is true.

    Raises:
        TimeoutError: says what did not happen.
    """
    began = time.monotonic()
    while not fact():
        if time.monotonic() - began > within_s:
            raise TimeoutError(f"in {within_s:g} s it did not happen that {what}")
        time.sleep(_pause(began))


async def until_async(fact: Callable[[], Awaitable[object]], what: str, *, within_s: float = 20.0) -> None:
    """Return as soon as `await fact()` is true; let other tasks run meanwhile.

    Raises:
        TimeoutError: says what did not happen.
    """
    began = time.monotonic()
    while not await fact():
        if time.monotonic() - began > within_s:
            raise TimeoutError(f"in {within_s:g} s it did not happen that {what}")
        await asyncio.sleep(_pause(began))
