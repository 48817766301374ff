"""The rows of one decision as sums: what each field, and each pair of fields, wrote into them.

A row is linear in the tokens of undeclared fields, too, once its length is known. So a linear score is a sum over pairs
of a context field and an item field, either of them possibly the constant 1, and the sum leaves nothing over.

Letters: **n** items, **d** columns of a row, **G** pairs, **q** columns that one pair writes alone, **E** entries of
columns that several pairs share.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


class Pair(NamedTuple):
    """A context field and an item field; None is the constant 1."""

    context: str | None
    item: str | None


CONSTANT = Pair(None, None)


class Shared(NamedTuple):
    """What pairs write into columns that they share: E entries, several of which may fall together."""

    row: Array  # (E,) of the n
    column: Array  # (E,) among the shared ones, from 0
    pair: Array  # (E,) number of the pair
    value: Array  # (E,) float64

    @classmethod
    def joined(cls, entries: Iterable[tuple[Array, Array, Array, Array]]) -> Shared:
        """Join entries, given as (row, column, pair, value)."""
        found = list(entries)
        kinds = (np.intp, np.intp, np.intp, np.float64)
        if not found:
            return cls(*(np.zeros(0, dtype=kind) for kind in kinds))
        return cls(*(np.concatenate([np.ravel(part) for part in column]) for column in zip(*found, strict=True)))

    def of_row(self, row: int) -> Shared:
        """Select one row's entries; it is then the first row."""
        at = np.flatnonzero(self.row == row)
        return Shared(np.zeros(len(at), dtype=np.intp), self.column[at], self.pair[at], self.value[at])

    def rounded_as(self, x: Array) -> Shared:
        """Return entries that add up to the shared columns x (n, e) of rows, which were rounded to float32.

        The difference goes to the largest entry of each column.
        """
        total = np.zeros(x.shape)
        np.add.at(total, (self.row, self.column), self.value)
        order = np.argsort(np.abs(self.value), kind="stable")
        largest = np.full(x.shape, -1, dtype=np.intp)
        largest[self.row[order], self.column[order]] = order  # where entries fall together the last one stays
        value, written = self.value.copy(), largest >= 0
        value[largest[written]] += (x - total)[written]
        return self._replace(value=value)


@dataclass(frozen=True, slots=True, eq=False)
class Parts:
    """The rows X (n, d) of one context with n items, by pairs of fields.

    Attributes:
        pairs: (G,), each once.
        x: (n, d) float64, the rows as they are served.
        of_column: (q,) the number of the pair that writes each of the first columns.
        shared: what pairs write into the columns that follow.
    """

    pairs: Sequence[Pair]
    x: Array
    of_column: Array
    shared: Shared

    def values(self, weights: Array) -> Array:
        """Return what each pair adds to X · weights: (n, G) float64. A row sums to the row's product, up to rounding.

        Args:
            weights: (n, c) of each item's first c columns, or (c,) of all.
        """
        weights = np.broadcast_to(weights, (len(self.x), weights.shape[-1]))
        found = np.zeros((len(self.pairs), len(self.x)))
        q = min(len(self.of_column), weights.shape[1])
        np.add.at(found, self.of_column[:q], (self.x[:, :q] * weights[:, :q]).T)
        row, column, pair, value = self.shared
        if len(value) and weights.shape[1] > q:
            np.add.at(found, (pair, row), value * weights[row, q + column])
        return found.T

    def of(self, row: int, weights: Array) -> dict[Pair, float]:
        """Return pair -> what it adds to one row's product with weights (c,); pairs that add nothing are left out."""
        row_alone = Parts(self.pairs, self.x[row : row + 1], self.of_column, self.shared.of_row(row))
        (values,) = row_alone.values(weights)
        return {pair: value for pair, value in zip(self.pairs, values.tolist(), strict=True) if value}


class Numbers:
    """Numbers pairs in the order in which they first come."""

    def __init__(self) -> None:
        self.pairs: dict[Pair, int] = {CONSTANT: 0}

    def of(self, context: str | None, item: str | None) -> int:
        """Return the number of a pair."""
        return self.pairs.setdefault(Pair(context, item), len(self.pairs))
