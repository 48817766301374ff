"""Simulates experiments of two arms, look by look, as moments of the units so far."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from service.evaluate.experiment import COLUMNS, UNIT
from service.policies import Array

VISITS = 4  # of a user, on average
Pair = tuple[Array, Array]


def fresh(rng: np.random.Generator, size: int, *, lift: float, rate: float, spread: float = 0.1) -> Pair:
    """Draw `size` new users with all their visits: rows (size, 7) and arms (size,). Tastes last, so history tells.

    Args:
        rate: clicks per visit, on average.
        spread: of the tastes: 1 / spread clicks and visits are as if they were known of each user before.
    """
    arm = rng.integers(2, size=size)
    taste = rng.beta(rate / spread, (1 - rate) / spread, size=size)
    units = np.zeros((size, COLUMNS))
    units[:, UNIT] = 1
    for first, chance in ((1, taste * (1 + lift * arm)), (4, taste)):
        visits = (1 if first == 1 else 0) + rng.poisson(VISITS - (first == 1), size=size)
        units[:, first] = visits
        units[:, first + 1] = units[:, first + 2] = rng.binomial(visits, np.minimum(chance, 1.0))
    return units, arm


def by_new_users(
    rng: np.random.Generator, looks: int, *, each: int = 100, lift: float = 0.0, rate: float = 0.2, spread: float = 0.1
) -> Iterator[Pair]:
    """Yield the moments of both arms at each look, after `each` more users."""
    units, arm = fresh(rng, looks * each, lift=lift, rate=rate, spread=spread)
    yield from so_far(units, arm, looks)


def so_far(units: Array, arm: Array, looks: int) -> Iterator[Pair]:
    """Yield the moments of both arms at each look, of as many more units each time."""
    blocks = units.reshape(looks, -1, COLUMNS)
    treated = arm.reshape(looks, -1, 1)
    both = [np.cumsum(np.swapaxes(blocks * one, 1, 2) @ blocks, axis=0) for one in (1 - treated, treated)]
    yield from zip(*both, strict=True)


def by_returning_users(
    rng: np.random.Generator, looks: int, *, users: int, each: int = 100, rate: float = 0.2, once: bool = False
) -> Iterator[Pair]:
    """Yield the same where few users come again and again, after `each` more visits. The arms do not differ.

    Args:
        once: who has clicked does not click again, so that what a user did tells the opposite of what he will do.
    """
    arm = rng.integers(2, size=users)
    taste = rng.beta(rate / 0.1, (1 - rate) / 0.1, size=users)
    units = np.zeros((users, COLUMNS))
    units[:, UNIT] = 1
    for _ in range(looks):
        visits = rng.multinomial(each, np.full(users, 1 / users))
        clicks = rng.binomial(visits, taste)
        if once:
            clicks = np.where(units[:, 2] > 0, 0, np.minimum(clicks, 1))
        units[:, 1] += visits
        units[:, 2] += clicks
        units[:, 3] += clicks
        yield moments_of(units, arm, 0), moments_of(units, arm, 1)


def moments_of(units: Array, arm: Array, which: int) -> Array:
    """Return the moments of one arm."""
    mine = units[(arm == which) & (units[:, 1] > 0)]
    found: Array = mine.T @ mine
    return found


def heavy(rng: np.random.Generator, looks: int, *, each: int = 100) -> Iterator[Pair]:
    """Yield the same for rewards of which a few large ones make the mean (log-normal)."""
    units, arm = fresh(rng, looks * each, lift=0.0, rate=0.3)
    units[:, 2] *= rng.lognormal(sigma=1.5, size=len(units))
    yield from so_far(units, arm, looks)
