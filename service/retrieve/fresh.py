"""Items that were shown fewer than 20 times, so that each gets a fair first look.

Half of the quota goes to the newest. The other half is drawn from all the others, so that none waits behind one that
the policy never picks. They come in turn. The score is how often the item was shown.

An item is as new as the version of the catalogue in which it came; of equally new ones, the less shown comes first.
"""

from __future__ import annotations

from typing import ClassVar, Self

import numpy as np

from service.funnel import SourceSetting
from service.represent.misfits import Misfits
from service.retrieve.source import Array, Found, Items, Query, drawn

LOOKS = 20


class Fresh:
    """Holds the items that were shown few times, the newest first."""

    learned: ClassVar[bool] = True

    def __init__(self, rows: Array, looks: Array) -> None:
        self._rows, self._looks = rows, looks

    @classmethod
    def of(cls, setting: SourceSetting, items: Items, former: Self | None = None) -> Self:
        rows = np.flatnonzero(items.standing.looks < LOOKS)
        born, looks = items.standing.born[rows], items.standing.looks[rows]
        line = np.lexsort((rows, looks, -born))
        return cls(rows[line], looks[line].astype(np.float64))

    def among(self, mask: Array) -> Fresh:
        left = mask[self._rows]
        return Fresh(self._rows[left], self._looks[left])

    def find(self, query: Query, most: int, misfits: Misfits) -> Found:
        newest = min(len(self._rows), (most + 1) // 2)
        others = drawn(query.seed, "fresh", most - newest, len(self._rows) - newest)
        in_turn = 2 * len(others)  # the newest are as many, or more
        at = np.empty(newest + len(others), dtype=np.intp)
        at[:in_turn:2], at[1:in_turn:2] = np.arange(len(others)), newest + others
        at[in_turn:] = np.arange(len(others), newest)
        return Found(self._rows[at], self._looks[at])
