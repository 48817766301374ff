"""Items whose vector points where the user's does, by embeddings that are learned from the log (`towers.py`).

The user's vector is made from his id and the context when he asks, and the score is the cosine of the angle between
the two. An item that was never shown has a vector by its features. Nothing is found before there was a training.
"""

from __future__ import annotations

from typing import ClassVar, Self

import numpy as np

from service.funnel import SourceSetting
from service.represent.misfits import Misfits
from service.retrieve.nearest import Nearest
from service.retrieve.source import NOTHING, Array, Found, Items, Query
from service.retrieve.towers import Bags, Towers, bags_of, hashes_of


class Learned:
    """Holds the vectors of the items. After a change of the catalogue only what changed is read."""

    learned: ClassVar[bool] = True

    def __init__(self, towers: Towers | None, ids: Array, bags: Bags, nearest: Nearest | None) -> None:
        self._towers = towers  # None: none were learned yet
        self._ids, self._bags = ids, bags  # of all items; hashes
        self._nearest = nearest

    @classmethod
    def of(cls, setting: SourceSetting, items: Items, former: Self | None = None) -> Self:
        towers = items.towers
        if towers is None:
            return cls(None, np.zeros(0, dtype=np.uint64), bags_of((), "item"), None)
        if former is None or former._nearest is None or items.before is None:
            ids, bags = _read(items, np.arange(len(items)), towers)
            return cls(towers, ids, bags, _indexed(towers, ids, bags))
        stay, new = items.before >= 0, np.flatnonzero(items.before < 0)
        if not len(new) and len(items) == len(former._ids):
            ids, bags = former._ids, former._bags
        else:
            of_new, bags_of_new = _read(items, new, towers)
            ids = np.concatenate([former._ids[items.before[stay]], of_new])
            bags = Bags.concat(former._bags.take(items.before[stay]), bags_of_new)
            order = np.argsort(np.concatenate([np.flatnonzero(stay), new]))
            ids, bags = ids[order], bags.take(order)
        if former._towers is not towers:
            return cls(towers, ids, bags, _indexed(towers, ids, bags))
        if ids is former._ids:
            return cls(towers, ids, bags, former._nearest)
        vectors, points = towers.item.vectors(ids[new], bags.take(new))
        return cls(towers, ids, bags, former._nearest.moved(items.before, new[points], vectors[points]))

    def among(self, mask: Array) -> Learned:
        nearest = None if self._nearest is None else self._nearest.among(mask)
        return Learned(self._towers, self._ids, self._bags, nearest)

    def find(self, query: Query, most: int, misfits: Misfits) -> Found:
        if self._towers is None or self._nearest is None:
            return NOTHING
        vector = self._towers.user_vector(query.user, query.context)
        return NOTHING if vector is None else self._nearest.search(vector, most)


def _read(items: Items, rows: Array, towers: Towers) -> tuple[Array, Bags]:
    """Read the ids and features of the items in these rows."""
    ids = [items.ids[row] for row in rows.tolist()]
    return hashes_of(ids), bags_of((items.features[item] for item in ids), "item", len(towers.item.of_tokens))


def _indexed(towers: Towers, ids: Array, bags: Bags) -> Nearest:
    vectors, points = towers.item.vectors(ids, bags)
    return Nearest.of(len(ids), np.flatnonzero(points), vectors[points])
