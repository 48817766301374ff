"""Items with long vectors, in which a few directions matter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from simulator.world._base import Array, Catalogue, Item
from simulator.world.shapes._base import Arrival, Shape, ShapedWorld, levels, pick

SEGMENT = 0  # column of the uniform numbers


@dataclass(frozen=True, kw_only=True)
class Embeddings(Shape):
    """Constants of a world in which each segment likes a direction of the items' hidden topics.

    An item's topic is a unit vector t of `topics` numbers. Its embedding is t M + noise, scaled to length 1, where M
    (topics, size) and the noise are normal. A reward has the probability σ(base + t · taste).

    Args:
        length: of each segment's taste.
        noise: standard deviation of each number's noise; the matrix has 1.
        components: of the declared reference: principal components of the embeddings on offer.
    """

    segments: tuple[Any, ...] = ("s0", "s1", "s2", "s3")
    items: int = 30
    size: int = 384
    topics: int = 4
    noise: float = 0.15
    base: float = -1.2
    length: float = 2.5
    components: int = 8


@dataclass(frozen=True, eq=False)
class Tastes:
    """The hidden state."""

    p: Array  # (segments, n)
    catalogue: Catalogue


def unit(vectors: Array) -> Array:
    """Scale each row to length 1."""
    scaled: Array = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return scaled


class EmbeddingsWorld(ShapedWorld[Tastes, Embeddings]):
    """The service sees the segment and the embedding; in the declared reference, the embedding's first components."""

    def initial(self) -> Tastes:
        shape, generator = self.shape, self.generator()
        topics = unit(generator.normal(size=(shape.items, shape.topics)))
        matrix = generator.normal(size=(shape.topics, shape.size))
        shown = unit(topics @ matrix + shape.noise * generator.normal(size=(shape.items, shape.size)))
        tastes = shape.length * unit(generator.normal(size=(len(shape.segments), shape.topics)))
        if self.declared:
            centred = shown - shown.mean(axis=0)
            shown = centred @ np.linalg.svd(centred, full_matrices=False)[2][: shape.components].T
        items = (Item(f"i{slot}", slot, {"embedding": row}) for slot, row in enumerate(shown.round(6).tolist()))
        return Tastes(1 / (1 + np.exp(-(shape.base + tastes @ topics.T))), Catalogue(tuple(items)))

    def catalogue(self, step: int) -> Catalogue:
        return self.state(step).catalogue

    def reference(self) -> Mapping[str, Any]:
        return {
            "context": {"seg": levels(self.shape.segments)},
            "item": {"embedding": {"type": "vector", "size": self.shape.components}},
            "crosses": [["seg", "embedding"]],
        }

    def arrive(self, state: Tastes, catalogue: Catalogue, step: int, user: int, drawn: Array) -> Arrival:
        segment = pick(drawn[SEGMENT], len(self.shape.segments))
        return Arrival({"seg": self.shape.segments[segment]}, state.p[segment], np.ones(self.shape.items))


WORLDS: Mapping[str, Embeddings] = {
    "embeddings": Embeddings(about="30 items with embeddings of 384 numbers"),
    "embeddings-1536": Embeddings(about="1 536 numbers, 40 items", near="embeddings", size=1536, items=40, noise=0.3),
    "embeddings-64": Embeddings(
        about="64 numbers, 60 items, six topics", near="embeddings", size=64, items=60, topics=6
    ),
    "embeddings-2": Embeddings(
        about="768 numbers of which two directions matter, three segments",
        near="embeddings",
        size=768,
        topics=2,
        segments=("a", "b", "c"),
        noise=0.5,
    ),
}
