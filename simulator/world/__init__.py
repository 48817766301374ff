"""The worlds, by name: one file each."""

from __future__ import annotations

from typing import Any

from simulator.world._base import Catalogue, Item, Moment, Shock, Traffic, Visit, World
from simulator.world.digits import Digits
from simulator.world.latent import Latent
from simulator.world.petshop import Petshop

__all__ = ["WORLDS", "Catalogue", "Item", "Moment", "Shock", "Traffic", "Visit", "World"]

WORLDS: dict[str, type[World[Any]]] = {world.name: world for world in (Petshop, Latent, Digits)}
