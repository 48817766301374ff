"""The shocks of each world, by name. A new one is a function and an entry in `SHOCKS`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from simulator.errors import UnknownName
from simulator.world import Catalogue, Shock
from simulator.world.petshop import NEW_CATEGORY, Market, Petshop, product

LEAVERS_PER_CATEGORY = 3
NEWCOMERS = 15
NEW_RATES = np.array([0.65, 0.30, 0.60, 0.15])  # (personas,): how the new category is liked


def derangement(n: int, generator: np.random.Generator) -> list[int]:
    """A uniformly random permutation of n ≥ 2 things in which nothing keeps its place."""
    while True:
        found = generator.permutation(n)
        if (found != np.arange(n)).all():
            return [int(place) for place in found]


def _taste_swap(market: Market, generator: np.random.Generator, age: int) -> Market:
    """Each persona's rates change places, independently of the others."""
    return replace(market, rates=np.stack([row[derangement(len(row), generator)] for row in market.rates]))


def _bestseller_collapse(market: Market, generator: np.random.Generator, age: int) -> Market:
    """Cat Food × 0.2, Cat Toy × 2 (at most .80)."""
    rates = market.rates.copy()
    food, toy = market.categories.index("Cat Food"), market.categories.index("Cat Toy")
    rates[:, food] *= 0.2
    rates[:, toy] = np.minimum(rates[:, toy] * 2, 0.80)
    return replace(market, rates=rates)


def _catalogue_churn(market: Market, generator: np.random.Generator, age: int) -> Market:
    """Three random products of each category leave, 15 of a new category come, under ids that were never used."""
    items = market.catalogue.items
    leavers: set[str] = set()
    for category in market.categories:
        ids = [item.id for item in items if item.features["category"] == category]
        leavers |= set(generator.choice(ids, min(LEAVERS_PER_CATEGORY, len(ids)), replace=False).tolist())
    first = max(item.slot for item in items) + 1
    newcomers = [product(slot, NEW_CATEGORY) for slot in range(first, first + NEWCOMERS)]
    catalogue = Catalogue((*(item for item in items if item.id not in leavers), *newcomers))
    if NEW_CATEGORY in market.categories:
        return replace(market, catalogue=catalogue)
    rates = np.column_stack([market.rates, NEW_RATES])
    return Market(rates, (*market.categories, NEW_CATEGORY), catalogue)


_PETSHOP: tuple[Shock[Market], ...] = (
    Shock("taste-swap", "every persona's tastes changed places", _taste_swap),
    Shock("bestseller-collapse", "the best-seller collapsed and another boomed", _bestseller_collapse),
    Shock("catalogue-churn", "30 % of the catalogue was replaced by a new category", _catalogue_churn),
)

SHOCKS: dict[str, dict[str, Shock[Any]]] = {Petshop.name: {shock.name: shock for shock in _PETSHOP}}


def find_shock(world: str, name: str) -> Shock[Any]:
    """The shock of this name.

    Raises:
        UnknownName: says which there are.
    """
    if name not in SHOCKS[world]:
        raise UnknownName(f"{world} knows no shock {name!r}; there are: {', '.join(SHOCKS[world])}")
    return SHOCKS[world][name]
