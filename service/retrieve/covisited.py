"""Items that other users took before or after the user's own last items (`covisits.py` counts them).

    score = Σ over his last five items, the newest first, of ½^place × share of the pair among the pairs of that item

An item that he took last himself is not found, nor is anything for a user without activity.
"""

from __future__ import annotations

from typing import ClassVar, Self

import numpy as np

from service.funnel import SourceSetting
from service.represent.misfits import Misfits
from service.retrieve.covisits import Covisits
from service.retrieve.source import NOTHING, Array, Found, Items, Query

DECAY = 0.5  # from one of the user's items to the one before


class Covisited:
    """Holds the neighbours of items, as rows of the catalogue."""

    learned: ClassVar[bool] = True

    def __init__(self, covisits: Covisits, rows: Array) -> None:
        self._covisits = covisits
        self._neighbours, self._weights = covisits.arrays()  # (m, 16)
        self._rows = rows  # (m + 1,) of the catalogue, of each item that is counted; -1: it lacks the item, or nobody

    @classmethod
    def of(cls, setting: SourceSetting, items: Items, former: Self | None = None) -> Self:
        covisits = Covisits() if items.covisits is None else items.covisits
        rows = np.full(len(covisits) + 1, -1, dtype=np.intp)
        rows[covisits.find(items.ids)] = np.arange(len(items))
        rows[-1] = -1  # NOBODY is the last
        return cls(covisits, rows)

    def find(self, query: Query, most: int, misfits: Misfits) -> Found:
        his = [row for row in self._covisits.find(query.last).tolist() if row < len(self._weights)]
        scores: dict[int, float] = {}
        for place, row in enumerate(his):
            if total := float(self._weights[row].sum()):
                shares = (DECAY**place / total * self._weights[row]).tolist()
                for near, share in zip(self._rows[self._neighbours[row]].tolist(), shares, strict=True):
                    scores[near] = scores.get(near, 0.0) + share
        for row in (-1, *self._rows[his].tolist()):
            scores.pop(row, None)
        if not scores:
            return NOTHING
        best = sorted(scores, key=lambda row: (-scores[row], row))[:most]
        return Found(np.array(best, dtype=np.intp), np.array([scores[row] for row in best]))
