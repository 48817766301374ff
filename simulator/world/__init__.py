"""Simulated worlds, by name. One file holds one world."""

from __future__ import annotations

from typing import Any

from simulator.world._base import Catalogue, Item, Moment, Shock, TrafficEffect, Visit, World
from simulator.world.digits import Digits
from simulator.world.latent import Latent
from simulator.world.petshop import Petshop

__all__ = ["WORLDS", "Catalogue", "Item", "Moment", "Shock", "TrafficEffect", "Visit", "World"]

WORLDS: dict[str, type[World[Any]]] = {world.name: world for world in (Petshop, Latent, Digits)}
