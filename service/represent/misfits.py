"""Counts of the values that an encoder could not use as they were sent.

A value never refuses a request. The encoder leaves it out, shortens it or clips it, and counts it here, so that a
person can see which field needs a schema or a repair.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

Side = Literal["context", "item"]
Reason = Literal[
    "overlong",  # a text or a name of more than 256 characters: the first 256 are used
    "too_many_values",  # more than 100 undeclared values in one object: the first 100 are used
    "too_deep",  # an object or a list within 5 others: left out
    "wrong_type",  # a value that its field cannot take: left out
    "not_finite",  # a number beyond the floats: left out
    "unknown_level",  # a value that is none of the levels: the column `<other>` is used
    "wrong_size",  # a vector of another length than declared: left out
    "out_of_range",  # a number outside [min, max]: the nearer end is used
]

MAX_KEYS = 64
MAX_PATH = 100
OTHER = "<other>"


class Misfits:
    """Counts per side, field path and reason. Mutable, and not safe to share between threads.

    A path of more than 100 characters is cut, and lone surrogates in it become question marks, so that it can be
    written as JSON. After 64 different keys, further ones are counted under the path `<other>`, with their own side
    and reason: at most 80 keys in all.
    """

    __slots__ = ("_counts",)

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str, str], int] = {}

    @property
    def counts(self) -> Mapping[tuple[str, str, str], int]:
        """(side, path, reason) → number of values; a read-only view."""
        return MappingProxyType(self._counts)

    def add(self, side: Side, path: str, reason: Reason) -> None:
        """Count one value of the field at `path`: names joined with dots, and the index in a list of numbers."""
        if len(path) > MAX_PATH:
            path = path[: MAX_PATH - 1] + "…"
        self._add((side, path.encode(errors="replace").decode(), reason), 1)

    def merge(self, other: Misfits) -> None:
        """Add all counts of `other`."""
        for key, count in other.counts.items():
            self._add(key, count)

    def _add(self, key: tuple[str, str, str], count: int) -> None:
        if key not in self._counts and len(self._counts) >= MAX_KEYS:
            key = (key[0], OTHER, key[2])
        self._counts[key] = self._counts.get(key, 0) + count

    def __bool__(self) -> bool:
        """True if anything was counted."""
        return bool(self._counts)

    def __repr__(self) -> str:
        return f"Misfits({self._counts})"
