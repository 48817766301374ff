"""Any items, each as likely as any other: every item can be a candidate, so other policies can be judged on it.

The score is the probability that this source finds the item.
"""

from __future__ import annotations

from typing import ClassVar, Self

import numpy as np

from service.funnel import SourceSetting
from service.represent.misfits import Misfits
from service.retrieve.source import Array, Found, Items, Query, drawn


class Random:
    """Knows how many items there are, or which ones."""

    learned: ClassVar[bool] = False

    def __init__(self, n: int, rows: Array | None = None) -> None:
        self._n, self._rows = n, rows  # (n,); None: all

    @classmethod
    def of(cls, setting: SourceSetting, items: Items, former: Self | None = None) -> Self:
        return cls(len(items))

    def among(self, mask: Array) -> Random:
        rows = np.flatnonzero(mask)
        return Random(len(rows), rows)

    def find(self, query: Query, most: int, misfits: Misfits) -> Found:
        rows = drawn(query.seed, "random", most, self._n)
        if self._rows is not None:
            rows = self._rows[rows]
        return Found(rows, np.full(len(rows), len(rows) / max(1, self._n)))
