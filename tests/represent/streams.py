"""A clean run of events, with a fault planted where a test asks for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from itertools import islice
from typing import Any

import numpy as np

from service.represent.profile import Arrays, Profile

Change = Callable[[dict[str, Any], int, np.random.Generator], None]
START = 1_700_000_000.0


@cache
def _clean(seed: int) -> list[dict[str, Any]]:
    """6000 events of a clean run."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(6000):
        i, segment, age, version, code = (int(x) for x in rng.integers((40, 4, 63, 3, 4)))
        event: dict[str, Any] = {
            "context": {
                "segment": f"s{segment}",
                "age": 18 + age,
                "speed": float(rng.lognormal()),
                "code": 1001 + code,
                "app": {"version": f"v{version}", "paid": bool(rng.random() < 0.4)},
                "likes": sorted({f"w{word}" for word in rng.integers(0, 5, 2)}),
                "taste": rng.normal(size=20).round(3).tolist(),
            },
            "item": f"i{i}",
            "features": {"price": 5.0 + 4.75 * i, "kind": f"k{i % 4}", "new": i < 9},
            "user": f"u{rng.integers(300)}",
            "reward": float(rng.random() < 0.3),
            "at": START + 10.0 * number + float(rng.random()),
            "request": f"d{number}",
        }
        if rng.random() < 0.3:
            event["context"]["referrer"] = f"r{rng.integers(6)}"
        found.append(event)
    return found


def events(n: int, *, change: Change | None = None, start: int = 0, end: int = 10**9, seed: int = 1) -> Iterator[Any]:
    """Yield the arguments of `Profile.add` for n ≤ 6000 events.

    Args:
        change: plants a fault: takes the event, its number and a generator, and changes the event.
        start, end: the events that it is planted in.
    """
    planted = np.random.default_rng(seed + 1000)
    for number, event in enumerate(_clean(seed)[:n]):
        event = {**event, "context": {**event["context"]}, "features": {**event["features"]}}
        if change is not None and start <= number < end:
            change(event, number, planted)
        yield event


def profile_of(n: int, *, change: Change | None = None, start: int = 0, end: int = 10**9, seed: int = 1) -> Profile:
    """Profile a run of n events; the arguments are those of `events`.

    What goes before the fault, and the fault itself, are profiled once for all tests: a state goes on as if it had
    never been saved (`test_profile.py` shows it).
    """
    changed = change is not None
    if changed and end < n:
        profile, first = Profile.load(_state(end, change, start, seed)), end
    elif changed and start:
        profile, first = Profile.load(_state(start, None, 0, seed)), start
    else:
        profile, first = Profile(), 0
    for event in islice(events(n, change=change, start=start, end=end, seed=seed), first, None):
        profile.add(**event)
    return profile


@cache
def _state(n: int, change: Change | None, start: int, seed: int) -> Arrays:
    return profile_of(n, change=change, start=start, seed=seed).state()
