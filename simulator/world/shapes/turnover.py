"""Items that come and go: catalogues that are renewed, and pools of candidates out of many items."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from simulator.world._base import Array, Catalogue, Item
from simulator.world.shapes._base import Arrival, Shape, ShapedWorld, levels, pick

SEGMENT = 0  # column of the uniform numbers


@dataclass(frozen=True, kw_only=True)
class Renewed(Shape):
    """Constants of a world whose items are born and die.

    A reward has the probability σ(matched or unmatched + the item's own N(0, own²)).

    Args:
        items: on offer at a time.
        newcomers: that replace the oldest ones, each `period` decisions.
        kinds: each item's is drawn uniformly; None: items have no features, and nothing but `own` sets them apart.
    """

    segments: tuple[str, ...] = ("s0", "s1", "s2", "s3")
    kinds: tuple[str, ...] = ("k0", "k1", "k2", "k3")
    items: int = 20
    newcomers: int = 2
    period: int = 100
    matched: float = 0.5
    unmatched: float = -1.4
    own: float = 0.5


@dataclass(frozen=True, eq=False)
class Stream:
    """The hidden state: all items that a run can have, in order of birth."""

    liked: Array  # (segments,): the kind that each segment likes
    kind: Array  # (all,)
    own: Array  # (all,)


class RenewedWorld(ShapedWorld[Stream, Renewed]):
    """The oldest items make room for new ones. The service sees the kind of an item."""

    def initial(self) -> Stream:
        shape, generator = self.shape, self.generator()
        kinds, segments = len(shape.kinds), len(shape.segments)
        liked = generator.permutation(max(kinds, segments))[:segments] % kinds
        born = shape.items + shape.newcomers * (shape.steps // shape.period + 1)
        return Stream(liked, generator.integers(kinds, size=born), generator.normal(0, shape.own, born))

    @cached_property
    def _offers(self) -> Any:
        return lru_cache(maxsize=4)(self._offer)

    def _offer(self, epoch: int) -> Catalogue:
        shape, state = self.shape, self.state(0)
        last = len(state.kind)
        first = min(epoch * shape.newcomers, last - shape.items)
        live = range(first, first + shape.items)
        return Catalogue(
            tuple(
                Item(f"i{number}", number % shape.items, {"kind": shape.kinds[state.kind[number]]}) for number in live
            )
        )

    def catalogue(self, step: int) -> Catalogue:
        found: Catalogue = self._offers(step // self.shape.period)
        return found

    def reference(self) -> Mapping[str, Any]:
        shape = self.shape
        return {
            "context": {"seg": levels(shape.segments)},
            "item": {"kind": levels(shape.kinds)},
            "crosses": [["seg", "kind"]],
        }

    def arrive(self, state: Stream, catalogue: Catalogue, step: int, user: int, drawn: Array) -> Arrival:
        shape = self.shape
        segment = pick(drawn[SEGMENT], len(shape.segments))
        live = np.array([int(item.id[1:]) for item in catalogue.items])
        logit = np.where(state.kind[live] == state.liked[segment], shape.matched, shape.unmatched) + state.own[live]
        return Arrival({"seg": shape.segments[segment]}, 1 / (1 + np.exp(-logit)), np.ones(len(live)))


@dataclass(frozen=True, kw_only=True)
class Pools(Shape):
    """Constants of a world with many items, of which each request brings some.

    A reward has the probability σ(taste of the segment for the category + the item's own), where tastes are
    N(taste_mean, taste_sd²) and the items' own are N(0, own²).

    Args:
        arms: all items.
        candidates: items of a pool.
        pools: fixed sets of candidates; each `period` decisions another one is drawn, uniformly.
    """

    segments: tuple[str, ...] = ("s0", "s1", "s2", "s3")
    categories: int = 10
    arms: int = 2000
    candidates: int = 200
    pools: int = 30
    period: int = 100
    taste_mean: float = -1.8
    taste_sd: float = 1.0
    own: float = 0.35


@dataclass(frozen=True, eq=False)
class Stock:
    """The hidden state."""

    p: Array  # (segments, arms)
    pools: tuple[Array, ...]  # each (candidates,): numbers of the arms, ascending
    catalogues: tuple[Catalogue, ...]  # one for each pool
    order: Array  # (periods,): the pool of each period


class PoolsWorld(ShapedWorld[Stock, Pools]):
    """The service sees the category of an item."""

    def initial(self) -> Stock:
        shape, generator = self.shape, self.generator()
        category = generator.integers(shape.categories, size=shape.arms)
        taste = generator.normal(shape.taste_mean, shape.taste_sd, (len(shape.segments), shape.categories))
        logit = taste[:, category] + generator.normal(0, shape.own, shape.arms)
        pools = tuple(
            np.sort(generator.choice(shape.arms, shape.candidates, replace=False)) for _ in range(shape.pools)
        )
        arms = [Item(f"i{arm}", arm, {"category": f"c{kind}"}) for arm, kind in enumerate(category.tolist())]
        return Stock(
            1 / (1 + np.exp(-logit)),
            pools,
            tuple(Catalogue(tuple(arms[arm] for arm in pool.tolist())) for pool in pools),
            generator.integers(shape.pools, size=shape.steps // shape.period + 1),
        )

    def _pool(self, state: Stock, step: int) -> int:
        return int(state.order[step // self.shape.period % len(state.order)])

    def catalogue(self, step: int) -> Catalogue:
        state = self.state(step)
        return state.catalogues[self._pool(state, step)]

    def reference(self) -> Mapping[str, Any]:
        shape = self.shape
        return {
            "context": {"seg": levels(shape.segments)},
            "item": {"category": levels(f"c{number}" for number in range(shape.categories))},
            "crosses": [["seg", "category"]],
        }

    def arrive(self, state: Stock, catalogue: Catalogue, step: int, user: int, drawn: Array) -> Arrival:
        segment = pick(drawn[SEGMENT], len(self.shape.segments))
        pool = state.pools[self._pool(state, step)]
        return Arrival({"seg": self.shape.segments[segment]}, state.p[segment, pool], np.ones(len(pool)))


RENEWED: Mapping[str, Renewed] = {
    "born-and-dying": Renewed(about="two of 20 items are replaced each 100 decisions"),
    "born-and-dying-fast": Renewed(
        about="five of 20 items are replaced each 100 decisions", near="born-and-dying", newcomers=5
    ),
    "born-and-dying-own": Renewed(
        about="items differ more by themselves than by their kind",
        near="born-and-dying",
        matched=-0.3,
        unmatched=-1.2,
        own=1.0,
        newcomers=1,
    ),
    "born-and-dying-40": Renewed(
        about="40 items of eight kinds, ten replaced each 250 decisions",
        near="born-and-dying",
        kinds=tuple(f"k{number}" for number in range(8)),
        items=40,
        newcomers=10,
        period=250,
        steps=4000,
    ),
}
POOLS: Mapping[str, Pools] = {
    "many-arms": Pools(about="200 candidates of 2 000 items", inline=True),
    "many-arms-500": Pools(
        about="50 candidates of 500 items, 30 categories", near="many-arms", arms=500, candidates=50, categories=30
    ),
    "many-arms-3000": Pools(
        about="300 candidates of 3 000 items, pools that change each 20 decisions",
        near="many-arms",
        arms=3000,
        candidates=300,
        period=20,
        inline=True,
    ),
    "many-arms-own": Pools(
        about="60 candidates of 300 items that differ by themselves",
        near="many-arms",
        arms=300,
        candidates=60,
        categories=5,
        own=0.8,
        inline=True,
    ),
}
