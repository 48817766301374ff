"""Shocks of each world, by name. Every world has the shocks of traffic.

A new shock is a function and an entry in this file.
"""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from typing import Any

import numpy as np

from simulator.errors import UsageError
from simulator.world import MARKETS, WORLDS, Catalogue, Shock, TrafficEffect
from simulator.world.digits import Digits, Labelling
from simulator.world.friends import CATEGORIES, Friends, Society
from simulator.world.latent import Latent, Tastes
from simulator.world.market import Wants, moved, renewed
from simulator.world.petshop import NEW_CATEGORY, Market, Petshop, product
from simulator.world.sessions import Habits, Sessions

LEAVERS_PER_CATEGORY = 3
NEWCOMERS = 15
NEW_RATES = np.array([0.65, 0.30, 0.60, 0.15])  # (personas,): click rates of the new category
DRIFT_STEPS = 10_000
SEASON_STEPS = 5_000  # from one persona's click rates to another's
NEIGHBOUR = [1, 0, 3, 2]  # (personas,): the persona to whose click rates each one moves
PRICE_WAR_STEPS = 3_000
FASHION_STEPS = 1_000
BLACKOUT_STEPS = 2_000
SPIKE_STEPS, SPIKE_DELAY = 2_000, 2_000
FLOOD_STEPS = 3_000
FOR_EVER = sys.maxsize


def derangement(n: int, generator: np.random.Generator) -> list[int]:
    """Draw a uniformly random permutation of n ≥ 2 places in which none keeps its place."""
    while True:
        found: list[int] = generator.permutation(n).tolist()
        if all(place != i for i, place in enumerate(found)):
            return found


def _taste_swap(market: Market, generator: np.random.Generator, age: int) -> Market:
    """Permute the click rates of each persona, independently of the others."""
    places = np.array([derangement(len(row), generator) for row in market.rates])
    return replace(market, rates=np.take_along_axis(market.rates, places, axis=1))


def _bestseller_collapse(market: Market, generator: np.random.Generator, age: int) -> Market:
    """Multiply Cat Food by 0.2 and Cat Toy by 2 (at most .80)."""
    rates = market.rates.copy()
    food, toy = market.categories.index("Cat Food"), market.categories.index("Cat Toy")
    rates[:, food] *= 0.2
    rates[:, toy] = np.minimum(rates[:, toy] * 2, 0.80)
    return replace(market, rates=rates)


def _catalogue_churn(market: Market, generator: np.random.Generator, age: int) -> Market:
    """Remove three random products of each category; add 15 of a new category, under new ids."""
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
    """Move linearly from the click rates before to those of a taste-swap."""
    swapped = _taste_swap(market, generator, age).rates
    return replace(market, rates=market.rates + (swapped - market.rates) * (age / DRIFT_STEPS))


def _seasonality(market: Market, generator: np.random.Generator, age: int) -> Market:
    """Mix neighbouring personas' click rates by ½ (1 - cos(π age / 5 000)), for ever."""
    mixed = (1 - math.cos(math.pi * age / SEASON_STEPS)) / 2
    return replace(market, rates=market.rates + (market.rates[NEIGHBOUR] - market.rates) * mixed)


def _price_war(market: Market, generator: np.random.Generator, age: int) -> Market:
    """Halve the click rates of the category with the highest mean rate, for a while."""
    if age >= PRICE_WAR_STEPS:
        return market
    rates = market.rates.copy()
    rates[:, rates.mean(axis=0).argmax()] /= 2
    return replace(market, rates=rates)


def _taste_redraw(tastes: Tastes, generator: np.random.Generator, age: int) -> Tastes:
    """Draw W and the network anew; calibrate a and s again."""
    return Tastes.drawn(tastes.population, generator)


def _label_permutation(labelling: Labelling, generator: np.random.Generator, age: int) -> Labelling:
    """Permute the right arms, so that no label keeps its own."""
    order = derangement(len(labelling.arm), generator)
    return Labelling(tuple(labelling.arm[label] for label in order), labelling.catalogue)


def _habits_change(habits: Habits, generator: np.random.Generator, age: int) -> Habits:
    """Let another category follow each category."""
    order = derangement(len(habits.follows), generator)
    return replace(habits, follows=tuple(habits.follows[place] for place in order))


