"""Items that friends of the user took lately, those that weigh most first (`represent/graph.py`).

The decision's context names them: at most ten, as of the version of its fields. The score is 1 / rank. An item that the
catalogue lacks is not found, nor is anything for who knows nobody.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import ClassVar, Self

import numpy as np

from service.funnel import SourceSetting
from service.represent.graph import GRAPH
from service.represent.misfits import Misfits
from service.retrieve.source import Found, Items, Query


class Friends:
    """Knows where each item stands."""

    learned: ClassVar[bool] = False

    def __init__(self, ids: Sequence[str]) -> None:
        self._ids = ids  # (N,) in order

    @classmethod
    def of(cls, setting: SourceSetting, items: Items, former: Self | None = None) -> Self:
        return cls(items.ids)

    def find(self, query: Query, most: int, misfits: Misfits) -> Found:
        taken = query.context.get(GRAPH, {}).get("items", [])
        places = [bisect_left(self._ids, item) for item in taken]
        n = len(self._ids)
        rows = [at for at, item in zip(places, taken, strict=True) if at < n and self._ids[at] == item][:most]
        return Found(np.array(rows, dtype=np.intp), 1.0 / np.arange(1, 1 + len(rows)))
