"""Simulated worlds, by name. One file holds one world; `shapes` holds the worlds in the shapes of data that users send.

The name of a shape with `.declared` behind it is its declared reference.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from simulator.world._base import Catalogue, Item, Moment, Shock, Tie, TrafficEffect, Visit, World
from simulator.world.digits import Digits
from simulator.world.friends import Friends
from simulator.world.latent import Latent
from simulator.world.market import Market, sized
from simulator.world.petshop import Petshop
from simulator.world.sessions import Sessions
from simulator.world.shapes import DECLARED, SHAPES, make

__all__ = [
    "MARKETS",
    "PLACES",
    "THERE_ARE",
    "WORLDS",
    "Catalogue",
    "Item",
    "Moment",
    "Shock",
    "Tie",
    "TrafficEffect",
    "Visit",
    "World",
]

PLACES: dict[str, type[World[Any]]] = {world.name: world for world in (Petshop, Latent, Digits, Sessions, Friends)}
MARKETS: dict[str, type[Market]] = {"market": Market, **{f"market-{n}": sized(n) for n in (10_000, 1_000_000)}}
WORLDS: dict[str, Callable[..., World[Any]]] = {
    **PLACES,
    **MARKETS,
    **{name: partial(make, name) for name in SHAPES},
    **{name + DECLARED: partial(make, name, declared=True) for name in SHAPES},
}  # each takes a seed and a schedule
THERE_ARE = (
    f"there are: {', '.join((*PLACES, *MARKETS))}, and {len(SHAPES)} shapes of data, such as kinds and kinds.declared "
    "(`rebound-sim worlds` lists them)"
)
