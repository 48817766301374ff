"""Items whose vector points where a vector of the context points: the client's own embeddings of items and users.

The score is the cosine of the angle between the two. The search is exact: it looks at every vector, so its time grows
with the catalogue. Items without a vector are not found, nor those whose vector has another size than most; nor is
anything for a context without one.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, ClassVar, Self

import numpy as np

from service.funnel import SourceSetting
from service.represent.json_paths import is_vector, value_at
from service.represent.misfits import Misfits, Reason
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
        sizes = Counter(len(value) for value in values if isinstance(value, list) and is_vector(value))
        size = sizes.most_common(1)[0][0] if sizes else 0
        fits = [row for row, value in enumerate(values) if _misfit(value, size) is None]
        vectors = np.array([values[row] for row in fits], dtype=np.float64).reshape(len(fits), size)
        unit, kept = _unit(vectors)
        return cls(setting.context_field, np.array(fits, dtype=np.intp)[kept], unit[kept].astype(np.float32))

    def find(self, query: Query, most: int, misfits: Misfits) -> Found:
        value = value_at(query.context, self._field)
        size = self._vectors.shape[1]
        if value is None or not len(self._rows):
            return NOTHING
        if (reason := _misfit(value, size)) is not None:
            misfits.add("context", self._field, reason)
            return NOTHING
        [unit], [points] = _unit(np.array([value], dtype=np.float64))
        if not points:
            return NOTHING
        cosines = self._vectors @ unit.astype(np.float32)  # (m,)
        best = np.argpartition(-cosines, most - 1)[:most] if most < len(cosines) else np.arange(len(cosines))
        best = best[np.lexsort((best, -cosines[best]))]
        return Found(self._rows[best], cosines[best].astype(np.float64))


def _misfit(value: Any, size: int) -> Reason | None:
    """Return why a value is no vector of this size; None if it is one."""
    if not isinstance(value, list) or not is_vector(value):
        return "wrong_type"
    if len(value) != size:
        return "wrong_size"
    return None if all(abs(number) <= 1e150 for number in value) else "not_finite"  # squares are to be finite


def _unit(vectors: Array) -> tuple[Array, Array]:
    """Return vectors (m, size) at length 1, and which of them point anywhere (m,)."""
    lengths = np.sqrt((vectors * vectors).sum(axis=1))
    return vectors / np.where(lengths > 0, lengths, 1.0)[:, None], lengths > 0
