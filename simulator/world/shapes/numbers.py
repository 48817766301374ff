"""Numbers: two that matter together, and one of which a middle value is best."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from simulator.world._base import Array, Catalogue, Item
from simulator.world.shapes._base import Arrival, Shape, ShapedWorld, levels, pick

SEGMENT, NUMBER, NOISE = range(3)  # columns of the uniform numbers


@dataclass(frozen=True, kw_only=True)
class Product(Shape):
    """Constants of a world in which a number of the context and one of the item matter by their product.

    A reward has the probability σ(base + slope a b), where a and b are the two numbers scaled to [-1, 1].

    Args:
        context_range: of the context's integer, uniform in it.
        item_range: between which the items' numbers are spaced evenly.
        logarithmic: the items' numbers are spaced, and matter, on a logarithmic scale.
        noise: further context fields, uniform numbers in [0, 100).
        scale, scaled_from: the context's number is multiplied by `scale` from this step on; None: it never is.
    """

    context_field: str = "age"
    context_range: tuple[int, int] = (18, 80)
    item_field: str = "price"
    item_range: tuple[float, float] = (10.0, 1000.0)
    items: int = 20
    logarithmic: bool = False
    base: float = -0.6
    slope: float = 2.2
    noise: int = 0
    scale: int = 100
    scaled_from: int | None = None

    @property
    def changes_at(self) -> int | None:
        return self.scaled_from


class ProductWorld(ShapedWorld[Catalogue, Product]):
    """Hidden is nothing but that only the product matters."""

    @cached_property
    def _b(self) -> Array:
        """(n,): the items' numbers, scaled to [-1, 1]."""
        return np.linspace(-1, 1, self.shape.items)

    def initial(self) -> Catalogue:
        shape = self.shape
        low, high = shape.item_range
        numbers = np.geomspace(low, high, shape.items) if shape.logarithmic else np.linspace(low, high, shape.items)
        shown = self._b if self.declared else numbers.round(2)
        return Catalogue(tuple(Item(f"i{slot}", slot, {shape.item_field: v}) for slot, v in enumerate(shown.tolist())))

    def catalogue(self, step: int) -> Catalogue:
        return self.state(step)

    def reference(self) -> Mapping[str, Any]:
        shape = self.shape
        low, high = shape.context_range
        return {
            "context": {shape.context_field: {"type": "numeric", "min": low, "max": high}},
            "item": {shape.item_field: {"type": "numeric", "min": -1, "max": 1}},
            "crosses": [[shape.context_field, shape.item_field]],
        }

    def arrive(self, state: Catalogue, catalogue: Catalogue, step: int, user: int, drawn: Array) -> Arrival:
        shape = self.shape
        low, high = shape.context_range
        number = low + pick(drawn[NUMBER], high - low + 1)
        a = (2 * number - low - high) / (high - low)
        p = 1 / (1 + np.exp(-(shape.base + shape.slope * a * self._b)))
        context: dict[str, Any] = {shape.context_field: number}
        if not self.declared:
            if shape.scaled_from is not None and step >= shape.scaled_from:
                context[shape.context_field] = number * shape.scale
            noise = drawn[NOISE : NOISE + shape.noise].tolist()
            context |= {f"x{place}": round(100 * u, 1) for place, u in enumerate(noise)}
        return Arrival(context, p, np.ones(shape.items))


@dataclass(frozen=True, kw_only=True)
class Middle(Shape):
    """Constants of a world in which each segment likes a middle value of the items' number.

    A reward has the probability base + height exp(-((number - mid)/width)²).

    Args:
        item_range: between which the items' numbers are spaced evenly.
        mids: best numbers of the segments, which each seed puts in random order.
    """

    segments: tuple[Any, ...] = ("s0", "s1", "s2", "s3")
    mids: tuple[float, ...] = (60.0, 90.0, 120.0, 150.0)
    item_field: str = "price"
    item_range: tuple[float, float] = (5.0, 200.0)
    items: int = 20
    base: float = 0.05
    height: float = 0.55
    width: float = 30.0


