"""Sessions: users browse before each visit, and what a user took last decides what he wants next."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from simulator.world._base import BROWSING, USERS, Array, Catalogue, Deed, Item, Moment, UserWorld, Visit, uniforms

CATEGORIES = ("food", "treat", "bowl", "toy", "leash", "collar", "bed", "brush")
PER_CATEGORY = 6
N_USERS = 400
TYPES = ("view", "view", "click", "buy")  # of the deeds of a session, in order
STAYS, MOVES = 0.3, 0.5  # probabilities that the next deed is of the same category, or of the one that follows it
BASE, WANTED, HOME = 0.04, 0.46, 0.15  # click rates: of any item, and what is added for what is wanted, and for home


@dataclass(frozen=True)
class Habits:
    """The hidden state: the category that users want next, after each."""

    follows: tuple[int, ...]
    catalogue: Catalogue


class Sessions(UserWorld[Habits]):
    """Each step shows one user, drawn uniformly, after four deeds of his: two views, a click, and a buy.

    A user has a home category. His session begins there half the time, and in any category else. From one deed to
    the next it stays, moves on to the category that follows, or goes home. He wants what follows his last deed. The
    context says nothing of all this.
    """

    name = "sessions"
    schema: Mapping[str, Any] = {}

    def initial(self) -> Habits:
        n = len(CATEGORIES)
        items = (
            Item(f"item-{slot:02}", slot, {"category": CATEGORIES[slot // PER_CATEGORY], "price": 3 + slot * 7 % 40})
            for slot in range(n * PER_CATEGORY)
        )
        return Habits(tuple((category + 3) % n for category in range(n)), Catalogue(tuple(items)))

    def catalogue_of(self, state: Habits) -> Catalogue:
        return state.catalogue

    def user_of(self, uniform: float) -> int:
        return int(uniform * N_USERS)

    def visit_of(self, user: int) -> Visit:
        return Visit(f"user-{user}", {"device": ("phone", "desktop", "tablet")[user // 8 % 3]})

    def rates_of(self, state: Habits, user: int) -> Array:
        """Return the (n,) click rates where nothing is known of the session: any category is wanted as often."""
        return self._rates(user, None)

    def at(self, step: int) -> Moment:
        moment = super().at(step)
        user = self.user_of(float(uniforms(self.seed, USERS, step, 1)[0]))
        deeds, last = self._session(self.state(step), user, uniforms(self.seed, BROWSING, step, 2 * len(TYPES)))
        wanted = self.state(step).follows[last]
        return replace(moment, visit=replace(moment.visit, deeds=deeds), rates=self._rates(user, wanted))

    def _session(self, habits: Habits, user: int, drawn: Array) -> tuple[tuple[Deed, ...], int]:
        """Return the deeds before a visit, and the category of the last.

        Args:
            drawn: two uniform numbers for each deed.
        """
        n = len(CATEGORIES)
        home = category = user % n
        deeds = []
        for place, (of_category, of_item) in enumerate(drawn.reshape(-1, 2).tolist()):
            if place == 0:
                category = home if of_category < 0.5 else int(2 * (of_category - 0.5) * n)
            elif of_category >= STAYS:
                category = habits.follows[category] if of_category < STAYS + MOVES else home
            item = habits.catalogue.items[category * PER_CATEGORY + int(of_item * PER_CATEGORY)]
            deeds.append(Deed(item.id, TYPES[place]))
        return tuple(deeds), category

    def _rates(self, user: int, wanted: int | None) -> Array:
        n = len(CATEGORIES)
        of_categories = np.full(n, BASE)
        of_categories[user % n] += HOME
        if wanted is None:
            of_categories += WANTED / n
        else:
            of_categories[wanted] += WANTED
        return np.repeat(of_categories, PER_CATEGORY)
