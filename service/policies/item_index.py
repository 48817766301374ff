"""Maps item ids to rows, for policies that keep statistics per item."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence

import numpy as np
import orjson

from service.policies.base import Array


class ItemIndex:
    """Maps ids to rows 0, 1, 2, … in order of first appearance. Iterates over the ids in row order.

    Args:
        ids: distinct ids of the first rows.
    """

    def __init__(self, ids: Iterable[str] = ()) -> None:
        self._row = {item: row for row, item in enumerate(ids)}

    def add(self, item: str) -> int:
        """Return the row of an id, a new one if the id is new."""
        return self._row.setdefault(item, len(self._row))

    def get(self, item: str) -> int | None:
        """Return the row of an id, None if the id is unknown."""
        return self._row.get(item)

    def rows(self, items: Sequence[str]) -> Array:
        """Return the rows (n,) of n ids. An unknown id gets `len(self)`, one row past the last."""
        find, unknown = self._row.get, len(self._row)
        return np.array([find(item, unknown) for item in items], dtype=np.intp)

    def forget(self, gone: Collection[str]) -> Array | None:
        """Remove ids. The rows of the others move up and keep their order.

        Returns:
            The rows (m',) that stay, as they were numbered before; None if no id was known.
        """
        drop = set(gone) & self._row.keys()
        if not drop:
            return None
        kept = [row for item, row in self._row.items() if item not in drop]
        self._row = {item: row for row, item in enumerate(item for item in self._row if item not in drop)}
        return np.array(kept, dtype=np.intp)

    def to_array(self) -> Array:
        """Encode the ids in row order as uint8, a JSON list (safetensors has no strings)."""
        return np.frombuffer(orjson.dumps(list(self._row)), dtype=np.uint8).copy()

    @classmethod
    def from_array(cls, array: Array) -> ItemIndex:
        """Decode the result of `to_array`.

        Raises:
            ValueError: the array is not a JSON list of distinct strings.
        """
        ids = orjson.loads(array.tobytes())
        if not isinstance(ids, list) or not all(isinstance(item, str) for item in ids) or len(set(ids)) < len(ids):
            raise ValueError("ids: not a JSON list of distinct strings")
        return cls(ids)

    def __iter__(self) -> Iterator[str]:
        return iter(self._row)

    def __len__(self) -> int:
        return len(self._row)
