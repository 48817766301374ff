"""Maps item ids to rows, for policies that keep statistics per item."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Protocol, overload
from weakref import WeakKeyDictionary

import numpy as np
import orjson

from service.policies.base import Array


class Finder(Protocol):
    """Finds a row for each id. It must not change any more."""

    def find(self, items: Sequence[str]) -> Array:
        """Return the rows (n,) of n ids."""


class Ids(Sequence[str]):
    """The ids of n items, in order. What a finder finds for them is kept, so that no request looks ids up again.

    Args:
        ids: all ids, or those of `whole`.
        whole, at: the ids that these are a part of, and where they stand there.
    """

    def __init__(self, ids: Sequence[str], whole: Ids | None = None, at: Array | None = None) -> None:
        self._ids, self._whole, self._at = ids, whole, at
        self._found: WeakKeyDictionary[Finder, Array] = WeakKeyDictionary()

    def take(self, at: Array) -> Ids:
        """Select the ids at `at` (n,), in that order."""
        return Ids(self._ids, self, at)

    def rows(self, finder: Finder) -> Array:
        """Return the rows (n,) that a finder has for the ids."""
        if self._whole is not None:
            part: Array = self._whole.rows(finder)[self._at]
            return part
        rows = self._found.get(finder)
        if rows is None:
            rows = self._found[finder] = finder.find(self._ids)
            rows.flags.writeable = False
        return rows

    def within(self, whole: Ids) -> Array | slice | None:
        """Return where these ids stand in `whole`; None if they are neither it nor taken from it."""
        if self is whole:
            return slice(None)
        return self._at if self._whole is whole else None

    @overload
    def __getitem__(self, row: int) -> str: ...
    @overload
    def __getitem__(self, row: slice) -> Sequence[str]: ...
    def __getitem__(self, row: int | slice) -> str | Sequence[str]:
        if isinstance(row, slice):
            return list(self)[row]
        return self._ids[row if self._at is None else self._at[row]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._ids) if self._at is None else (self._ids[at] for at in self._at.tolist())

    def __len__(self) -> int:
        return len(self._ids if self._at is None else self._at)


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
        """Return what `find` finds; for `Ids`, what it found before. For an index that does not change any more."""
        return items.rows(self) if isinstance(items, Ids) else self.find(items)

    def find(self, items: Sequence[str]) -> Array:
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
