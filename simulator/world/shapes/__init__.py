"""Worlds in the shapes of data that users send, by name. One file holds one family.

>>> world = make("noise-15", seed=1)
>>> moment = world.at(0)
>>> moment.visit.context["seg"], len(moment.catalogue.items), moment.oracle
('s2', 12, 0.6)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from simulator.world._base import Shock
from simulator.world.shapes import embeddings, kinds, nested, newsroom, numbers, turnover, users
from simulator.world.shapes._base import DECLARED, Shape, ShapedWorld

__all__ = ["DECLARED", "SHAPES", "STUDY", "Shape", "ShapedWorld", "make", "neighbours"]

_FAMILIES: tuple[tuple[type[ShapedWorld[Any, Any]], Mapping[str, Shape]], ...] = (
    (kinds.KindsWorld, kinds.WORLDS),
    (numbers.ProductWorld, numbers.PRODUCTS),
    (numbers.MiddleWorld, numbers.MIDDLES),
    (users.UsersWorld, users.WORLDS),
    (embeddings.EmbeddingsWorld, embeddings.WORLDS),
    (nested.NestedWorld, nested.WORLDS),
    (turnover.RenewedWorld, turnover.RENEWED),
    (turnover.PoolsWorld, turnover.POOLS),
    (newsroom.NewsroomWorld, newsroom.WORLDS),
)
_FAMILY = {name: family for family, of_family in _FAMILIES for name in of_family}

SHAPES: Mapping[str, Shape] = {name: shape for _, of_family in _FAMILIES for name, shape in of_family.items()}
STUDY: tuple[str, ...] = tuple(name for name, shape in SHAPES.items() if shape.near is None)  # all but neighbours


def make(
    name: str, seed: int, schedule: Iterable[tuple[int, Shock[Any]]] = (), *, declared: bool = False
) -> ShapedWorld[Any, Any]:
    """Make a world.

    Args:
        name: one of `SHAPES`.
        declared: make its declared reference.

    Raises:
        KeyError: there is no such world.
    """
    return _FAMILY[name](seed, schedule, name=name, shape=SHAPES[name], declared=declared)


def neighbours(name: str) -> list[str]:
    """Return the names of the neighbours of a world."""
    return [other for other, shape in SHAPES.items() if shape.near == name]
