"""The loop's items at one version, encoded once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from service.decide.features import Encoder, ItemBlock

Features = Mapping[str, Any]


@dataclass(frozen=True)
class Catalogue:
    """Immutable; rows of `block` are in the order of `ids`, which is sorted, so that a replay sees the same rows."""

    version: int
    ids: tuple[str, ...]
    index: Mapping[str, int]
    features: Mapping[str, Features]
    block: ItemBlock

    @classmethod
    def of(cls, version: int, features: Mapping[str, Features], encoder: Encoder) -> Catalogue:
        """Raises InvalidRequest when an item does not fit the schema."""
        ids = tuple(features)
        block = encoder.items(list(features.values()), where="items")
        return cls(version, ids, {item: row for row, item in enumerate(ids)}, features, block)

    def eligible(
        self, candidates: Sequence[tuple[str, Features | None]] | None, exclude: Sequence[str], encoder: Encoder
    ) -> tuple[Sequence[str], ItemBlock]:
        """The n candidates of one request: their ids, and their item columns.

        A candidate with features of its own is used with these; one without has the catalogue's, or none.
        """
        out = set(exclude)
        if candidates is None:
            if not out:
                return self.ids, self.block
            rows = [row for row, item in enumerate(self.ids) if item not in out]
            return [self.ids[row] for row in rows], self.block.take(rows)
        places = [place for place, (item, _) in enumerate(candidates) if item not in out]
        left = [candidates[place] for place in places]
        known = [self.index.get(item) for item, features in left if features is None]
        if len(known) == len(left) and None not in known:
            return [item for item, _ in left], self.block.take([row for row in known if row is not None])
        given = [self.features.get(item, {}) if features is None else features for item, features in left]
        return [item for item, _ in left], encoder.items(given, where="candidates", at=places)
