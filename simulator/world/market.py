"""A market: many items in clusters, few of which sell well, and which come and go every day.

Letters: **n** items on offer, **m** users, **k** dimensions of tastes, **c** clusters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, overload

import numpy as np

from simulator.world._base import (
    CLICKS,
    POPULATION,
    USERS,
    Array,
    Catalogue,
    Item,
    Moment,
    Shock,
    UserWorld,
    Visit,
    uniforms,
)

N_USERS, DIMS, CLUSTERS = 5000, 64, 20
TAIL = 0.5  # of the r-th cluster the share in items and in users is proportional to 1 / r^.5
SPREAD = 0.5  # length of an item's own part beside the unit vector of its cluster
FIRST, SECOND, OWN = 0.8, 0.4, 0.3  # a user's favourite cluster, another one, and his own part, in his taste
BLUR = 0.2  # length of the noise on the taste that the service sees
QUALITY = 0.2  # mean of an item's quality, which is exponential: most have little, few have much
BASE, LIKING = -4.0, 4.0  # a click has the probability σ(BASE + LIKING u·v + q)
TURNOVER = 100  # one of so many items is replaced each day
SLATE = 10  # items that a page shows, in the benchmark
AT_ONCE = 16_384  # items whose rates are computed at once
BIRTHS, ITEMS = 16, 17  # streams of random numbers


@dataclass(frozen=True, eq=False)
class Wants:
    """The hidden state: whose items the fans of each cluster want, and how often each place was renewed by a shock."""

    of: tuple[int, ...]  # (c,)
    line: Array  # (n,) int


@dataclass(frozen=True, eq=False)
class Population:
    """Users; no shock changes them."""

    centres: Array  # (c, k) unit vectors
    favourite: Array  # (m,) clusters
    second: Array  # (m,)
    own: Array  # (m, k): about OWN long
    visits: tuple[Visit, ...]

    def tastes(self, users: Array, wants: Wants) -> Array:
        """Return the tastes of some users, (len(users), k) unit vectors."""
        of = np.array(wants.of)
        return _tastes(self.centres, of[self.favourite[users]], of[self.second[users]], self.own[users])


class Shelf(Sequence[Item]):
    """The n items on offer. An item is made when it is asked for: a million take too much room."""

    def __init__(self, ids: list[str], cluster: Array, vectors: Array, quality: Array) -> None:
        self.ids, self.cluster, self.quality = ids, cluster, quality
        self.vectors = vectors  # (n, k) float32 unit vectors

    def __len__(self) -> int:
        return len(self.ids)

    @overload
    def __getitem__(self, row: int) -> Item: ...
    @overload
    def __getitem__(self, row: slice) -> Sequence[Item]: ...
    def __getitem__(self, row: int | slice) -> Item | Sequence[Item]:
        if isinstance(row, slice):
            return [self[at] for at in range(*row.indices(len(self)))]
        vector = self.vectors[row].astype(np.float64).round(4).tolist()
        return Item(self.ids[row], row % len(self), {"category": f"c{self.cluster[row]:02}", "vector": vector})


@dataclass(frozen=True, eq=False)
class Stock:
    """What is on offer on one day."""

    catalogue: Catalogue
    shelf: Shelf


class Market(UserWorld[Wants]):
    """Each step shows one user, drawn uniformly. The service sees his favourite cluster, and his taste with noise.

    A place of the catalogue holds one item after another. `Item.slot` is the place: two items with the same draws are
    never on offer together.
    """

    name = "market"
    n: ClassVar[int] = 100_000
    day: ClassVar[int] = 1000  # steps: as many as items are born, whatever the size
    schema: Mapping[str, Any] = {
        "context": {"segment": {"type": "categorical", "levels": [f"s{c:02}" for c in range(CLUSTERS)]}},
        "item": {"category": {"type": "categorical", "levels": [f"c{c:02}" for c in range(CLUSTERS)]}},
        "crosses": [["segment", "category"]],
        "hash_dims": 0,
    }
    funnel: Mapping[str, Any] = {
        "sources": [
            {"source": "popular", "quota": 80},
            {"source": "fresh", "quota": 40},
            {"source": "random", "quota": 20},
            {"source": "ann", "quota": 100, "item_field": "vector", "context_field": "taste"},
        ],
        "cut": 200,
    }

    def __init__(self, seed: int, schedule: Sequence[tuple[int, Shock[Wants]]] = ()) -> None:
        self._stock = lru_cache(maxsize=3)(self._stock_of)
        super().__init__(seed, schedule)

    @property
    def settings(self) -> Mapping[str, Any]:
        return {**super().settings, "funnel": self.funnel}

    @property
    def population(self) -> Population:
        """The users."""
        return _population(self.seed)

    def initial(self) -> Wants:
        return Wants(tuple(range(CLUSTERS)), np.zeros(self.n, dtype=np.intp))

    def catalogue_of(self, state: Wants) -> Catalogue:
        return self._stock(0, state).catalogue

    def catalogue(self, step: int) -> Catalogue:
        return self.stock(step).catalogue

    def stock(self, step: int) -> Stock:
        """Return what is on offer at a step."""
        return self._stock(step // self.day, self.state(step))

    def user_of(self, uniform: float) -> int:
        return int(uniform * N_USERS)

    def user_at(self, step: int) -> int:
        """Return the user that comes at a step."""
        return self.user_of(float(uniforms(self.seed, USERS, step, 1)[0]))

    def visit_of(self, user: int) -> Visit:
        return self.population.visits[user]

    def rates_of(self, state: Wants, user: int) -> Array:
        return self._rates(self._stock(0, state), state, user)

    def at(self, step: int) -> Moment:
        stock, state, user = self.stock(step), self.state(step), self.user_at(step)
        generator = np.random.Generator(np.random.Philox(key=[self.seed, CLICKS], counter=[0, 0, 0, step]))
        return Moment(
            step,
            self.visit_of(user),
            stock.catalogue,
            self._rates(stock, state, user),
            generator.random(self.n),
        )

    def bounds(self, start: int, end: int, most: int = SLATE) -> tuple[Array, Array]:
        """Return the mean rates of the best `most` items, and of all, at each of these steps: (steps,), (steps,).

        All items are scored, some at a time.
        """
        best, chance = np.zeros(end - start), np.zeros(end - start)
        groups: dict[int, list[int]] = {}  # steps with one stock
        for step in range(start, end):
            groups.setdefault(id(self.stock(step)), []).append(step)
        for steps in groups.values():
            stock, state = self.stock(steps[0]), self.state(steps[0])
            users = np.array([self.user_at(step) for step in steps])
            tastes = self.population.tastes(users, state).astype(np.float32)
            found, total = np.zeros((len(steps), 0)), np.zeros(len(steps))
            for at in range(0, self.n, AT_ONCE):
                rates = _rates(tastes, stock.shelf.vectors[at : at + AT_ONCE], stock.shelf.quality[at : at + AT_ONCE])
                total += rates.sum(axis=1)
                found = np.concatenate([found, rates], axis=1)
                found = np.partition(found, found.shape[1] - most, axis=1)[:, -most:]
            at_steps = np.array(steps) - start
            best[at_steps], chance[at_steps] = found.mean(axis=1), total / self.n
        return best, chance

    def _rates(self, stock: Stock, state: Wants, user: int) -> Array:
        taste = self.population.tastes(np.array([user]), state).astype(np.float32)
        rates: Array = _rates(taste, stock.shelf.vectors, stock.shelf.quality)[0]
        return rates

    def _stock_of(self, day: int, state: Wants) -> Stock:
        """Return what is on offer on a day: of each place the item that was born there last."""
        born = np.zeros(self.n, dtype=np.intp)
        for past in range(1, day + 1):
            born[self._renewed(past)] = past
        cluster = np.zeros(self.n, dtype=np.intp)
        quality = np.zeros(self.n, dtype=np.float32)
        vectors = np.zeros((self.n, DIMS), dtype=np.float32)
        for past in range(day + 1):
            places = self._renewed(past)
            alive = born[places] == past
            for line in np.unique(state.line[places[alive]]).tolist():
                these = np.flatnonzero(alive & (state.line[places] == line))
                of = self._born(past, line, len(places))
                rows = places[these]
                cluster[rows], quality[rows], vectors[rows] = (part[these] for part in of)
        ids = [
            f"item-{place:07}" + (f".{day}.{line}" if day or line else "")
            for place, (day, line) in enumerate(zip(born.tolist(), state.line.tolist(), strict=True))
        ]
        shelf = Shelf(ids, cluster, vectors, quality)
        return Stock(Catalogue(shelf), shelf)

    def _renewed(self, day: int) -> Array:
        """Return the places whose items are born on a day."""
        if day == 0:
            return np.arange(self.n)
        generator = np.random.Generator(np.random.Philox(key=[self.seed, BIRTHS], counter=[0, 0, 0, day]))
        return np.sort(generator.choice(self.n, self.n // TURNOVER, replace=False))

    def _born(self, day: int, line: int, count: int) -> tuple[Array, Array, Array]:
        """Draw `count` items: clusters, qualities, vectors."""
        generator = np.random.Generator(np.random.Philox(key=[self.seed, ITEMS], counter=[0, 0, line, day]))
        cluster = generator.choice(CLUSTERS, count, p=_shares())
        quality = generator.exponential(QUALITY, count)
        own = generator.standard_normal((count, DIMS), dtype=np.float32) * np.float32(SPREAD / DIMS**0.5)
        return cluster, quality, _unit(self.population.centres[cluster].astype(np.float32) + own)


def sized(n: int) -> type[Market]:
    """Return the same world with n items."""
    return type(f"Market{n}", (Market,), {"name": f"market-{n}", "n": n, "day": n // TURNOVER})


@lru_cache(maxsize=4)
def _population(seed: int) -> Population:
    generator = np.random.Generator(np.random.Philox(key=[seed, POPULATION]))
    centres = _unit(generator.normal(size=(CLUSTERS, DIMS)))
    favourite, second = generator.choice(CLUSTERS, (2, N_USERS), p=_shares())
    own = generator.normal(size=(N_USERS, DIMS)) * OWN / DIMS**0.5
    blurred = _tastes(centres, favourite, second, own) + generator.normal(size=own.shape) * BLUR / DIMS**0.5
    visits = tuple(
        Visit(f"user-{user}", {"segment": f"s{cluster:02}", "taste": taste})
        for user, (cluster, taste) in enumerate(zip(favourite.tolist(), blurred.round(4).tolist(), strict=True))
    )
    return Population(centres, favourite, second, own, visits)


def _tastes(centres: Array, first: Array, second: Array, own: Array) -> Array:
    return _unit(FIRST * centres[first] + SECOND * centres[second] + own)


def _rates(tastes: Array, vectors: Array, quality: Array) -> Array:
    """Return the click rates (m, n) of users with tastes (m, k) for items (n, k)."""
    liking = tastes @ vectors.T
    liking *= LIKING
    liking += quality + np.float32(BASE)
    rates: Array = 1 / (1 + np.exp(-liking.astype(np.float64)))
    return rates


def _shares() -> Array:
    shares = 1 / np.arange(1, CLUSTERS + 1) ** TAIL
    found: Array = shares / shares.sum()
    return found


def _unit(vectors: Array) -> Array:
    found: Array = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return found


def moved(wants: Wants, order: Sequence[int]) -> Wants:
    """Let the fans of each cluster want what the fans of another wanted."""
    return Wants(tuple(wants.of[place] for place in order), wants.line)


def renewed(wants: Wants, places: Array) -> Wants:
    """Put other items into these places."""
    line = wants.line.copy()
    line[places] += 1
    return Wants(wants.of, line)
