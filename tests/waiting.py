"""Waiting on a fact, with a deadline."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable


def until(fact: Callable[[], object], what: str, *, within_s: float = 20.0) -> None:
    """Returns as soon as `fact()` is true.

    Raises:
        TimeoutError: says what did not happen.
    """
    deadline = time.monotonic() + within_s
    while not fact():
        if time.monotonic() > deadline:
            raise TimeoutError(f"in {within_s:g} s it did not happen that {what}")
        time.sleep(0.005)


async def until_async(fact: Callable[[], Awaitable[object]], what: str, *, within_s: float = 20.0) -> None:
    """Return as soon as `await fact()` is true; let other tasks run meanwhile.

    Raises:
        TimeoutError: says what did not happen.
    """
    deadline = time.monotonic() + within_s
    while not await fact():
        if time.monotonic() > deadline:
            raise TimeoutError(f"in {within_s:g} s it did not happen that {what}")
        await asyncio.sleep(0.005)
