"""Nested objects, lists of words, booleans and nulls."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any, ClassVar

import numpy as np

from simulator.world._base import Array, Catalogue, Item
from simulator.world.shapes._base import Arrival, Shape, ShapedWorld, levels, pick

LIKES, PREMIUM, NOISE = range(3)  # columns of the uniform numbers


@dataclass(frozen=True, kw_only=True)
class Nested(Shape):
    """Constants of a world in which the words that user and item share matter, and whether a premium user sees
    something dear.

    A reward has the probability σ(base + shared × (words that both have) ± dear_weight): + for premium and dear or
    neither, - else.

    Args:
        words: of which each user likes `likes`, and each item has `tags`; both sets are drawn uniformly.
        premium: share of the users' visits.
        context_path, item_path: objects around the fields, outermost first.
        premium_values, dear_values: what is sent for (no, yes).
        noise: further fields of the user, uniform over five levels each.
    """

    words: tuple[str, ...] = ("a", "b", "c", "d", "e")
    likes: int = 2
    tags: int = 2
    items: int = 24
    premium: float = 0.4
    base: float = -2.2
    shared: float = 1.3
    dear_weight: float = 0.6
    context_path: tuple[str, ...] = ("user",)
    item_path: tuple[str, ...] = ("attrs",)
    premium_values: tuple[Any, Any] = (False, True)
    dear_values: tuple[Any, Any] = (False, True)
    noise: int = 0


@dataclass(frozen=True, eq=False)
class Tagged:
    """The hidden state."""

    tags: Array  # (n, words): 0 or 1
    catalogue: Catalogue


class NestedWorld(ShapedWorld[Tagged, Nested]):
    """Each seed draws the tags of the items. In the declared reference a set of words is a vector of zeros and ones."""

    columns: ClassVar[int] = NOISE + 20

    def _sets(self, size: int) -> list[tuple[int, ...]]:
        return list(combinations(range(len(self.shape.words)), size))

    def initial(self) -> Tagged:
        shape = self.shape
        sets = self._sets(shape.tags)
        chosen = [sets[number] for number in self.generator().integers(len(sets), size=shape.items).tolist()]
        tags = np.zeros((shape.items, len(shape.words)))
        for row, members in zip(tags, chosen, strict=True):
            row[list(members)] = 1
        items = (Item(f"i{slot}", slot, self._features(slot, members)) for slot, members in enumerate(chosen))
        return Tagged(tags, Catalogue(tuple(items)))

    def _features(self, slot: int, members: tuple[int, ...]) -> Mapping[str, Any]:
        dear = slot % 2
        if self.declared:
            return {"tags": self._vector(members), "dear": str(dear)}
        fields = {"tags": [self.shape.words[word] for word in members], "dear": self.shape.dear_values[dear]}
        return wrapped(fields, self.shape.item_path)

    def _vector(self, members: tuple[int, ...]) -> list[float]:
        return [float(word in members) for word in range(len(self.shape.words))]

    def catalogue(self, step: int) -> Catalogue:
        return self.state(step).catalogue

    def reference(self) -> Mapping[str, Any]:
        words = {"type": "vector", "size": len(self.shape.words)}
        return {
            "context": {"likes": words, "premium": levels("01")},
            "item": {"tags": words, "dear": levels("01")},
            "crosses": [["likes", "tags"], ["premium", "dear"]],
        }

    def arrive(self, state: Tagged, catalogue: Catalogue, step: int, user: int, drawn: Array) -> Arrival:
        shape = self.shape
        sets = self._sets(shape.likes)
        members = sets[pick(drawn[LIKES], len(sets))]
        premium = int(drawn[PREMIUM] < shape.premium)
        shared = state.tags[:, list(members)].sum(axis=1)
        agrees = np.where(np.arange(shape.items) % 2 == premium, 1, -1)
        p = 1 / (1 + np.exp(-(shape.base + shape.shared * shared + shape.dear_weight * agrees)))
        if self.declared:
            context: Mapping[str, Any] = {"likes": self._vector(members), "premium": str(premium)}
        else:
            fields = {
                "likes": [shape.words[word] for word in members],
                "premium": shape.premium_values[premium],
                "geo": None,
            }
            noise = drawn[NOISE : NOISE + shape.noise].tolist()
            fields |= {f"n{number}": f"v{pick(u, 5)}" for number, u in enumerate(noise)}
            context = wrapped(fields, shape.context_path)
        return Arrival(context, p, np.ones(shape.items))


def wrapped(fields: Mapping[str, Any], path: tuple[str, ...]) -> Mapping[str, Any]:
    """Put the fields into objects of these names, the first one outermost."""
    for name in reversed(path):
        fields = {name: fields}
    return fields


WORLDS: Mapping[str, Nested] = {
    "nested": Nested(about="nested objects with lists of words and booleans"),
    "nested-deep": Nested(
        about="three objects deep, yes and no as text",
        near="nested",
        context_path=("request", "user", "profile"),
        item_path=("data", "attrs"),
        premium_values=("no", "yes"),
        dear_values=("cheap", "dear"),
    ),
    "nested-words": Nested(
        about="eight words, three liked, one tag an item",
        near="nested",
        words=("ale", "beef", "corn", "dill", "egg", "fig", "ghee", "hop"),
        likes=3,
        tags=1,
        items=30,
        base=-1.6,
        shared=2.0,
    ),
    "nested-noise": Nested(about="five fields of noise beside them", near="nested", noise=5),
    "nested-flat": Nested(
        about="lists and booleans that are not nested; 0 and 1 for no and yes",
        near="nested",
        context_path=(),
        item_path=(),
        premium_values=(0, 1),
        dear_values=(0, 1),
    ),
}
