"""Scores a whole catalogue from the context alone, for policies whose bound of an item is a form of its row.

A row is x_i = B_i c, where c are the columns of the context and B_i depends on the item alone (`Products`). So

    xᵀm + width √(xᵀ S x)  =  (B_iᵀ m)ᵀ c + width √(cᵀ (B_iᵀ S B_i) c),

and the right side's vector and matrix are made once for each item. A decision then reads q (q + 3) / 2 numbers an item
at most, and of these only the ones that meet the context's columns that are not 0. The left side reads d (d + 1).

Letters: **n** items of a catalogue, **d** columns of a row, **q** columns of the context.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from service.layout import Products
from service.policies.base import Array, Bounds
from service.policies.item_index import Ids
from service.policies.linalg import blocks, packed_index

MOST_NUMBERS = 1 << 24  # of a fold: 128 MiB
MOST_PRODUCTS = 1 << 26  # that making a fold adds up: about a second
FEW = 4  # the stacks of a selection are read alone where it is less than 1 / FEW of the catalogue


class Fold:
    """The bounds of n items as forms of the context's columns.

    Every number depends on its own item and the context alone, bit for bit: no sum is left to BLAS, whose order of
    summation depends on the sizes of its arguments.

    Attributes:
        ids: of the n items.
    """

    def __init__(self, bounds: Bounds, products: Products, z: Array, ids: Ids) -> None:
        """Fold the bounds of n items, whose columns z (n, p) are."""
        self.ids, self._width = ids, bounds.width
        self._columns, left = np.unique(products.left, return_inverse=True)  # (q,) of the context that rows use
        q, n = len(self._columns), len(z)
        pairs, (upper_left, upper_right) = q * (q + 1) // 2, packed_index(q)
        self._pair = np.empty((q, q), dtype=np.intp)  # where the product of two columns of the context stands
        self._pair[upper_left, upper_right] = self._pair[upper_right, upper_left] = np.arange(pairs)
        self._linear, self._square = np.empty((q, n)), np.empty((pairs, n))
        used = _used(products, z)
        for part in blocks(n, used * (used + 1) // 2):
            value = z[part].take(products.right, axis=1) * products.scale  # (k, d): what stands in B
            at = np.argsort(value == 0, axis=1, kind="stable")[:, :used]  # (k, used): first what is not 0
            value, its = np.take_along_axis(value, at, axis=1), left[at]
            model = bounds.rows[part, None]
            self._linear[:, part] = _summed(bounds.models[model, -1, at] * value, its, q)
            one, other = packed_index(used)
            square = bounds.models[model, at[:, one], at[:, other]]
            square *= value[:, one]
            square *= value[:, other]
            square *= np.where(one == other, 1.0, 2.0)  # S is symmetric
            self._square[:, part] = _summed(square, self._pair[its[:, one], its[:, other]], pairs)

    @classmethod
    def of(cls, bounds: Bounds, products: Products, z: Array, ids: Ids) -> Fold | None:
        """Fold the bounds, unless that would take too much memory or time: see `MOST_NUMBERS` and `MOST_PRODUCTS`.

        Whether it would is a function of the encoder and of the catalogue.
        """
        q, used = len(np.unique(products.left)), _used(products, z)
        if len(z) * (q * (q + 3) // 2) > MOST_NUMBERS or len(z) * (used * (used + 1) // 2) > MOST_PRODUCTS:
            return None
        return cls(bounds, products, z, ids)

    @property
    def bytes(self) -> int:
        """Return the memory that the fold takes."""
        return self._linear.nbytes + self._square.nbytes

    def places(self, items: Sequence[str]) -> Array | slice | None:
        """Return where items stand in the catalogue; None unless they are its ids, or were taken from these."""
        return items.within(self.ids) if isinstance(items, Ids) else None

    def estimate(self, context: Array, at: Array | slice) -> Array:
        """Compute the bounds (k, 1) of the k items at `at` from the context's columns, float32."""
        c = context[self._columns].astype(np.float64)
        some = c.nonzero()[0]
        c = c[some]
        one, other = packed_index(len(some))
        every = isinstance(at, slice) or FEW * len(at) > len(self.ids)
        columns = slice(None) if every else at
        mean = _weighed(c, self._linear, some, columns)
        variance = _weighed(c[one] * c[other], self._square, self._pair[some[one], some[other]], columns)
        bound = mean + self._width * np.sqrt(np.maximum(variance, 0.0))  # rounding may leave it just below 0
        return (bound[at] if every else bound)[:, None]


def _used(products: Products, z: Array) -> int:
    """Return the largest number of columns of a row that are not 0 for every context."""
    columns = np.bincount(products.right, minlength=z.shape[1])  # of a row that each column of z stands in
    return int(((z != 0) @ columns).max(initial=1))


def _summed(values: Array, places: Array, size: int) -> Array:
    """Sum the values (k, j) of each row by their places, each in [0, size): (size, k)."""
    k = len(values)
    every = np.bincount((places + size * np.arange(k)[:, None]).ravel(), values.ravel(), minlength=k * size)
    return every.reshape(k, size).T


def _weighed(weights: Array, stack: Array, rows: Array, columns: Array | slice) -> Array:
    """Sum weights (j,) times the `rows` (j,) of a stack, in their order, for each of the columns."""
    found = stack.take(rows, axis=0) if isinstance(columns, slice) else stack[rows[:, None], columns]
    k = found.shape[1]
    if k == 1:  # of a single column, NumPy would add in another order
        found = found.repeat(2, axis=1)
    total: Array = np.einsum("j,jk->k", weights, found)
    return total[:k]
