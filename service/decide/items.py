"""Items, encoded once for each encoder that serves: what a catalogue is made of."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import overload

import numpy as np
import orjson

from service.decide.stage import Traits
from service.policies import Ids
from service.records import Features
from service.represent.misfits import Misfits
from service.represent.stored import AnyEncoder, Block

AT_ONCE = 10_000  # items whose features are read at the same time to be encoded


class Written(Sequence[Features]):
    """The features of n items as JSON, which takes a third of the memory. Each is read when it is asked for."""

    def __init__(self, texts: Sequence[bytes]) -> None:
        self.texts = texts

    @overload
    def __getitem__(self, row: int) -> Features: ...
    @overload
    def __getitem__(self, row: slice) -> Sequence[Features]: ...
    def __getitem__(self, row: int | slice) -> Features | Sequence[Features]:
        if isinstance(row, slice):
            return [orjson.loads(text) for text in self.texts[row]]
        features: Features = orjson.loads(self.texts[row])
        return features

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True, eq=False)
class Items:
    """n items, sorted by id. Immutable.

    Attributes:
        ids: (n,).
        written: (n,) their features.
        blocks: version of an encoder -> the n items as it encodes them.
        index: id -> its row.
        known: the ids, with what scorers found for them.
        traits: what rules asked of the items.
    """

    ids: tuple[str, ...]
    written: Written
    blocks: Mapping[str, Block]
    index: Mapping[str, int] = field(repr=False)
    known: Ids = field(repr=False)
    traits: Traits = field(repr=False)

    @classmethod
    def of(cls, items: Mapping[str, bytes], encoders: Iterable[AnyEncoder], misfits: Misfits | None = None) -> Items:
        """Encode items.

        Args:
            items: id -> features as JSON, sorted by id.
            misfits: counts the values that an encoder cannot use.
        """
        ids, written = tuple(items), Written(list(items.values()))
        blocks = {encoder.version: _encode(encoder, ids, written, misfits) for encoder in encoders}
        return cls(ids, written, blocks, _index(ids), Ids(ids), Traits(written))

    def __len__(self) -> int:
        return len(self.ids)

    def encoded(self, encoders: Iterable[AnyEncoder]) -> Items:
        """Return these items as encoded for these encoders, and for no others."""
        wanted = {encoder.version: encoder for encoder in encoders}
        if wanted.keys() == self.blocks.keys():
            return self
        blocks = {
            version: self.blocks[version] if version in self.blocks else _encode(encoder, self.ids, self.written)
            for version, encoder in wanted.items()
        }
        return replace(self, blocks=blocks)

    def merged(self, put: Items, gone: Collection[str]) -> Items:
        """Return these items with those of `put` added, or in the place of their predecessors, and without `gone`.

        What is known of the items that stay is kept: their rows are copied, and they are not encoded again.

        Args:
            put: encoded for the same encoders.
        """
        n, m = len(self), len(put)
        found = [self.index.get(item) for item in put.ids]
        out = [row for row in (*found, *map(self.index.get, gone)) if row is not None]
        same = len(out) == m and None not in found  # the ids: each item of `put` takes the place of another
        # Rows of these items, followed by those of `put`, in the order of the ids.
        order = np.arange(n)
        if same:
            order[out] = np.arange(n, n + m)
        else:
            order = np.insert(order, [bisect_left(self.ids, item) for item in put.ids], np.arange(n, n + m))
            stays = np.ones(n + m, dtype=np.bool_)
            stays[out] = False
            order = order[stays[order]]
        at = order.tolist()
        texts = [*self.written.texts, *put.written.texts]
        written = Written([texts[row] for row in at])
        blocks = {
            version: block.concat([block, put.blocks[version]]).take(order) for version, block in self.blocks.items()
        }
        traits = self.traits.merged(put.traits, order, written)
        if same:
            return Items(self.ids, written, blocks, self.index, self.known, traits)
        ids = (*self.ids, *put.ids)
        ids = tuple([ids[row] for row in at])
        return Items(ids, written, blocks, _index(ids), self.known.merged(put.ids, order), traits)


def _index(ids: Sequence[str]) -> dict[str, int]:
    return {item: row for row, item in enumerate(ids)}


def _encode(encoder: AnyEncoder, ids: Sequence[str], written: Written, misfits: Misfits | None = None) -> Block:
    """Encode items some at a time: as JSON objects they take three times the memory."""
    starts = range(0, max(len(ids), 1), AT_ONCE)
    some = (slice(start, start + AT_ONCE) for start in starts)
    parts: list[Block] = [encoder.items(written[one], ids[one], misfits=misfits) for one in some]
    return parts[0] if len(parts) == 1 else parts[0].concat(parts)
