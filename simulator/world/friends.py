"""Friends: tastes spread along ties, but only between people who have a friend in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from simulator.world._base import (
    BROWSING,
    POPULATION,
    USERS,
    Array,
    Catalogue,
    Deed,
    Item,
    Moment,
    Tie,
    UserWorld,
    Visit,
    uniforms,
)

CATEGORIES = ("food", "treat", "bowl", "toy", "leash", "collar", "bed", "brush")
PER_CATEGORY = 6
N_BLOCKS = 60  # even: blocks 2j and 2j + 1 are twins
PER_BLOCK = 4  # visitors of a block
LASTS = 1500  # steps that the tastes of two twins last
STRAYS = 0.2  # probability that a friend takes an item of any category
BASE, WANTED = 0.04, 0.46  # click rates: of any item, and what is added for what is wanted


@dataclass(frozen=True)
class Society:
    """The hidden state: which friends of each block know each other, and a fashion."""

    crossed: tuple[bool, ...]  # by pair of twins: not the first two friends know each other, but the last two
    catalogue: Catalogue
    fashion: tuple[int, float] | None = None  # a category, and the share of the pairs that have taken it up


class Friends(UserWorld[Society]):
    """Each step shows one visitor, drawn uniformly, after each of his four friends has taken an item.

    The visitors of a block have the same four friends. The first two share one taste, the last two another. Two of the
    four know each other, the first two or the last two; he wants what these two take. The other two know their
    counterparts in the twin block, whose friends have the same tastes. So every visitor has four friends with the same
    two tastes, every friend knows one other who shares his taste, and all have as many ties: what a visitor wants can
    be told from the triangle alone. Tastes last for some time. The context says nothing of all this, and visitors take
    nothing by themselves.
    """

    name = "friends"
    schema: Mapping[str, Any] = {}
    same_tastes = False  # whether all four friends of a block share the taste of those who know each other

    def initial(self) -> Society:
        items = (
            Item(f"item-{slot:02}", slot, {"category": CATEGORIES[slot // PER_CATEGORY], "price": 3 + slot * 7 % 40})
            for slot in range(len(CATEGORIES) * PER_CATEGORY)
        )
        drawn = uniforms(self.seed, POPULATION, 0, N_BLOCKS // 2)
        return Society(tuple((drawn < 0.5).tolist()), Catalogue(tuple(items)))

    def catalogue_of(self, state: Society) -> Catalogue:
        return state.catalogue

    def user_of(self, uniform: float) -> int:
        return int(uniform * N_BLOCKS * PER_BLOCK)

    def visit_of(self, user: int) -> Visit:
        return Visit(f"user-{user}", {"device": ("phone", "desktop", "tablet")[user // 8 % 3]})

    def rates_of(self, state: Society, user: int) -> Array:
        """Return the (n,) click rates where nothing is known of tastes: any category is wanted as often."""
        return np.full(len(CATEGORIES) * PER_CATEGORY, BASE + WANTED / len(CATEGORIES))

    def ties(self, step: int) -> frozenset[Tie]:
        return _ties(self.state(step).crossed)

    def at(self, step: int) -> Moment:
        moment, society = super().at(step), self.state(step)
        block = self.user_of(float(uniforms(self.seed, USERS, step, 1)[0])) // PER_BLOCK
        tastes = self.tastes(society, step, block // 2)
        deeds = []
        drawn = uniforms(self.seed, BROWSING, step, 12).reshape(4, 3).tolist()
        for friend, (strays, of_category, of_item) in enumerate(drawn):
            category = int(of_category * len(CATEGORIES)) if strays < STRAYS else tastes[friend // 2]
            item = society.catalogue.items[category * PER_CATEGORY + int(of_item * PER_CATEGORY)]
            deeds.append(Deed(item.id, "buy", _friend(block, friend)))
        rates = np.full(len(CATEGORIES), BASE)
        rates[tastes[society.crossed[block // 2]]] += WANTED
        visit = replace(moment.visit, deeds=tuple(deeds))
        return replace(moment, visit=visit, rates=np.repeat(rates, PER_CATEGORY))

    def tastes(self, society: Society, step: int, pair: int) -> tuple[int, int]:
        """Return the categories of the first two, and of the last two friends of a pair of twins; never the same.

        In a world of `same_tastes` both are the first.
        """
        n = len(CATEGORIES)
        period = (step + LASTS * 2 * pair // N_BLOCKS) // LASTS  # not all change at once
        first, other, joins = uniforms(self.seed, POPULATION, 1 + period * N_BLOCKS + pair, 3).tolist()
        one = int(first * n)
        two = (one + 1 + int(other * (n - 1))) % n
        if society.fashion is not None and joins < society.fashion[1]:
            one, two = self._fashionable(society, pair, one, two)
        return (one, one) if self.same_tastes else (one, two)

    def _fashionable(self, society: Society, pair: int, one: int, two: int) -> tuple[int, int]:
        """Give the fashion to those who know each other; the others, if they have it, take the taste of these."""
        assert society.fashion is not None
        fashion, wanted = society.fashion[0], (one, two)[society.crossed[pair]]
        if fashion == wanted:
            return one, two
        other = wanted if (one, two)[not society.crossed[pair]] == fashion else (one, two)[not society.crossed[pair]]
        return (other, fashion) if society.crossed[pair] else (fashion, other)


def _friend(block: int, number: int) -> str:
    return f"friend-{block}-{'abcd'[number]}"


@lru_cache(maxsize=4)
def _ties(crossed: tuple[bool, ...]) -> frozenset[Tie]:
    ties = set()
    for pair, last_two in enumerate(crossed):
        twins = (2 * pair, 2 * pair + 1)
        close, apart = ((2, 3), (0, 1)) if last_two else ((0, 1), (2, 3))
        for block in twins:
            ties.add(Tie(_friend(block, close[0]), _friend(block, close[1])))
            for visitor in range(block * PER_BLOCK, (block + 1) * PER_BLOCK):
                ties |= {Tie(f"user-{visitor}", _friend(block, friend)) for friend in range(4)}
        ties |= {Tie(_friend(twins[0], friend), _friend(twins[1], friend)) for friend in apart}
    return frozenset(ties | {Tie(tie.to, tie.user) for tie in ties})
