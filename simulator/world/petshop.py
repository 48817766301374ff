"""The pet shop: 50 products in 5 categories, 1 000 users of 4 personas, a click rate for each persona and category."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from simulator.world._base import Array, Catalogue, Item, UserWorld, Visit

PERSONAS = ("new_puppy_parent", "cat_connoisseur", "budget_shopper", "fish_hobbyist")
CATEGORIES = ("Dog Food", "Dog Toy", "Cat Food", "Cat Toy", "Fish Supplies")
NEW_CATEGORY = "Bird Supplies"  # added by catalogue-churn
RATES = np.array(
    [
        [0.40, 0.50, 0.10, 0.05, 0.02],
        [0.05, 0.02, 0.55, 0.45, 0.05],
        [0.25, 0.15, 0.40, 0.20, 0.20],
        [0.02, 0.02, 0.10, 0.08, 0.60],
    ]
)  # (personas, categories)
USERS = 1000
PER_CATEGORY = 10


@dataclass(frozen=True)
class Market:
    """The hidden state: the click rates of all personas, and the catalogue."""

    rates: Array  # (personas, categories): click rates
    categories: tuple[str, ...]
    catalogue: Catalogue

    @cached_property
    def of_items(self) -> Array:
        """(personas, n) click rates of all items."""
        return self.rates[:, [self.categories.index(item.features["category"]) for item in self.catalogue.items]]


def product(slot: int, category: str) -> Item:
    """Make the product of this number."""
    return Item(f"product-{slot:02}", slot, {"category": category})


class Petshop(UserWorld[Market]):
    """Each step shows one user, drawn uniformly. The best choice earns .5125 clicks on average, a random one .2105.

    The schema has a level for the category that catalogue-churn adds.
    """

    name = "petshop"
    schema: Mapping[str, Any] = {
        "context": {"persona": {"type": "categorical", "levels": list(PERSONAS)}},
        "item": {"category": {"type": "categorical", "levels": [*CATEGORIES, NEW_CATEGORY]}},
        "crosses": [["persona", "category"]],
        "hash_dims": 0,
    }

    def initial(self) -> Market:
        items = (product(slot, CATEGORIES[slot // PER_CATEGORY]) for slot in range(PER_CATEGORY * len(CATEGORIES)))
        return Market(RATES, CATEGORIES, Catalogue(tuple(items)))

    def catalogue_of(self, state: Market) -> Catalogue:
        return state.catalogue

    def user_of(self, uniform: float) -> int:
        return int(uniform * USERS)

    def visit_of(self, user: int) -> Visit:
        return Visit(f"user-{user}", {"persona": PERSONAS[user % len(PERSONAS)]})

    def rates_of(self, state: Market, user: int) -> Array:
        rates: Array = state.of_items[user % len(PERSONAS)]
        return rates
