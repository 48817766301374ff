"""An inverted file: m vectors in lists, of which a search looks at a few (Jégou et al. 2011, without their codes).

Each list holds the vectors that lie nearest to its centre. A search looks at the lists whose centres lie nearest to the
query, so it may miss some of the nearest vectors. How many lists it takes is found out when the file is made: as few as
find `WANTED` of the 100 nearest, on average over queries that point 45 degrees aside of vectors. If that is not clearly
fewer than all, or there are too few vectors to gain anything, there are no lists, and every vector is looked at.

The same vectors give the same file, and a query the same answer, bit for bit, on the same machine.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

FEWEST = 20_000  # vectors that are worth an index
WANTED = 0.98  # recall of the 100 nearest among the sampled queries; others may lie less well
MOST_SHARE = 0.25  # of the lists: beyond, a search of every vector takes about as long
NEAREST, QUERIES = 100, 64  # of the measurement
ROUNDS = 6  # of k-means
SAMPLE = 64  # vectors a list that k-means looks at
AT_ONCE = 1 << 23  # products: bounds the working memory to 32 MB


class Inverted:
    """m vectors of length 1, ready to be searched. Immutable.

    Attributes:
        vectors: (m, size) float32, by lists.
        places: (m,) int32, where each stood in what the file was made from.
        probes: lists that a search looks at; 0: at every vector.
    """

    def __init__(self, vectors: Array, places: Array, centres: Array, starts: Array, probes: int) -> None:
        self.vectors, self.places, self.probes = vectors, places, probes
        self._centres = centres  # (c, size) float32
        self._starts = starts  # (c + 1,) intp
        self._bounds: list[int] = starts.tolist()

    @classmethod
    def of(cls, vectors: Array) -> Inverted:
        """Make the file of vectors (m, size) float32 of length 1."""
        m, size = vectors.shape
        everything = cls(vectors, np.arange(m, dtype=np.int32), np.zeros((1, size), np.float32), np.array([0, m]), 0)
        if m < FEWEST:
            return everything
        rng = np.random.default_rng(m)
        centres = _centres(vectors, int(2 * m**0.5), rng)
        of_list = _nearest(vectors, centres)
        places = np.argsort(of_list, kind="stable").astype(np.int32)
        starts = np.searchsorted(of_list[places], np.arange(len(centres) + 1))
        made = cls(vectors[places], places, centres, starts, 0)
        made.probes = made._fewest_probes(rng)
        return made if made.probes else everything

    def __len__(self) -> int:
        return len(self.vectors)

    def search(self, query: Array, most: int) -> tuple[Array, Array]:
        """Return places and products of the nearest vectors, at most so many, in no order.

        Args:
            query: (size,) float32 of length 1.
        """
        return self._search(query, most, self.probes)

    def _search(self, query: Array, most: int, probes: int) -> tuple[Array, Array]:
        if not probes:
            products = self.vectors @ query  # (m,)
            best = _largest(products, most)
            return self.places[best], products[best]
        near = np.sort(_largest(self._centres @ query, probes))
        bounds, vectors = self._bounds, self.vectors
        spans = [(bounds[one], bounds[one + 1]) for one in near.tolist()]
        products = np.concatenate([vectors[start:stop] @ query for start, stop in spans])
        best = _largest(products, most)
        ends = np.cumsum([stop - start for start, stop in spans])
        of_span = np.searchsorted(ends, best, side="right")
        rows = best + (np.array([stop for _, stop in spans]) - ends)[of_span]
        return self.places[rows], products[best]

    def _fewest_probes(self, rng: np.random.Generator) -> int:
        """Return how many lists a search has to look at; 0: too many."""
        off = rng.standard_normal((QUERIES, self.vectors.shape[1]))
        off /= np.linalg.norm(off, axis=1, keepdims=True)
        aside = self.vectors[rng.integers(len(self), size=QUERIES)] + off
        queries = (aside / np.maximum(np.linalg.norm(aside, axis=1, keepdims=True), 1e-6)).astype(np.float32)
        truth = [set(self._search(query, NEAREST, 0)[0].tolist()) for query in queries]
        probes = 4
        while probes <= MOST_SHARE * len(self._centres):
            found = [set(self._search(query, NEAREST, probes)[0].tolist()) for query in queries]
            if np.mean([len(one & other) for one, other in zip(found, truth, strict=True)]) >= WANTED * NEAREST:
                return probes
            probes = probes * 3 // 2
        return 0


def _largest(values: Array, most: int) -> Array:
    """Return where the largest values stand, in no order."""
    if most >= len(values):
        return np.arange(len(values))
    return np.argpartition(values, len(values) - most)[len(values) - most :]


def _centres(vectors: Array, c: int, rng: np.random.Generator) -> Array:
    """Find c centres (c, size) of length 1 by spherical k-means (Dhillon and Modha 2001) on a sample."""
    some = rng.permutation(len(vectors))[: SAMPLE * c]
    sample = vectors[np.sort(some)]
    centres = sample[rng.permutation(len(sample))[:c]]
    for _ in range(ROUNDS):
        of_list = _nearest(sample, centres)
        order = np.argsort(of_list, kind="stable")
        lists, starts = np.unique(of_list[order], return_index=True)
        sums = np.add.reduceat(sample[order], starts, axis=0)
        centres[lists] = sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-6)
    return centres


def _nearest(vectors: Array, centres: Array) -> Array:
    """Return the nearest centre of each vector, (m,) intp."""
    step = max(1, AT_ONCE // len(centres))
    parts = [(vectors[at : at + step] @ centres.T).argmax(axis=1) for at in range(0, len(vectors), step)]
    return np.concatenate(parts)