def _taste_move(wants: Wants, generator: np.random.Generator, age: int) -> Wants:
    """Let the fans of each cluster want the items of another."""
    return moved(wants, derangement(len(wants.of), generator))


def _renewal(wants: Wants, generator: np.random.Generator, age: int) -> Wants:
    """Replace a tenth of the catalogue, drawn uniformly."""
    n = len(wants.line)
    return renewed(wants, generator.choice(n, n // 10, replace=False))


def _fashion_spreads(society: Society, generator: np.random.Generator, age: int) -> Society:
    """Let a category of its own choice be taken up by ever more circles of friends, by half of them in the end."""
    fashion = int(generator.integers(len(CATEGORIES)))
    return replace(society, fashion=(fashion, 0.5 * age / FASHION_STEPS))


def _ties_cut(society: Society, generator: np.random.Generator, age: int) -> Society:
    """Cut the ties between those friends who know each other, and tie the two others, in half of the circles."""
    cut = generator.permutation(len(society.crossed)) < len(society.crossed) // 2
    return replace(society, crossed=tuple(was ^ now for was, now in zip(society.crossed, cut.tolist(), strict=True)))


def _unchanged(state: Any, generator: np.random.Generator, age: int) -> Any:
    return state


_PETSHOP: tuple[Shock[Market], ...] = (
    Shock("taste-swap", "every persona's tastes changed places", _taste_swap),
    Shock("bestseller-collapse", "the best-seller collapsed and another boomed", _bestseller_collapse),
    Shock("catalogue-churn", "30 % of the catalogue was replaced by a new category", _catalogue_churn),
    Shock("gradual-drift", "every persona's tastes began to change places", _gradual_drift, span=DRIFT_STEPS),
    Shock("seasonality", "personas began to swap tastes with the seasons", _seasonality, span=FOR_EVER),
    Shock("price-war", "a rival undercut the best-selling category for a while", _price_war, span=PRICE_WAR_STEPS),
)
_LATENT = (Shock("taste-redraw", "all tastes were drawn anew", _taste_redraw),)
_DIGITS = (Shock("label-permutation", "the right arm of every label became another", _label_permutation),)
_SESSIONS = (Shock("habits-change", "another category is wanted after each category", _habits_change),)
_MARKET: tuple[Shock[Wants], ...] = (
    Shock("taste-move", "the fans of each cluster came to want another", _taste_move),
    Shock("renewal", "a tenth of the catalogue was replaced", _renewal),
)
_FRIENDS = (
    Shock("ties-cut", "in half of the circles other friends know each other", _ties_cut),
    Shock("fashion-spreads", "a fashion began to spread among friends", _fashion_spreads, span=FASHION_STEPS),
)
_TRAFFIC: tuple[Shock[Any], ...] = (
    Shock(
        "feedback-blackout", "rewards were not sent for a while", _unchanged, BLACKOUT_STEPS, TrafficEffect(silent=True)
    ),
    Shock(
        "delay-spike",
        "rewards were sent much later for a while",
        _unchanged,
        SPIKE_STEPS,
        TrafficEffect(delay=SPIKE_DELAY),
    ),
    Shock(
        "bot-flood", "every user came with a bot that clicks every item", _unchanged, FLOOD_STEPS, TrafficEffect(bots=1)
    ),
)

_OF_TASTES: dict[str, tuple[Shock[Any], ...]] = {
    Petshop.name: _PETSHOP,
    Latent.name: _LATENT,
    Digits.name: _DIGITS,
    Sessions.name: _SESSIONS,
    **dict.fromkeys(MARKETS, _MARKET),
    Friends.name: _FRIENDS,
}

SHOCKS: dict[str, dict[str, Shock[Any]]] = {
    world: {shock.name: shock for shock in (*_OF_TASTES.get(world, ()), *_TRAFFIC)} for world in WORLDS
}


def find_shock(world: str, name: str) -> Shock[Any]:
    """Return the shock of this name.

    Raises:
        UsageError: the world has none of this name; the message names those that it has.
    """
    if name not in SHOCKS[world]:
        raise UsageError(f"{world} knows no shock {name!r}; there are: {', '.join(SHOCKS[world])}")
    return SHOCKS[world][name]
