"""Measures of a run, as pure functions of its series. All rates are expected rewards per recommendation.

Letter: **T** steps of a run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

ROLLING = 500  # steps of a rolling mean
LEARNED = 0.1  # least gain of a median run beside which others can be locked in
ROUNDING = 1e-9  # sums over a run are exact to about 1e-11


def rolling(values: Array, window: int = ROLLING) -> Array:
    """Return the (T - window + 1,) means of `window` neighbours; entry i covers steps i to i + window - 1."""
    sums = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
    means: Array = (sums[window:] - sums[:-window]) / window
    return means


def regret(expected: Array, oracle: Array) -> Array:
    """Return the (T,) cumulative regret, in clicks, against the best choice at each step."""
    missed: Array = np.cumsum(oracle - expected)
    return missed


def gain(expected: Array, oracle: Array, random: Array) -> float:
    """Return what was gained over a random choice, as a share of what could be: (shown - random) / (best - random).

    Args:
        expected, oracle, random: (T,) expected rewards of what was shown, of the best choice, of a random one.

    Returns:
        At most 1; 0 for a random choice, below it for a worse one; NaN where all items are worth the same.
    """
    possible = float((oracle - random).sum())
    return float((expected - random).sum()) / possible if possible > 0 else float("nan")


def last_fifth(values: Array) -> Array:
    """Return the last fifth of a series (T,)."""
    return values[len(values) - len(values) // 5 :]


def half_gain_at(expected: Array, oracle: Array, random: Array, *, window: int = ROLLING) -> int | None:
    """Return the end of the first window of decisions whose gain is at least .5; None: there is no such window."""
    if len(expected) < window:
        return None
    reached = np.flatnonzero(rolling(expected - random, window) >= rolling(oracle - random, window) / 2 - ROUNDING)
    return int(reached[0]) + window if len(reached) else None


def regained_after(
    expected: Array, oracle: Array, random: Array, *, at: int, share: float = 0.9, window: int = 250
) -> int | None:
    """Return the decisions from a change to the end of the first window whose gain is `share` of what it was before.

    What it was before is the gain of the last two windows before step `at`. None: there is no such window, or nothing
    had been gained (less than .1).
    """
    before = slice(max(0, at - 2 * window), at)
    had = gain(expected[before], oracle[before], random[before])
    shown, possible = (rolling(series[at:], window) for series in (expected - random, oracle - random))
    reached = np.flatnonzero(shown >= share * had * possible - ROUNDING)
    return int(reached[0]) + window if had >= LEARNED and len(reached) else None


def locked_in(gains: Array) -> int:
    """Count the runs whose gain in the last fifth is below half of the median's, of such gains (seeds,).

    Returns:
        0 where the median is below .1: there is nothing to fall behind.
    """
    median = float(np.median(gains))
    return int((gains < median / 2).sum()) if median >= LEARNED else 0


def beats(expected: Array, reference: Array, *, errors: float = 4.0) -> bool:
    """Tell whether the mean of `expected` (T,) exceeds that of `reference` (T,) by more than 4 standard errors.

    Uses the paired differences of the T steps, as if they were independent.
    """
    d = expected - reference
    return bool(len(d) > 1 and d.mean() > errors * d.std(ddof=1) / len(d) ** 0.5 + ROUNDING)


def overtaking(expected: Array, baseline: Array) -> int | None:
    """Return the step from which on `expected` (T,) is never behind `baseline` (T,) in cumulative clicks.

    0: it is never behind. None: it is behind at the end.
    """
    behind = np.flatnonzero(np.cumsum(expected - baseline) < -ROUNDING)
    if len(behind) == 0:
        return 0
    last = int(behind[-1])
    return None if last == len(expected) - 1 else last + 1


def recovery(
    expected: Array, oracle: Array, *, shock: int, share: float, until: int | None = None, window: int = ROLLING
) -> int | None:
    """Return the steps from the shock to the end of the first window with Σ expected ≥ share · Σ oracle.

    Counts only windows that lie wholly after the shock and before `until`, so the result is at least `window`.
    None: there is no such window.
    """
    after = slice(shock, until)
    if len(expected[after]) < window:
        return None
    reached = np.flatnonzero(rolling(expected[after], window) >= share * rolling(oracle[after], window) - ROUNDING)
    return int(reached[0]) + window if len(reached) else None


def between_versions(policy: Sequence[str], version: Array) -> Array:
    """Return the numbers of decisions between the first uses of successive versions of a policy."""
    seen: dict[str, int] = {}
    first_uses = []
    for step, (name, number) in enumerate(zip(policy, version.tolist(), strict=True)):
        if number > seen.get(name, -1):
            first_uses.append(step)
            seen[name] = number
    return np.diff(first_uses)
