"""Items that were rewarded most for each time they were shown, by decayed counts.

    score = (reward + 10 μ) / (shown + 10)

μ is the mean reward of all impressions. So ten impressions of an average item stand behind every item, and one that was
shown once and taken is not the best of all. An item that was never shown is not found.
"""

from __future__ import annotations

from typing import ClassVar, Self

import numpy as np

from service.funnel import SourceSetting
from service.represent.misfits import Misfits
from service.retrieve.source import Array, Found, Items, Query

PRIOR = 10.0  # impressions


class Popular:
    """Holds the items that were shown, the best first."""

    learned: ClassVar[bool] = True

    def __init__(self, rows: Array, scores: Array) -> None:
        self._rows, self._scores = rows, scores

    @classmethod
    def of(cls, setting: SourceSetting, items: Items, former: Self | None = None) -> Self:
        shown, reward = items.standing.shown, items.standing.reward
        mean = reward.sum() / max(shown.sum(), np.finfo(np.float64).tiny)
        rows = np.flatnonzero(shown)
        scores = (reward[rows] + PRIOR * mean) / (shown[rows] + PRIOR)
        best = np.argsort(-scores, kind="stable")
        return cls(rows[best], scores[best])

    def find(self, query: Query, most: int, misfits: Misfits) -> Found:
        return Found(self._rows[:most], self._scores[:most])
