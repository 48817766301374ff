"""Sketches of fixed size: quantiles, distinct values, frequent levels, a fair sample of ids.

Each is a deterministic function of the values that it was given, in their order, wherever a state was saved between
them. So a profile that goes on from its checkpoint is the one that was never stopped, bit for bit.
"""

from __future__ import annotations

import heapq
from base64 import b64decode, b64encode
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from typing import Any, Generic, TypeVar

from datasketches import cpc_sketch, tdigest_double

WAITING = 64  # numbers that a digest takes at once
LARGEST = 1e300  # numbers beyond are cut, so that differences stay finite


class Quantiles:
    """A t-digest (Dunning 2021, doi:10.1016/j.simpa.2020.100049), compressed after every 64 numbers; about 3 kB."""

    def __init__(self) -> None:
        self._digest: bytes | None = None
        self._waiting: list[float] = []

    def add(self, number: float) -> None:
        """Add a finite number."""
        self._waiting.append(min(max(number, -LARGEST), LARGEST))
        if len(self._waiting) == WAITING:
            self._digest = self._merged().serialize()
            self._waiting.clear()

    def _merged(self) -> Any:
        digest = tdigest_double(100) if self._digest is None else tdigest_double.deserialize(self._digest)
        for number in self._waiting:
            digest.update(number)
        return digest

    def at(self, shares: Iterable[float]) -> list[float]:
        """Return the quantiles at `shares`, in [0, 1]; none where there is no number."""
        if self._digest is None:
            ordered = sorted(self._waiting)
            return [ordered[min(int(share * len(ordered)), len(ordered) - 1)] for share in shares] if ordered else []
        digest = self._merged()
        return [float(digest.get_quantile(share)) for share in shares]

    def state(self) -> Any:
        """Return all that it takes to go on, as JSON."""
        return [None if self._digest is None else b64encode(self._digest).decode(), self._waiting.copy()]

    @classmethod
    def of(cls, state: Any) -> Quantiles:
        """Go on from `state`."""
        found = cls()
        digest, found._waiting = state
        found._digest = None if digest is None else b64decode(digest)
        return found


class Distinct:
    """A CPC sketch (Lang 2017, arXiv:1708.06839) of 2^10 rows: within 2 % in two of three cases; at most 1 kB."""

    def __init__(self) -> None:
        self._sketch = cpc_sketch(10)

    def add(self, text: str) -> None:
        """Add a value by its text."""
        try:
            self._sketch.update(text)
        except (TypeError, ValueError, UnicodeError, RuntimeError):  # a lone surrogate, which no UTF-8 has
            self._sketch.update(text.encode(errors="replace").decode())

    def count(self) -> int:
        """Return about how many different values there were."""
        return round(float(self._sketch.get_estimate()))

    def state(self) -> Any:
        """Return all that it takes to go on, as JSON."""
        return b64encode(self._sketch.serialize()).decode()

    @classmethod
    def of(cls, state: Any) -> Distinct:
        """Go on from `state`."""
        found = cls()
        found._sketch = cpc_sketch.deserialize(b64decode(state))
        return found


class Levels:
    """Counts of the most frequent texts, by the algorithm of Misra and Gries (1982): 128 texts, 8 kB of text at most.

    Attributes:
        full: a text was left out or dropped, so the counts are lower bounds: too low by at most `error`.
        next: the serial number that the next new text gets. Serials rise, so a text that is new has a larger one than
            all before it.
    """

    MOST, MOST_TEXT = 128, 8192

    def __init__(self) -> None:
        self._counts: dict[str, list[int]] = {}  # text → [count, serial]
        self._text = 0
        self.full = False
        self.error = 0
        self.next = 1

    def __len__(self) -> int:
        return len(self._counts)

    def add(self, text: str) -> tuple[int, bool]:
        """Count a text; return its serial, and whether it is a new one as far as this knows."""
        found = self._counts.get(text)
        if found is not None:
            found[0] += 1
            return found[1], False
        serial = self.next
        self.next += 1
        if len(self._counts) < self.MOST and self._text + len(text) <= self.MOST_TEXT:
            self._counts[text] = [1, serial]
            self._text += len(text)
        else:
            self.full = True
            self.error += 1
            for entry in self._counts.values():
                entry[0] -= 1
            if any(entry[0] == 0 for entry in self._counts.values()):
                self._counts = {text: entry for text, entry in self._counts.items() if entry[0]}
                self._text = sum(map(len, self._counts))
        return serial, True

    def most_frequent(self, most: int, *, at_least: float = 1) -> list[tuple[str, int]]:
        """Return (text, count), the most frequent first, of those counted `at_least` so often."""
        ordered = sorted(((text, entry[0]) for text, entry in self._counts.items()), key=lambda pair: -pair[1])
        return [(text, count) for text, count in ordered[:most] if count >= at_least]

    def texts(self) -> dict[int, str]:
        """Return serial → text."""
        return {entry[1]: text for text, entry in self._counts.items()}

    def state(self) -> Any:
        """Return all that it takes to go on, as JSON."""
        return [[[text, *entry] for text, entry in self._counts.items()], self.full, self.error, self.next]

    @classmethod
    def of(cls, state: Any) -> Levels:
        """Go on from `state`."""
        found = cls()
        counts, found.full, found.error, found.next = state
        found._counts = {text: [count, serial] for text, count, serial in counts}
        found._text = sum(map(len, found._counts))
        return found


T = TypeVar("T")


class Sample(Generic[T]):
    """A fair sample of ids: those with the smallest hashes, each with what was noted of it since it was first seen.

    An id that is in the sample has been in it from its first sight on, so its notes are whole.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self.notes: dict[str, T] = {}
        self._heap: list[tuple[int, str]] = []  # (−hash, id)

    def get(self, key: str) -> T | None:
        """Return what is noted of an id; None if it is not in the sample."""
        return self.notes.get(key)

    def admit(self, key: str, note: T) -> bool:
        """Take in an id that is not in the sample, if its hash says so; return whether it did."""
        hashed = hash_of(key)
        if len(self._heap) == self._most:
            if -self._heap[0][0] <= hashed:
                return False
            self.notes.pop(heapq.heappop(self._heap)[1])
        heapq.heappush(self._heap, (-hashed, key))
        self.notes[key] = note
        return True

    def size(self) -> int:
        """Estimate how many different ids there were."""
        if len(self._heap) < self._most:
            return len(self._heap)
        return round((self._most - 1) / (-self._heap[0][0] / 2**64))

    @property
    def whole(self) -> bool:
        """Whether every id is in the sample."""
        return len(self._heap) < self._most

    def state(self) -> Any:
        """Return all that it takes to go on, as JSON."""
        return list(self.notes.items())

    @classmethod
    def of(cls, most: int, state: Sequence[tuple[str, T]]) -> Sample[T]:
        """Go on from `state`."""
        found = cls(most)
        found.notes = {key: note for key, note in state}
        found._heap = sorted((-hash_of(key), key) for key in found.notes)
        return found


def hash_of(text: str) -> int:
    """Return 64 bits of a text, the same everywhere."""
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")
