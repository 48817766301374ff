"""The shocks of each world, by name; those of traffic are in all. A new one is a function and an entry here."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from typing import Any

import numpy as np

from simulator.errors import UnknownName
from simulator.world import Catalogue, Shock, Traffic
from simulator.world.digits import Digits, Key
from simulator.world.latent import Latent, Tastes
from simulator.world.petshop import NEW_CATEGORY, Market, Petshop, product

LEAVERS_PER_CATEGORY = 3
NEWCOMERS = 15
NEW_RATES = np.array([0.65, 0.30, 0.60, 0.15])  # (personas,): how the new category is liked
DRIFT_STEPS = 10_000
SEASON_STEPS = 5_000  # from one persona's tastes to another's
NEIGHBOUR = [1, 0, 3, 2]  # (personas,): whose tastes each persona has half a year later
PRICE_WAR_STEPS = 3_000
BLACKOUT_STEPS = 2_000
SPIKE_STEPS, SPIKE_DELAY = 2_000, 2_000
FLOOD_STEPS = 3_000
FOR_EVER = sys.maxsize


def derangement(n: int, generator: np.random.Generator) -> list[int]:
    """A uniformly random permutation of n ≥ 2 things in which nothing keeps its place."""
    while True:
        found: list[int] = generator.permutation(n).tolist()
        if all(place != i for i, place in enumerate(found)):
            return found


def _taste_swap(market: Market, generator: np.random.Generator, age: int) -> Market:
    """Each persona's rates change places, independently of the others."""
    places = np.array([derangement(len(row), generator) for row in market.rates])
    return replace(market, rates=np.take_along_axis(market.rates, places, axis=1))


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


def _gradual_drift(market: Market, generator: np.random.Generator, age: int) -> Market:
    """From the tastes before to those of a taste-swap, in a straight line."""
    swapped = _taste_swap(market, generator, age).rates
    return replace(market, rates=market.rates + (swapped - market.rates) * (age / DRIFT_STEPS))


def _seasonality(market: Market, generator: np.random.Generator, age: int) -> Market:
    """Neighbouring personas' tastes, mixed by ½ (1 - cos(π age / 5 000)): theirs, the other's, theirs again."""
    mixed = (1 - math.cos(math.pi * age / SEASON_STEPS)) / 2
    return replace(market, rates=market.rates + (market.rates[NEIGHBOUR] - market.rates) * mixed)


def _price_war(market: Market, generator: np.random.Generator, age: int) -> Market:
    """A rival sells the category that all personas together like best for less: it gets half of its clicks."""
    if age >= PRICE_WAR_STEPS:
        return market
    rates = market.rates.copy()
    rates[:, rates.mean(axis=0).argmax()] /= 2
    return replace(market, rates=rates)


def _taste_redraw(tastes: Tastes, generator: np.random.Generator, age: int) -> Tastes:
    """W and the network are drawn anew; a and s are calibrated again."""
    return Tastes.drawn(tastes.population, generator)


def _label_permutation(key: Key, generator: np.random.Generator, age: int) -> Key:
    """The right arms change places, so that no label keeps its own."""
    return Key(tuple(key.arm[label] for label in derangement(len(key.arm), generator)), key.catalogue)


def _same(state: Any, generator: np.random.Generator, age: int) -> Any:
    return state


_PETSHOP: tuple[Shock[Market], ...] = (
    Shock("taste-swap", "every persona's tastes changed places", _taste_swap),
    Shock("bestseller-collapse", "the best-seller collapsed and another boomed", _bestseller_collapse),
    Shock("catalogue-churn", "30 % of the catalogue was replaced by a new category", _catalogue_churn),
    Shock("gradual-drift", "every persona's tastes began to change places", _gradual_drift, span=DRIFT_STEPS),
    Shock("seasonality", "personas began to swap tastes with the seasons", _seasonality, span=FOR_EVER),
    Shock("price-war", "a rival undercut the best-selling category for a while", _price_war, span=PRICE_WAR_STEPS),
)
_LATENT = (Shock("taste-redraw", "everyone's tastes were drawn anew", _taste_redraw),)
_DIGITS = (Shock("label-permutation", "the right arm of every label became another", _label_permutation),)
_TRAFFIC: tuple[Shock[Any], ...] = (
    Shock("feedback-blackout", "rewards stopped coming for a while", _same, BLACKOUT_STEPS, Traffic(silent=True)),
    Shock("delay-spike", "rewards came much later for a while", _same, SPIKE_STEPS, Traffic(delay=SPIKE_DELAY)),
    Shock("bot-flood", "with every person came a bot that clicks anything", _same, FLOOD_STEPS, Traffic(bots=1)),
)

SHOCKS: dict[str, dict[str, Shock[Any]]] = {
    world.name: {shock.name: shock for shock in (*shocks, *_TRAFFIC)}
    for world, shocks in ((Petshop, _PETSHOP), (Latent, _LATENT), (Digits, _DIGITS))
}


def find_shock(world: str, name: str) -> Shock[Any]:
    """The shock of this name.

    Raises:
        UnknownName: says which there are.
    """
    if name not in SHOCKS[world]:
        raise UnknownName(f"{world} knows no shock {name!r}; there are: {', '.join(SHOCKS[world])}")
    return SHOCKS[world][name]
