"""Items that clients send with their features again and again are encoded once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from marshal import dumps
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

from numpy.typing import NDArray

from service.represent.misfits import Misfits

Packed: TypeAlias = tuple[bytes, ...]  # one item's arrays

LIMIT = 8 << 20  # bytes of one encoder's cache
OVERHEAD = 300  # bytes of an entry beside its arrays and its key, about


class Packable(Protocol):
    """Encoded items."""

    def packed(self) -> list[Packed]:
        """Copy each item's arrays."""


B = TypeVar("B", bound=Packable)


def rows_of(array: NDArray[Any]) -> list[bytes]:
    """Copy each row of an array (n, ...)."""
    whole, n = array.tobytes(), len(array)
    width = len(whole) // max(n, 1)
    return [whole[at * width : (at + 1) * width] for at in range(n)]


class ItemCache(Generic[B]):
    """Keeps the arrays of items, found by their ids and features, byte for byte.

    An item's arrays are a function of these, so a cache changes nothing but the time. What misfits were counted when
    an item was encoded is counted again whenever it is found. Where the limit is reached, the oldest make room.

    Args:
        encode: encodes items; their arrays do not depend on the items beside them.
        join: makes a block of the arrays of its items.
        limit: bytes.

    Attributes:
        hits, misses: items that were found, and that were not.
    """

    def __init__(
        self,
        encode: Callable[[Sequence[Mapping[str, Any]], Sequence[str], Misfits], B],
        join: Callable[[Sequence[Packed]], B],
        limit: int = LIMIT,
    ) -> None:
        self._encode, self._join, self._left = encode, join, limit
        self._kept: OrderedDict[bytes, tuple[Packed, Misfits | None]] = OrderedDict()
        self.hits = self.misses = 0

    def items(self, features: Sequence[Mapping[str, Any]], ids: Sequence[str], misfits: Misfits) -> B:
        """Encode n items, or find them.

        Args:
            features: a JSON object per item.
            ids: (n,).
            misfits: counts the values that could not be used as they are.
        """
        # Version 2 writes equal values alike and different ones differently: 1, 1.0, true and "1" are four.
        keys = [dumps(one, 2) for one in zip(ids, features, strict=True)]  # type: ignore[arg-type]  # it is JSON
        kept = self._kept
        entries = [kept.get(key) for key in keys]
        missing = [at for at, entry in enumerate(entries) if entry is None]
        self.hits += len(keys) - len(missing)
        self.misses += len(missing)
        if missing:
            for at, entry in zip(missing, self._made([(ids[at], features[at]) for at in missing]), strict=True):
                entries[at] = entry
                self._keep(keys[at], entry)
        found = [entry for entry in entries if entry is not None]
        for _, counted in found:
            if counted is not None:
                misfits.merge(counted)
        return self._join([packed for packed, _ in found])

    def _made(self, items: Sequence[tuple[str, Mapping[str, Any]]]) -> list[tuple[Packed, Misfits | None]]:
        counted = Misfits()
        block = self._encode([features for _, features in items], [item for item, _ in items], counted)
        if not counted:
            return [(packed, None) for packed in block.packed()]
        if len(items) == 1:
            return [(block.packed()[0], counted)]
        return [self._made([one])[0] for one in items]  # to see whose misfits they are

    def _keep(self, key: bytes, entry: tuple[Packed, Misfits | None]) -> None:
        if key in self._kept:  # the same item stands twice in a request
            return
        self._left -= _size(key, entry[0])
        self._kept[key] = entry
        while self._left < 0:
            oldest, (packed, _) = self._kept.popitem(last=False)
            self._left += _size(oldest, packed)

    def __len__(self) -> int:
        return len(self._kept)


def _size(key: bytes, packed: Packed) -> int:
    return OVERHEAD + len(key) + sum(map(len, packed))
