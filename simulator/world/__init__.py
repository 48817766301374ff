"""The worlds, by name: one file each."""

from __future__ import annotations

from typing import Any

from simulator.world._base import Catalogue, Item, Moment, Shock, Visit, World
from simulator.world.petshop import Petshop

__all__ = ["WORLDS", "Catalogue", "Item", "Moment", "Shock", "Visit", "World"]

WORLDS: dict[str, type[World[Any]]] = {world.name: world for world in (Petshop,)}
