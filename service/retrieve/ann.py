"""Items whose vector points where a vector of the context points: the client's own embeddings of items and users.

The score is the cosine of the angle between the two. A large catalogue is searched by an inverted file, which may miss
some (`inverted.py`). Items without a vector are not found, nor those whose vector has another size than most; nor is
anything for a context without one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Self

import numpy as np

from service.funnel import SourceSetting
from service.represent.json_paths import is_vector, number_of, value_at
from service.represent.misfits import Misfits
from service.retrieve.nearest import Nearest
from service.retrieve.source import NOTHING, Array, Found, Items, Query


class Ann:
    """Holds the vectors of the items, of length 1. After a change of the catalogue only what changed is read."""

    learned: ClassVar[bool] = False

    def __init__(self, context_field: str, sizes: Array, nearest: Nearest) -> None:
        self._field, self._nearest = context_field, nearest
        self._sizes = sizes  # (N,) of each item's vector; 0: it has none

    @classmethod
    def of(cls, setting: SourceSetting, items: Items, former: Self | None = None) -> Self:
        assert setting.item_field is not None
        assert setting.context_field is not None
        before = None if former is None else items.before
        values: dict[int, Sequence[float]] = {}
        sizes = np.zeros(len(items), dtype=np.intp)
        if former is not None and before is not None:
            sizes[before >= 0] = former._sizes[before[before >= 0]]
        for row in range(len(items)) if before is None else np.flatnonzero(before < 0).tolist():
            value = value_at(items.features[items.ids[row]], setting.item_field)
            if isinstance(value, list) and is_vector(value):
                values[row], sizes[row] = value, len(value)
        size = int(np.bincount(sizes[sizes > 0], minlength=1).argmax())
        if former is not None and before is not None and size != former._nearest.size:
            return cls.of(setting, items)  # most vectors have another size now
        new = [row for row, value in values.items() if len(value) == size]
        unit, points = _unit([values[row] for row in new], size)
        rows, vectors = np.array(new, dtype=np.intp)[points], unit[points].astype(np.float32)
        if former is not None and before is not None:
            nearest = former._nearest.moved(before, rows, vectors)
        else:
            nearest = Nearest.of(len(items), rows, vectors)
        return cls(setting.context_field, sizes, nearest)

    def among(self, mask: Array) -> Ann:
        return Ann(self._field, self._sizes, self._nearest.among(mask))

    def find(self, query: Query, most: int, misfits: Misfits) -> Found:
        value = value_at(query.context, self._field)
        if value is None or not len(self._nearest):
            return NOTHING
        if not isinstance(value, list) or not is_vector(value):
            misfits.add("context", self._field, "wrong_type")
            return NOTHING
        if len(value) != self._nearest.size:
            misfits.add("context", self._field, "wrong_size")
            return NOTHING
        [unit], [points] = _unit([value], self._nearest.size)
        return self._nearest.search(unit.astype(np.float32), most) if points else NOTHING


def _unit(values: Sequence[Sequence[float]], size: int) -> tuple[Array, Array]:
    """Return m vectors at length 1, (m, size) float64, and which of them point anywhere, (m,)."""
    try:
        vectors = np.array(values, dtype=np.float64).reshape(len(values), size)
    except OverflowError:  # an integer beyond the floats
        vectors = np.array([[number_of(number) or 0.0 for number in one] for one in values]).reshape(len(values), size)
    vectors /= np.maximum(np.abs(vectors).max(axis=1, initial=0.0, keepdims=True), np.finfo(np.float64).tiny)
    lengths = np.sqrt((vectors * vectors).sum(axis=1))  # between 1 and √size, or 0
    return vectors / np.maximum(lengths, 1.0)[:, None], lengths > 0
