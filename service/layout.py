"""Where the layers of a row lie, and rows that are not multiplied out yet."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


class Layout(NamedTuple):
    """The number of columns of each layer, in the order in which they stand in a row."""

    shared: int  # weights that all items share
    of_item: int  # columns on which every item has weights of its own
    of_user: int  # columns on which every user has weights of their own

    @property
    def d(self) -> int:
        """Columns of a row."""
        return self.shared + self.of_item + self.of_user

    def split(self, x: Array) -> tuple[Array, Array, Array]:
        """Return the three layers of rows (..., d), as views."""
        start, end = self.shared, self.shared + self.of_item
        return x[..., :start], x[..., start:end], x[..., end:]


class Products(NamedTuple):
    """How rows are made where every column is a product of one of the context's columns and one of the item's:

    x[i, j] = z[i, right[j]] · context[left[j]] · scale[j].
    """

    left: Array  # (d,) columns of the context
    right: Array  # (d,) columns of z
    scale: Array  # (d,) float32

    def first(self, columns: int | None) -> Products:
        """Select the first columns of a row; None: all."""
        return Products(self.left[:columns], self.right[:columns], self.scale[:columns])


class Rows:
    """One context with each of n items: X (n, d), not multiplied out.

    The items give z (n, p), which is the same for all contexts; the context gives `weight` (q,):

        x[i, j] = z[i, right[j]] · weight[j] for j < q.

    The columns of z from `plain` on follow in the row as they are. A product of X is then one of z, which costs less
    than making X.

    Args:
        z: (n, p) float64, of numbers that float32 holds.
        right: (q,) columns of z, each below `plain`.
        weight: (q,) float32.
        plain: the first column of z that stands in the row as it is.
        context: (c,) float32, the context's columns, which `weight` was made of; None: not known.
    """

    __slots__ = ("context", "plain", "right", "weight", "z")

    def __init__(self, z: Array, right: Array, weight: Array, plain: int, context: Array | None = None) -> None:
        self.z, self.right, self.weight, self.plain, self.context = z, right, weight, plain, context

    @classmethod
    def of(cls, x: Array) -> Rows:
        """Take rows (n, d) that are multiplied out."""
        d = x.shape[1]
        return cls(x.astype(np.float64), np.arange(d), np.ones(d, dtype=np.float32), d)

    def __len__(self) -> int:
        return len(self.z)

    def dense(self, at: Array | None = None) -> Array:
        """Multiply out all rows, or those at `at`: (n, d) float32. A row does not depend on the others."""
        z = self.z if at is None else self.z[at]
        x = z.take(self.right, axis=1)
        x *= self.weight  # exact in float64, and then rounded once
        if self.plain < z.shape[1]:
            x = np.concatenate([x, z[:, self.plain :]], axis=1)
        return x.astype(np.float32)

    def columns(self, start: int, stop: int | None) -> Rows:
        """Select columns of the rows.

        Raises:
            ValueError: some of rows that have plain columns.
        """
        if start == 0 and stop in (None, len(self.right) + self.z.shape[1] - self.plain):
            return self
        if self.plain < self.z.shape[1]:
            raise ValueError("rows with plain columns have no layers")
        return Rows(self.z, self.right[start:stop], self.weight[start:stop], self.plain)

    def layers(self, layout: Layout) -> tuple[Rows, Rows, Rows]:
        """Return the three layers."""
        start, end = layout.shared, layout.shared + layout.of_item
        return self.columns(0, start), self.columns(start, end), self.columns(end, layout.d)

    def fold(self, weights: Array) -> Array:
        """Compute w (p, m) such that X weights = z w, for weights (d, m)."""
        used = self.weight.nonzero()[0]  # few: a field of many levels has one of them in a context
        spread = np.zeros((self.plain, len(used)), dtype=weights.dtype)
        spread[self.right[used], np.arange(len(used))] = self.weight[used]
        w: Array = spread @ weights[used]
        return w if self.plain == self.z.shape[1] else np.concatenate([w, weights[len(self.right) :]])

    def same(self) -> Array | None:
        """Return the row (d,) that all items have, if the context alone makes it."""
        return None if self.plain < self.z.shape[1] or self.right.any() else self.weight
