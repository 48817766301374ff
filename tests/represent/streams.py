"""A clean run of events, with a fault planted where a test asks for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from service.represent.profile import Profile

Change = Callable[[dict[str, Any], int, np.random.Generator], None]
START = 1_700_000_000.0


def events(n: int, *, change: Change | None = None, start: int = 0, end: int = 10**9, seed: int = 1) -> Iterator[Any]:
    """Yield the arguments of `Profile.add` for n events.

    Args:
        change: plants a fault: takes the event, its number and a generator, and changes the event.
        start, end: the events that it is planted in.
    """
    rng = np.random.default_rng(seed)
    planted = np.random.default_rng(seed + 1000)
    for number in range(n):
        i = int(rng.integers(40))
        event: dict[str, Any] = {
            "context": {
                "segment": f"s{rng.integers(4)}",
                "age": int(rng.integers(18, 81)),
                "speed": float(rng.lognormal()),
                "code": int(rng.integers(1001, 1005)),
                "app": {"version": f"v{rng.integers(3)}", "paid": bool(rng.random() < 0.4)},
                "likes": sorted({f"w{rng.integers(5)}" for _ in range(2)}),
                "taste": [round(float(x), 3) for x in rng.normal(size=20)],
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
        if change is not None and start <= number < end:
            change(event, number, planted)
        yield event


def profile_of(n: int, **planted: Any) -> Profile:
    """Profile a run of n events."""
    profile = Profile()
    for event in events(n, **planted):
        profile.add(**event)
    return profile
