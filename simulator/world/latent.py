"""Latent tastes: 2 000 users and 500 items with 16 hidden dimensions, rare clicks, noisy observations of users.

Letters: **m** users, **n** items, **k** dimensions, **j** units of the network.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from simulator.world._base import POPULATION, Array, Catalogue, Item, UserWorld, Visit

USERS, ITEMS, DIMS, UNITS = 2000, 500, 16, 24
NOISE = 0.4  # standard deviation of the noise on each dimension of a user
# Scale of v, and of the noisy u in units of its standard deviation. The service shortens longer vectors: 1 in 3 000.
LONGEST = 6.5
QUALITY = 0.4  # standard deviation of an item's quality
BILINEAR, NETWORK = 0.75, 0.5  # weights of the two parts of a taste
MEAN_RATE, BEST_RATE = 0.012, 0.10  # of a random item; of the best one for each user, on average
CLOSE = 1e-12  # relative error of both after calibration


@dataclass(frozen=True, eq=False)
class Population:
    """Users and items; no shock changes them."""

    users: Array  # (m, k): u ~ N(0, I)
    blurred: Array  # (m, k): u + 0.4 ε with ε ~ N(0, I); one ε for each user, the same at every visit
    items: Array  # (n, k): v ~ N(0, I)
    quality: Array  # (n,): q ~ 0.4 N(0, 1)
    catalogue: Catalogue

    @cached_property
    def visits(self) -> tuple[Visit, ...]:
        """The observation of each user."""
        shown = self.blurred / np.sqrt(1 + NOISE**2) / LONGEST
        return tuple(Visit(f"user-{user}", {"taste": row}) for user, row in enumerate(shown.tolist()))


@dataclass(frozen=True, eq=False)
class Tastes:
    """The hidden state: a click has probability σ(a + s (0.75 uᵀWv + 0.5 h(u, v) + q)).

    The network is h(u, v) = (outputᵀ tanh(U u + V v) - centre) / spread.
    """

    population: Population
    bilinear: Array  # (k, k): W ~ N(0, 1/16²)
    of_user: Array  # (j, k): U ~ N(0, 1/16)
    of_item: Array  # (j, k): V ~ N(0, 1/16)
    output: Array  # (j,) ~ N(0, 1/16)
    centre: float  # h has mean 0 and standard deviation 1 over all pairs
    spread: float
    a: float
    s: float
    rates: Array  # (m, n)

    @classmethod
    def drawn(cls, population: Population, generator: np.random.Generator) -> Tastes:
        """Draw new tastes for the same users and items."""
        w = generator.normal(0, 1 / 16, (DIMS, DIMS))
        u, v = (generator.normal(0, 1 / 4, (UNITS, DIMS)) for _ in range(2))
        output = generator.normal(0, 1 / 4, UNITS)
        h = _network(population.users, population.items, u, v, output)
        centre, spread = float(h.mean()), float(h.std())
        liking = BILINEAR * (population.users @ w @ population.items.T)  # (m, n)
        liking += NETWORK / spread * (h - centre) + population.quality
        a, s = calibrate(liking, mean=MEAN_RATE, best=BEST_RATE)
        return cls(population, w, u, v, output, centre, spread, a, s, _sigmoid(a + s * liking))

    def rates_for(self, users: Array) -> Array:
        """Return the (m, n) click rates of users (m, k), who need not belong to the population."""
        items = self.population.items
        h = _network(users, items, self.of_user, self.of_item, self.output)
        liking = BILINEAR * (users @ self.bilinear @ items.T) + NETWORK / self.spread * (h - self.centre)
        return _sigmoid(self.a + self.s * (liking + self.population.quality))

    def observable(self, generator: np.random.Generator, draws: int = 32) -> Array:
        """Return (m,): the best item of each user, as an index, given everything but the noise.

        Given the noisy b = u + 0.4 ε, the user is u ~ N(b / 1.16, 0.16 / 1.16 I). The best item has the highest click
        rate averaged over that posterior, by `draws` draws and their mirror images. One draw takes about 0.5 s.
        """
        seen, variance = self.population.blurred, 1 + NOISE**2
        total = np.zeros_like(self.rates)
        for _ in range(draws):
            off = generator.normal(0, NOISE / np.sqrt(variance), seen.shape)
            total += self.rates_for(seen / variance + off)
            total += self.rates_for(seen / variance - off)
        best: Array = total.argmax(axis=1)
        return best


def calibrate(liking: Array, *, mean: float, best: float) -> tuple[float, float]:
    """Find (a, s > 0) such that σ(a + s liking), (m, n), has the mean `mean` and its rows' maxima the mean `best`.

    Uses Newton's method on the logarithms of both means.

    Raises:
        ArithmeticError: there is no solution, or 50 rounds do not find it.
    """
    top = liking.max(axis=1)
    target = np.log([mean, best])
    at = np.array([np.log(mean / (1 - mean)) - 0.5, 1.0])
    for _ in range(50):
        value, slope = np.empty(2), np.empty((2, 2))
        for row, x in enumerate((liking, top)):
            p = _sigmoid(at[0] + at[1] * x)
            value[row] = p.mean()
            p *= 1 - p
            slope[row] = p.mean(), np.vdot(p, x) / p.size
        off = np.log(value) - target
        if abs(off).max() < CLOSE and at[1] > 0:
            return float(at[0]), float(at[1])
        at -= np.linalg.solve(slope / value[:, None], off)
    raise ArithmeticError(f"no calibration to mean {mean} and best {best}")


def _network(users: Array, items: Array, of_user: Array, of_item: Array, output: Array) -> Array:
    """Return (m, n): outputᵀ tanh(U u + V v). One unit at a time, because all at once take gigabytes."""
    h = np.zeros((len(users), len(items)))
    for left, right, weight in zip((users @ of_user.T).T, (items @ of_item.T).T, output, strict=True):
        unit = left[:, None] + right
        h += weight * np.tanh(unit, out=unit)
    return h


def _sigmoid(x: Array) -> Array:
    rates: Array = 1 / (1 + np.exp(-x))
    return rates


@lru_cache(maxsize=4)
def _initial_tastes(seed: int) -> Tastes:
    """Draw the population of this seed, with its first tastes."""
    generator = np.random.Generator(np.random.Philox(key=[seed, POPULATION]))
    users = generator.normal(size=(USERS, DIMS))
    blurred = users + NOISE * generator.normal(size=(USERS, DIMS))
    items = generator.normal(size=(ITEMS, DIMS))
    quality = QUALITY * generator.normal(size=ITEMS)
    catalogue = Catalogue(
        tuple(Item(f"item-{slot:03}", slot, {"style": row}) for slot, row in enumerate((items / LONGEST).tolist()))
    )
    return Tastes.drawn(Population(users, blurred, items, quality, catalogue), generator)


class Latent(UserWorld[Tastes]):
    """Each step shows one user, drawn uniformly. A random item earns .012 clicks, the best one of each user .100.

    A policy that knows everything but the noise on users earns about .09 (`Tastes.observable`).
    """

    name = "latent"
    schema: Mapping[str, Any] = {
        "context": {"taste": {"type": "vector", "size": DIMS}},
        "item": {"style": {"type": "vector", "size": DIMS}},
        "crosses": [["taste", "style"]],
        "hash_dims": 0,
    }

    def initial(self) -> Tastes:
        return _initial_tastes(self.seed)

    def catalogue_of(self, state: Tastes) -> Catalogue:
        return state.population.catalogue

    def user_of(self, uniform: float) -> int:
        return int(uniform * USERS)

    def visit_of(self, user: int) -> Visit:
        return _initial_tastes(self.seed).population.visits[user]

    def rates_of(self, state: Tastes, user: int) -> Array:
        rates: Array = state.rates[user]
        return rates
