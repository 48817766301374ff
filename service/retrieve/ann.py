"""Items whose vector points where a vector of the context points: the client's own embeddings of items and users.

The score is the cosine of the angle between the two. The search is exact: it looks at every vector, so its time grows
with the catalogue. Items without a vector are not found, nor those whose vector has another size than most; nor is
anything for a context without one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import ClassVar, Self

import numpy as np

from service.funnel import SourceSetting
from service.represent.json_paths import is_vector, number_of, value_at
from service.represent.misfits import Misfits
from service.retrieve.source import NOTHING, Array, Found, Items, Query


class Ann:
    """Holds the vectors of the items, of length 1."""

    learned: ClassVar[bool] = False

    def __init__(self, context_field: str, rows: Array, vectors: Array) -> None:
        self._field, self._rows = context_field, rows
        self._vectors = vectors  # (m, size) float32

    @classmethod
    def of(cls, setting: SourceSetting, items: Items) -> Self:
        assert setting.item_field is not None
        assert setting.context_field is not None
        values = [value_at(one, setting.item_field) for one in items.features]
        rows = [row for row, value in enumerate(values) if isinstance(value, list) and is_vector(value)]
        sizes = Counter(len(values[row]) for row in rows)
        size = sizes.most_common(1)[0][0] if sizes else 0
        rows = [row for row in rows if len(values[row]) == size]
        unit, points = _unit([values[row] for row in rows], size)
        return cls(setting.context_field, np.array(rows, dtype=np.intp)[points], unit[points].astype(np.float32))

    def find(self, query: Query, most: int, misfits: Misfits) -> Found:
        value = value_at(query.context, self._field)
        size = self._vectors.shape[1]
        if value is None or not len(self._rows):
            return NOTHING
        if not isinstance(value, list) or not is_vector(value):
            misfits.add("context", self._field, "wrong_type")
            return NOTHING
        if len(value) != size:
            misfits.add("context", self._field, "wrong_size")
            return NOTHING
        [unit], [points] = _unit([value], size)
        if not points:
            return NOTHING
        cosines = self._vectors @ unit.astype(np.float32)  # (m,)
        best = np.argpartition(-cosines, most - 1)[:most] if most < len(cosines) else np.arange(len(cosines))
        best = best[np.lexsort((best, -cosines[best]))]
        return Found(self._rows[best], cosines[best].astype(np.float64))


def _unit(values: Sequence[Sequence[float]], size: int) -> tuple[Array, Array]:
    """Return m vectors at length 1, (m, size) float64, and which of them point anywhere, (m,)."""
    try:
        vectors = np.array(values, dtype=np.float64).reshape(len(values), size)
    except OverflowError:  # an integer beyond the floats
        vectors = np.array([[number_of(number) or 0.0 for number in one] for one in values]).reshape(len(values), size)
    vectors /= np.maximum(np.abs(vectors).max(axis=1, initial=0.0, keepdims=True), np.finfo(np.float64).tiny)
    lengths = np.sqrt((vectors * vectors).sum(axis=1))  # between 1 and √size, or 0
    return vectors / np.maximum(lengths, 1.0)[:, None], lengths > 0
