"""What is told about a run: pure functions of its series. All rates are expected ones, in clicks per recommendation.

Letter: **T** steps of a run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

WINDOW = 500  # steps
ROUNDING = 1e-9  # sums over a run are exact to about 1e-11


def rolling(values: Array, window: int = WINDOW) -> Array:
    """(T - window + 1,) means of `window` neighbours; entry i is over steps i to i + window - 1."""
    sums = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
    means: Array = (sums[window:] - sums[:-window]) / window
    return means


def regret(expected: Array, oracle: Array) -> Array:
    """(T,) clicks that were missed so far, against choosing best at each step."""
    missed: Array = np.cumsum(oracle - expected)
    return missed


def overtaking(expected: Array, baseline: Array) -> int | None:
    """The step from which on `expected` (T,) is never again behind `baseline` (T,) in clicks so far.

    0: it never was behind. None: it still is at the end.
    """
    behind = np.flatnonzero(np.cumsum(expected - baseline) < -ROUNDING)
    if len(behind) == 0:
        return 0
    last = int(behind[-1])
    return None if last == len(expected) - 1 else last + 1


def recovery(
    expected: Array, oracle: Array, *, shock: int, share: float, until: int | None = None, window: int = WINDOW
) -> int | None:
    """Steps from the shock to the end of the first window with Σ expected ≥ share · Σ oracle; at least `window`.

    Only windows lying wholly after the shock, and before `until`, count. None: there is no such window.
    """
    after = slice(shock, until)
    if len(expected[after]) < window:
        return None
    reached = np.flatnonzero(rolling(expected[after], window) >= share * rolling(oracle[after], window) - ROUNDING)
    return int(reached[0]) + window if len(reached) else None


def between_versions(policy: Sequence[str], version: Array) -> Array:
    """How many decisions lie between one version and the next that served, of the same policy."""
    seen: dict[str, int] = {}
    fresh = []
    for step, (name, number) in enumerate(zip(policy, version.tolist(), strict=True)):
        if number > seen.get(name, -1):
            fresh.append(step)
            seen[name] = number
    return np.diff(fresh)
