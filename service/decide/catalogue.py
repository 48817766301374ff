"""The loop's items at one version, encoded once for each encoder that serves."""

from __future__ import annotations

import heapq
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice

import numpy as np
import orjson
from numpy.typing import NDArray

from service.decide.items import Items
from service.decide.stage import Stage, Traits, passing
from service.policies import Ids
from service.records import Features, Retrieved
from service.represent.misfits import Misfits
from service.represent.stored import AnyEncoder, Block
from service.represent.user_state import ItemFields
from service.rules import Rules


@dataclass(frozen=True, eq=False)
class Catalogue:
    """Immutable. Changes are kept beside the items that they change, so that a change costs what changed.

    Both are put together when that costs no more than was spent on keeping them apart; and for a request that takes all
    items, from then on with every change. Then the rows of a block are in the order of the ids, so that a replay sees
    the same rows.
    """

    version: int
    encoder: str  # version of the loop's encoder
    base: Items
    recent: Items  # put since `base` was made, some in the place of items there
    gone: frozenset[str] = frozenset()  # items of `base` that were deleted since
    copied: int = 0  # items of `recent` and `gone`, summed over the versions since `base` was made
    features: Mapping[str, Features] = field(init=False, repr=False)
    fields: ItemFields = field(init=False, repr=False)  # that states of users hold

    def __post_init__(self) -> None:
        object.__setattr__(self, "features", _FeaturesOf(self.base, self.recent, self.gone))
        object.__setattr__(self, "fields", ItemFields(self.features))

    @classmethod
    def of(
        cls, version: int, features: Mapping[str, Features], encoder: AnyEncoder, misfits: Misfits | None = None
    ) -> Catalogue:
        """Encode items, sorted by id; values that the encoder cannot use are counted in `misfits`."""
        written = {item: orjson.dumps(one) for item, one in features.items()}
        return cls.written(version, written, [encoder], misfits)

    @classmethod
    def written(
        cls, version: int, items: Mapping[str, bytes], encoders: Sequence[AnyEncoder], misfits: Misfits | None = None
    ) -> Catalogue:
        """Encode items, whose features are JSON, for all encoders that serve. The loop's comes first."""
        return cls(version, encoders[0].version, Items.of(items, encoders, misfits), Items.of({}, encoders))

    def is_encoded(self, encoders: Sequence[AnyEncoder]) -> bool:
        """Return whether this catalogue is encoded for these encoders, and for no others. The loop's comes first."""
        versions = [encoder.version for encoder in encoders]
        return self.encoder == versions[0] and self.base.blocks.keys() == set(versions)

    def is_encoded_for(self, encoder: AnyEncoder) -> bool:
        """Return whether this catalogue is encoded for this encoder, among others."""
        return encoder.version in self.base.blocks

    def encoded(self, encoders: Sequence[AnyEncoder]) -> Catalogue:
        """Return this catalogue encoded for these encoders, and for no others. The loop's comes first."""
        if self.is_encoded(encoders):
            return self
        base, recent = self.base.encoded(encoders), self.recent.encoded(encoders)
        return self._kept_whole(replace(self, encoder=encoders[0].version, base=base, recent=recent))

    def changed(self, version: int, changes: Mapping[str, bytes | None], encoders: Sequence[AnyEncoder]) -> Catalogue:
        """Return the catalogue at a later version.

        Args:
            changes: id -> features as JSON, None to delete, of all items that changed since this version.
            encoders: for which this catalogue is encoded.
        """
        put = {item: text for item, text in sorted(changes.items()) if text is not None}
        deleted = changes.keys() - put.keys()
        base, recent = (self.whole, Items.of({}, encoders)) if self._scanned else (self.base, self.recent)
        recent = recent.merged(Items.of(put, encoders), deleted)
        gone = {*(() if self._scanned else self.gone), *(item for item in deleted if item in base.index)} - put.keys()
        copied = self.copied + len(recent) + len(gone)
        if self._scanned or copied > len(base):
            base, recent, gone, copied = base.merged(recent, gone), Items.of({}, encoders), set(), 0
        new = replace(self, version=version, base=base, recent=recent, gone=frozenset(gone), copied=copied)
        return self._kept_whole(new)

    @cached_property
    def whole(self) -> Items:
        """All items in one."""
        return self.base.merged(self.recent, self.gone) if self._is_changed else self.base

    @property
    def _is_changed(self) -> bool:
        return bool(self.recent.ids or self.gone)

    @property
    def _scanned(self) -> bool:
        """Whether a request took all items."""
        return "whole" in vars(self)

    def _kept_whole(self, new: Catalogue) -> Catalogue:
        """Put the items of the next catalogue together, before it serves, if requests take all items."""
        if self._scanned:
            new.whole  # noqa: B018
        return new

    def asked(self, rules: Rules) -> Items:
        """Return all items, with what these rules ask of them found."""
        traits = self.whole.traits
        for condition in (*rules.filter, *rules.boost):
            traits.holding(condition)
        for limit in rules.at_most:
            traits.kinds(limit.field)
        return self.whole

    @property
    def ids(self) -> tuple[str, ...]:
        """All ids, sorted."""
        return self.whole.ids

    @property
    def index(self) -> Mapping[str, int]:
        """The row of each id among all items."""
        return self.whole.index

    @property
    def block(self) -> Block:
        """All items as the loop's encoder encodes them."""
        return self.whole.blocks[self.encoder]

    def page(self, after: str, most: int) -> list[str]:
        """Return the ids that follow `after`, sorted: at most so many."""
        of_base = (
            item for item in _following(self.base, after) if not (item in self.gone or item in self.recent.index)
        )
        return list(islice(heapq.merge(of_base, _following(self.recent, after)), most))

    def shown(self, candidates: Sequence[tuple[str, Features | None]] | None, items: Sequence[str]) -> list[Features]:
        """Return the features with which `items` take part in a request: the candidate's own, else the catalogue's."""
        own = {item: features for item, features in candidates or () if features is not None and item in items}
        return [own[item] if item in own else self.features.get(item, {}) for item in items]

    def eligible(
        self,
        candidates: Sequence[tuple[str, Features | None]] | None,
        exclude: Sequence[str],
        encoder: AnyEncoder,
        misfits: Misfits | None = None,
        retrieved: Retrieved | None = None,
    ) -> tuple[Sequence[str], Block]:
        """Return the n candidates of one request: their ids, and their item columns.

        A candidate with features of its own is used with these; one without has the catalogue's, or none.

        Args:
            retrieved: the items that are candidates where the request names none; None: all.

        Raises:
            KeyError: the catalogue is not encoded for this encoder.
        """
        out = set(exclude)
        if candidates is None and retrieved is not None:
            return self._few(self._left_of(retrieved, out), encoder)
        if candidates is None:
            rows = self._but(out)
            if rows is None:
                return self.whole.known, self.whole.blocks[encoder.version]
            return _at(self.whole, rows, encoder)
        left = [pair for pair in candidates if pair[0] not in out] if out else candidates
        known = [self._row(item) for item, features in left if features is None]
        if len(known) == len(left) and None not in known:
            return self._named([item for item, _ in left], np.array(known, dtype=np.intp), encoder)
        given = [self.features.get(item, {}) if features is None else features for item, features in left]
        items = [item for item, _ in left]
        return items, encoder.sent(given, items, misfits=misfits)

    def eligible_by_rules(
        self,
        candidates: Sequence[tuple[str, Features | None]] | None,
        exclude: Sequence[str],
        rules: Rules,
        encoder: AnyEncoder,
        misfits: Misfits | None = None,
        retrieved: Retrieved | None = None,
    ) -> tuple[Sequence[str], Block, Stage]:
        """Return the candidates of `eligible` that pass the filter, and the stage of the other rules.

        Raises:
            KeyError: the catalogue is not encoded for this encoder.
            NoCandidates: none passes the filter.
        """
        if candidates is None and retrieved is not None:
            traits = self.whole.traits
            rows = passing(rules, traits, self._left_of(retrieved, set(exclude)))
            ids, block = self._few(rows, encoder)
            return ids, block, Stage(rules, traits, rows, ids)
        if candidates is None:
            traits = self.whole.traits
            rows = passing(rules, traits, self._but(set(exclude)))
            ids, block = _at(self.whole, rows, encoder)
            return ids, block, Stage(rules, traits, rows, ids)
        out = set(exclude)
        left = [pair for pair in candidates if pair[0] not in out]
        traits = Traits([self.features.get(item, {}) if own is None else own for item, own in left])
        rows = passing(rules, traits, None)
        given, block = self.eligible([left[row] for row in rows.tolist()], (), encoder, misfits)
        return given, block, Stage(rules, traits, rows, given)

    def _but(self, out: set[str]) -> NDArray[np.intp] | None:
        """Return the rows of all items but these; None: of all."""
        whole = self.whole
        gone = [whole.index[item] for item in out if item in whole.index]
        return np.delete(np.arange(len(whole)), gone) if gone else None

    def _left_of(self, retrieved: Retrieved, out: set[str]) -> NDArray[np.intp]:
        """Return the rows that a funnel found, without these items."""
        ids = self.ids
        return np.array([row for row in retrieved.rows if not out or ids[row] not in out], dtype=np.intp)

    def _few(self, rows: NDArray[np.intp], encoder: AnyEncoder) -> tuple[Sequence[str], Block]:
        """Select few items: for these alone, scorers had better look the ids up than for the whole catalogue."""
        ids, block = self.ids, self.whole.blocks[encoder.version]
        return [ids[row] for row in rows.tolist()], block.take(rows)

    def _row(self, item: str) -> int | None:
        """Return the row of an item of `base`, or of `recent` as if these followed; None: there is no such item."""
        row = self.recent.index.get(item)
        if row is not None:
            return len(self.base) + row
        return None if item in self.gone else self.base.index.get(item)

    def _named(self, ids: list[str], rows: NDArray[np.intp], encoder: AnyEncoder) -> tuple[Sequence[str], Block]:
        """Return the candidates at these rows."""
        is_recent = rows >= len(self.base)
        if not is_recent.any():
            return _at(self.base, rows, encoder)
        old = self.base.blocks[encoder.version].take(rows[~is_recent])
        new = self.recent.blocks[encoder.version].take(rows[is_recent] - len(self.base))
        return ids, old.concat([old, new]).take(np.argsort(np.argsort(is_recent, kind="stable")))


class _FeaturesOf(Mapping[str, Features]):
    """The features of a catalogue's items by id, in no order."""

    def __init__(self, base: Items, recent: Items, gone: frozenset[str]) -> None:
        self._base, self._recent, self._gone = base, recent, gone

    def __getitem__(self, item: str) -> Features:
        row = self._recent.index.get(item)
        if row is not None:
            return self._recent.written[row]
        if item in self._gone:
            raise KeyError(item)
        return self._base.written[self._base.index[item]]

    def __iter__(self) -> Iterator[str]:
        yield from self._recent.ids
        yield from (item for item in self._base.ids if not (item in self._gone or item in self._recent.index))

    def __len__(self) -> int:
        replaced = sum(item in self._base.index for item in self._recent.ids)
        return len(self._base) + len(self._recent) - replaced - len(self._gone)


def _following(items: Items, after: str) -> Iterator[str]:
    return (items.ids[row] for row in range(bisect_right(items.ids, after), len(items)))


def _at(items: Items, rows: NDArray[np.intp], encoder: AnyEncoder) -> tuple[Ids, Block]:
    return items.known.take(rows), items.blocks[encoder.version].take(rows)
