"""Two towers: a network turns a user and a context into a vector, another an item; near ones belong together.

This is the half that serves, in NumPy; `service/learn/towers.py` trains it, in PyTorch.

    s = e(id) + Σ w_t e(t) / √T,   z = s + tanh(s W + b),   vector = z / |z|

e(id) is the embedding of the user's, or the item's, id: 0 where it was not learned. The sum runs over the T tokens of
the context, or of the item's features (`service/represent/tokens.py`), each with its weight; e(t) is the embedding of
its column. So an item that was never shown has a vector by its features at once, and a user of whom nothing is known
one by his context.

Letters: **n** users or items, **e** numbers of a vector, **c** columns of tokens, **k** ids that were learned.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.records import Features
from service.represent.misfits import Misfits, Side
from service.represent.tokens import Tokens, token_hash

Array = NDArray[Any]

COLUMNS = 1 << 14  # of tokens, on each side
LONGEST = 256  # numbers of a vector that a state may hold
AT_ONCE = 10_000  # users or items whose tokens are added up at the same time
SHORTEST = 1e-6  # a shorter z has no direction


@dataclass(frozen=True, slots=True, eq=False)
class Bags:
    """The tokens of n contexts or items: those of the i-th lie at starts[i] : starts[i + 1]."""

    starts: Array  # (n + 1,) int64
    columns: Array  # (tokens,) int32
    weights: Array  # (tokens,) float32, 1/√T in them

    def __len__(self) -> int:
        return len(self.starts) - 1

    def take(self, rows: Array) -> Bags:
        """Select the bags at `rows`, in that order."""
        sizes = (self.starts[1:] - self.starts[:-1])[rows]
        starts = np.concatenate([[0], np.cumsum(sizes)])
        at = np.arange(starts[-1]) + np.repeat(self.starts[:-1][rows] - starts[:-1], sizes)
        return Bags(starts, self.columns[at], self.weights[at])

    @staticmethod
    def concat(one: Bags, other: Bags) -> Bags:
        """Join bags, one after the other."""
        return Bags(
            np.concatenate([one.starts, one.starts[-1] + other.starts[1:]]),
            np.concatenate([one.columns, other.columns]),
            np.concatenate([one.weights, other.weights]),
        )


def bags_of(features: Iterable[Features], side: Side, columns: int = COLUMNS) -> Bags:
    """Make tokens of contexts, or of features of items. What makes no token is left out."""
    starts, at, weights = [0], [], []
    of_side, misfits = side.encode(), Misfits()
    for one in features:
        tokens = Tokens(side, misfits)
        for name, value in one.items():
            tokens.add_field(name, value)
        scale = max(1, len(tokens.names)) ** -0.5
        at += [token_hash(name, of_side) % columns for name in tokens.names]
        weights += [scale * weight for weight in tokens.weights]
        starts.append(len(at))
    return Bags(np.array(starts), np.array(at, dtype=np.int32), np.array(weights, dtype=np.float32))


def hash_of(name: str) -> int:
    """Return 64 bits that stand for an id."""
    return int.from_bytes(blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def hashes_of(ids: Iterable[str]) -> Array:
    """Return 64 bits that stand for each id, (n,) uint64. Two ids that share them share their embedding."""
    return np.array([hash_of(name) for name in ids], dtype=np.uint64)


@dataclass(frozen=True, slots=True, eq=False)
class Tower:
    """One of the two. Immutable."""

    ids: Array  # (k,) uint64, ascending: hashes
    of_ids: Array  # (k, e) float32
    of_tokens: Array  # (c, e) float32
    W: Array  # (e, e) float32
    b: Array  # (e,) float32

    def vectors(self, ids: Array, bags: Bags) -> tuple[Array, Array]:
        """Return n vectors of length 1, (n, e) float32, and which of them point anywhere, (n,).

        Args:
            ids: (n,) uint64, hashes.
        """
        z = np.empty((len(bags), self.W.shape[0]), dtype=np.float32)
        for start in range(0, len(bags), AT_ONCE):
            some = slice(start, start + AT_ONCE)
            z[some] = self._sums(ids[some], bags, start)
        z += np.tanh(z @ self.W + self.b)
        length = np.sqrt((z * z).sum(axis=1))
        z /= np.maximum(length, SHORTEST)[:, None]
        return z, length >= SHORTEST

    def rows(self, ids: Array) -> Array:
        """Return the row of each id, (n,); k where it was not learned."""
        k = len(self.ids)
        if not k:
            return np.zeros(len(ids), dtype=np.intp)
        at = np.searchsorted(self.ids, ids)
        found: Array = np.where(self.ids[np.minimum(at, k - 1)] == ids, at, k)
        return found

    def _sums(self, ids: Array, bags: Bags, first: int) -> Array:
        """Add embeddings up for these ids and the bags from `first` on: (n', e)."""
        rows = self.rows(ids)
        known = rows < len(self.ids)
        s = np.zeros((len(ids), self.W.shape[0]), dtype=np.float32)
        s[known] = self.of_ids[rows[known]]
        starts = bags.starts[first : first + len(ids) + 1]
        full = starts[:-1] < starts[1:]
        if full.any():
            span = slice(starts[0], starts[-1])
            tokens = self.of_tokens[bags.columns[span]] * bags.weights[span, None]
            s[full] += np.add.reduceat(tokens, starts[:-1][full] - starts[0], axis=0)
        return s


@dataclass(frozen=True, slots=True, eq=False)
class Towers:
    """Both towers, and what was popular where they were trained. Immutable."""

    user: Tower
    item: Tower
    popular: Array  # (≤ 100,) uint64: the items that brought most, the best first

    def user_vector(self, user: str | None, context: Features) -> Array | None:
        """Return the vector of a user in a context, (e,) float32 of length 1; None where it points nowhere."""
        ids = np.zeros(1, dtype=np.uint64) if user is None else hashes_of([user])
        [vector], [points] = self.user.vectors(ids, bags_of([context], "context", len(self.user.of_tokens)))
        return vector if points else None

    def state(self) -> dict[str, Array]:
        """Return all arrays by name."""
        arrays = {"popular": self.popular}
        for name, tower in (("user", self.user), ("item", self.item)):
            arrays |= {f"{name}_{one.name}": getattr(tower, one.name) for one in fields(Tower)}
        return arrays

    @classmethod
    def load(cls, state: Mapping[str, Array]) -> Towers:
        """Make them from a state.

        Raises:
            ValueError: it is no such state.
        """
        try:
            user, item = (Tower(*(state[f"{name}_{one.name}"] for one in fields(Tower))) for name in ("user", "item"))
            popular = state["popular"]
        except KeyError as error:
            raise ValueError(f"no towers: {error} is missing") from error
        e = len(user.b)
        for name, tower in (("user", user), ("item", item)):
            k = len(tower.ids)
            shapes = {"ids": (k,), "of_ids": (k, e), "of_tokens": (len(tower.of_tokens), e), "W": (e, e), "b": (e,)}
            for part, shape in shapes.items():
                array = getattr(tower, part)
                dtype = np.uint64 if part == "ids" else np.float32
                if array.shape != shape or array.dtype != dtype or not np.isfinite(array).all():
                    raise ValueError(f"towers: array {name}_{part!s} does not fit")
            if not len(tower.of_tokens) or (tower.ids[1:] <= tower.ids[:-1]).any():
                raise ValueError(f"towers: array {name}_ids does not fit")
        if not 0 < e <= LONGEST or popular.ndim != 1 or popular.dtype != np.uint64:
            raise ValueError("towers: array popular does not fit")
        return cls(user, item, popular)


def recall(
    towers: Towers, users: Array, items: Array, catalogue: Sequence[int] | Array, vectors: Array, *, most: int = 100
) -> tuple[float, float]:
    """Return the share of rewarded items that are among the `most` nearest of the catalogue, and the most popular.

    Args:
        users: (n, e) vectors of users who were rewarded.
        items: (n,) which row of the catalogue each was rewarded for.
        catalogue: (N,) uint64 hashes of its items.
        vectors: (N, e) of its items.
    """
    hits = 0
    for start in range(0, len(users), 256):
        some = slice(start, start + 256)
        cosines = users[some] @ vectors.T
        own = np.take_along_axis(cosines, items[some, None], axis=1)
        hits += int(((cosines > own).sum(axis=1) < most).sum())
    return hits / len(users), float(np.isin(np.asarray(catalogue)[items], towers.popular[:most]).mean())