@dataclass(frozen=True, eq=False)
class Likings:
    """The hidden state."""

    p: Array  # (segments, n)
    catalogue: Catalogue


class MiddleWorld(ShapedWorld[Likings, Middle]):
    """Hidden is which number each segment likes best."""

    @cached_property
    def _numbers(self) -> Array:
        """(n,): the items' numbers."""
        return np.linspace(*self.shape.item_range, self.shape.items).round(3)

    def initial(self) -> Likings:
        shape = self.shape
        mids = self.generator().permutation(shape.mids)[:, None]  # (segments, 1)
        p = shape.base + shape.height * np.exp(-(((self._numbers - mids) / shape.width) ** 2))
        items = (Item(f"i{slot}", slot, {shape.item_field: v}) for slot, v in enumerate(self._numbers.tolist()))
        return Likings(p, Catalogue(tuple(items)))

    def catalogue(self, step: int) -> Catalogue:
        return self.state(step).catalogue

    def reference(self) -> Mapping[str, Any]:
        """Declare each number as a level of its own."""
        shape = self.shape
        texts = [str(int(v)) if v.is_integer() else repr(v) for v in self._numbers.tolist()]
        return {
            "context": {"seg": levels(shape.segments)},
            "item": {shape.item_field: levels(texts)},
            "crosses": [["seg", shape.item_field]],
        }

    def arrive(self, state: Likings, catalogue: Catalogue, step: int, user: int, drawn: Array) -> Arrival:
        segment = pick(drawn[SEGMENT], len(self.shape.segments))
        return Arrival({"seg": self.shape.segments[segment]}, state.p[segment], np.ones(self.shape.items))


PRODUCTS: Mapping[str, Product] = {
    "age-price": Product(about="age and price matter by their product"),
    "hour-spice": Product(
        about="hour of the day and spice, 0 to 5, against each other",
        near="age-price",
        context_field="hour",
        context_range=(0, 23),
        item_field="spice",
        item_range=(0, 5),
        items=11,
        slope=-2.2,
    ),
    "income-price": Product(
        about="income, and prices on a logarithmic scale",
        near="age-price",
        context_field="income",
        context_range=(12_000, 250_000),
        item_range=(1, 5000),
        items=30,
        logarithmic=True,
    ),
    "age-price-noise": Product(about="age and price among four numbers of noise", near="age-price", noise=4),
    "scale-change": Product(about="the age is multiplied by 100 half way", near="type-change", scaled_from=1500),
    "celsius-sugar": Product(
        about="temperature from -15 to 40 and grams of sugar; clicks are rarer",
        near="age-price",
        context_field="celsius",
        context_range=(-15, 40),
        item_field="sugar",
        item_range=(0, 60),
        base=-2.0,
        slope=2.5,
    ),
}
MIDDLES: Mapping[str, Middle] = {
    "middle-price": Middle(about="a middle price is best, another for each segment"),
    "middle-narrow": Middle(
        about="sizes from 36 to 46, three segments, narrow",
        near="middle-price",
        segments=("a", "b", "c"),
        mids=(38.0, 41.0, 44.0),
        item_field="size",
        item_range=(36, 46),
        items=11,
        width=1.5,
    ),
    "middle-cents": Middle(
        about="prices from .05 to 2, 30 items",
        near="middle-price",
        mids=(0.5, 0.8, 1.2, 1.6),
        item_range=(0.05, 2.0),
        items=30,
        width=0.3,
    ),
    "middle-mixed": Middle(
        about="six segments as codes; two like the ends",
        near="middle-price",
        segments=(1, 2, 3, 4, 5, 6),
        mids=(5.0, 50.0, 80.0, 120.0, 150.0, 200.0),
        width=40.0,
        steps=4000,
    ),
}
