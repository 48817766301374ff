"""Waiting on a fact, with a deadline."""

from __future__ import annotations

import time
from collections.abc import Callable


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
