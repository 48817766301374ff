"""Fits a ridge regression of its own for each item, for the two LinUCB policies."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from service.policies.base import Array, Arrays, Batch, fade, finite_batch
from service.policies.item_index import ItemIndex
from service.policies.linalg import blocks, pack, packed_outer, psd_cholesky, unpack


class ItemRidge:
    """One ridge regression of rewards on rows per item.

    Over the item's own events, each with its present weight w:

        A = ridge I + Σ w x xᵀ (d, d),   b = Σ w r x (d,),   θ = A⁻¹ b (d,).

    The sums are kept packed, without the prior, in units of `_weight`: 8 (d (d + 1) / 2 + d + 1) bytes per item.
    `solve` computes θ and A⁻¹ for the items that changed since it was called last, O(d³) each.

    Args:
        d: number of features.
        ridge: prior precision of every coefficient, positive.
    """

    def __init__(self, d: int, ridge: float) -> None:
        self.d, self.ridge = d, ridge
        self._items = ItemIndex()
        # Stacks of one row per item. They are longer than needed, and double when they are full.
        self._outer = np.zeros((0, d * (d + 1) // 2))  # Σ w x xᵀ, packed
        self._b = np.zeros((0, d))
        self._pulls = np.zeros(0, dtype=np.int64)
        self._weight = 1.0  # of one event in the two sums
        # What `solve` found last, and the rows that have changed since. Row 0 of both is the item never seen.
        self._inverse = pack(np.eye(d)[None] / ridge)
        self._theta = np.zeros((1, d))
        self._changed: set[int] = set()

    def update(self, batch: Batch) -> None:
        """Learn B events.

        Raises:
            NumericalError: a feature or a reward is not finite. Nothing is then changed.
        """
        x = finite_batch(batch, self.d)  # (B, d)
        rows = [self._items.add(item) for item in batch.item]
        self._reserve(len(self._items))
        for row, outer, rx in zip(rows, packed_outer(x), batch.reward[:, None] * x, strict=True):
            self._outer[row] += self._weight * outer
            self._b[row] += self._weight * rx
            self._pulls[row] += 1
        self._changed.update(rows)

    def forget(self, keep: float) -> None:
        """Multiply the weight of all events by `keep`, in [0, 1)."""
        self._weight, scale = fade(self._weight, keep)
        if scale != 1:
            self._outer *= scale
            self._b *= scale
        self._changed = set(range(len(self._items)))

    def forget_items(self, gone: Collection[str]) -> None:
        """Drop the regressions of these items. Unknown ids are ignored."""
        solved = len(self._theta) - 1
        kept = self._items.forget(gone)
        if kept is None:
            return
        self._outer, self._b, self._pulls = self._outer[kept], self._b[kept], self._pulls[kept]
        served = [0, *(kept[kept < solved] + 1)]
        self._theta, self._inverse = self._theta[served], self._inverse[served]
        self._changed = {row for row, before in enumerate(kept.tolist()) if before in self._changed}

    def _reserve(self, m: int) -> None:
        if m > len(self._pulls):
            more = max(m, 2 * len(self._pulls)) - len(self._pulls)
            self._outer = np.pad(self._outer, ((0, more), (0, 0)))
            self._b = np.pad(self._b, ((0, more), (0, 0)))
            self._pulls = np.pad(self._pulls, (0, more))

    def state(self) -> Arrays:
        """Copy all that learning needs to go on, bit for bit: row i of each array is item i."""
        m = len(self._items)
        return {
            "items": self._items.to_array(),
            "outer": self._outer[:m].copy(),
            "b": self._b[:m].copy(),
            "pulls": self._pulls[:m].copy(),
            "weight": np.array([self._weight]),
        }

    def load(self, state: Arrays) -> None:
        """Replace what was learned by a `state()` with the same d and ridge."""
        self._items = ItemIndex.from_array(state["items"])
        self._outer, self._b, self._pulls = state["outer"].copy(), state["b"].copy(), state["pulls"].copy()
        self._weight = float(state["weight"][0])
        self._inverse, self._theta = self._inverse[:1], self._theta[:1]
        self._changed = set(range(len(self._items)))

    def solve(self) -> Arrays:
        """Compute `theta` (m + 1, d) and `inverse` (m + 1, P), the packed A⁻¹, beside `items` and `pulls` (m,).

        Row 0 of `theta` and `inverse` is the item never seen, row i + 1 is item i.

        Raises:
            NumericalError: an A cannot be factored.
        """
        new = len(self._items) + 1 - len(self._theta)
        if new:
            self._theta = np.pad(self._theta, ((0, new), (0, 0)))
            self._inverse = np.pad(self._inverse, ((0, new), (0, 0)))
        changed = np.array(sorted(self._changed), dtype=np.intp)
        for part in blocks(len(changed), self.d**2):
            rows = changed[part]
            theta, inverse = self._solve(self._outer[rows] / self._weight, self._b[rows] / self._weight)
            self._theta[rows + 1], self._inverse[rows + 1] = theta, pack(inverse)
        self._changed.clear()
        return {
            "items": self._items.to_array(),
            "pulls": self._pulls[: len(self._items)].copy(),
            "theta": self._theta.copy(),
            "inverse": self._inverse.copy(),
        }

    def _solve(self, outer: Array, b: Array) -> tuple[Array, Array]:
        """Solve for θ (m, d) and A⁻¹ (m, d, d) from Σ x xᵀ (m, P) and b (m, d)."""
        eye = np.eye(self.d)
        L = psd_cholesky(unpack(outer, self.d) + self.ridge * eye)  # A = L Lᵀ
        root = np.linalg.solve(L, eye)  # L⁻¹: A⁻¹ = rootᵀ root is then positive semi-definite by construction
        return np.vecmat(np.matvec(root, b), root), root.mT @ root
