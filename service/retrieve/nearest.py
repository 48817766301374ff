"""Rows of a catalogue by their vectors: found by an inverted file, and kept current while the catalogue changes.

The file is made of the vectors that were there when it was made. Those that came since are looked at one by one, so an
item is found at once; those that are gone are left out. When they are many, another file is made.

Letters: **N** items, **m** of them with a vector.
"""

from __future__ import annotations

import numpy as np

from service.retrieve.inverted import Inverted
from service.retrieve.source import NOTHING, Array, Found

MOST_CHANGED = 0.05  # share of the file that may be gone, or lie outside, before another is made
FEW_CHANGED = 1000  # so many are not worth another file
MOST_GATHERED = 5000  # vectors that are copied for a filter: 1.3 MB of 64 numbers each


class Nearest:
    """m vectors of length 1. Immutable.

    Args:
        n: N.
        file: of vectors.
        rows: (len(file),) in which row of the catalogue each of its places stands now; -1: gone.
        new_rows, new: (r,) and (r, size) float32, the vectors that are not in the file.
    """

    def __init__(self, n: int, file: Inverted, rows: Array, new_rows: Array, new: Array) -> None:
        self._n, self._file, self._rows, self._new_rows, self._new = n, file, rows, new_rows, new
        self._gone = int((rows < 0).sum())

    @classmethod
    def of(cls, n: int, rows: Array, vectors: Array) -> Nearest:
        """Index vectors (m, size) float32 of length 1, which stand in these of N = `n` rows (m,), ascending."""
        return cls(n, Inverted.of(vectors), rows, rows[:0], vectors[:0])

    def moved(self, before: Array, new_rows: Array, new: Array) -> Nearest:
        """Return the index of a changed catalogue.

        Args:
            before: (N,) in which row each item stood, -1 where it is new or has another vector.
            new_rows, new: of the items that are new or have another vector, if they have one.
        """
        now = np.full(self._n, -1)
        now[before[before >= 0]] = np.flatnonzero(before >= 0)
        rows = np.where(self._rows >= 0, now[self._rows], -1)
        stay = now[self._new_rows]
        outside = np.concatenate([stay[stay >= 0], new_rows]), np.concatenate([self._new[stay >= 0], new])
        moved = Nearest(len(before), self._file, rows, *outside)
        changed = moved._gone + len(moved._new)
        return moved._afresh() if changed > max(FEW_CHANGED, MOST_CHANGED * len(self._file)) else moved

    def among(self, mask: Array) -> Nearest:
        """Return the index of those items alone that a mask, (N,) bool, has; where these are many, this one.

        Whoever asks leaves out what the mask lacks.
        """
        rows, vectors = self._current()
        few = np.flatnonzero(mask[rows])
        return self if len(few) > MOST_GATHERED else Nearest.of(self._n, rows[few], vectors[few])

    @property
    def size(self) -> int:
        """Numbers of a vector."""
        return int(self._new.shape[1])

    def __len__(self) -> int:
        return len(self._rows) - self._gone + len(self._new)

    def search(self, unit: Array, most: int) -> Found:
        """Find at most so many of the rows whose vectors lie nearest, by their cosine.

        Args:
            unit: (size,) float32 of length 1.
        """
        if not len(self):
            return NOTHING
        rows, cosines = self._in_file(unit, most)
        if len(self._new):
            rows = np.concatenate([rows, self._new_rows])
            cosines = np.concatenate([cosines, self._new @ unit])
        best = np.lexsort((rows, -cosines))[:most]
        return Found(rows[best], cosines[best].astype(np.float64))

    def _in_file(self, unit: Array, most: int) -> tuple[Array, Array]:
        ask = most + min(self._gone, most)
        while True:
            places, cosines = self._file.search(unit, ask)
            rows = self._rows[places]
            if not self._gone:
                return rows, cosines
            there = rows >= 0
            if there.sum() >= most or ask >= most + self._gone:
                return rows[there], cosines[there]
            ask = most + self._gone  # nearly all that was found is gone

    def _afresh(self) -> Nearest:
        return Nearest.of(self._n, *self._current())

    def _current(self) -> tuple[Array, Array]:
        """Return the rows of the catalogue that have a vector, ascending, and these vectors."""
        vectors = np.empty_like(self._file.vectors)
        vectors[self._file.places] = self._file.vectors
        there = self._rows >= 0
        rows = np.concatenate([self._rows[there], self._new_rows])
        order = np.argsort(rows)
        return rows[order], np.concatenate([vectors[there], self._new])[order]
