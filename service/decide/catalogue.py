"""The loop's items at one version, encoded once for each encoder that serves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.decide.stage import Stage, Traits, passing
from service.policies import Ids
from service.records import Features, Retrieved
from service.represent.misfits import Misfits
from service.represent.stored import AnyEncoder, Block
from service.represent.user_state import ItemFields
from service.rules import Rules


@dataclass(frozen=True)
class Catalogue:
    """Immutable. Rows of blocks are in the order of `ids`, which is sorted, so that a replay sees the same rows."""

    version: int
    ids: tuple[str, ...]
    index: Mapping[str, int]
    features: Mapping[str, Features]
    block: Block  # of the loop's encoder
    others: Mapping[str, Block] = field(default_factory=dict)  # version of another encoder -> its block
    known: Ids = field(init=False, compare=False)  # the ids, with what scorers found for them
    traits: Traits = field(init=False, compare=False)  # what rules asked of the items
    fields: ItemFields = field(init=False, compare=False)  # that states of users hold

    def __post_init__(self) -> None:
        object.__setattr__(self, "fields", ItemFields(self.features))
        object.__setattr__(self, "known", Ids(self.ids))
        object.__setattr__(self, "traits", Traits(list(self.features.values())))

    @classmethod
    def of(
        cls, version: int, features: Mapping[str, Features], encoder: AnyEncoder, misfits: Misfits | None = None
    ) -> Catalogue:
        """Encode items; values that the encoder cannot use are counted in `misfits`."""
        ids = tuple(features)
        block = encoder.items(list(features.values()), ids, misfits=misfits)
        return cls(version, ids, {item: row for row, item in enumerate(ids)}, features, block)

    def encoded(self, encoders: Iterable[AnyEncoder]) -> Catalogue:
        """Return this catalogue encoded for these encoders, too, and for no others but the loop's."""
        wanted = {encoder.version: encoder for encoder in encoders if encoder.version != self.block.version}
        if wanted.keys() == self.others.keys():
            return self
        blocks = {
            version: self.others[version]
            if version in self.others
            else encoder.items(list(self.features.values()), self.ids)
            for version, encoder in wanted.items()
        }
        return replace(self, others=blocks)

    def block_of(self, encoder: AnyEncoder) -> Block:
        """Return the items, encoded by an encoder.

        Raises:
            KeyError: the catalogue is not encoded for it.
        """
        return self.block if encoder.version == self.block.version else self.others[encoder.version]

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
        block = self.block_of(encoder)
        out = set(exclude)
        if candidates is None and retrieved is not None:
            return self._few(self._left_of(retrieved, out), block)
        if candidates is None:
            rows = self._but(out)
            return (self.known, block) if rows is None else self._at(rows, block)
        left = [pair for pair in candidates if pair[0] not in out] if out else candidates
        known = [self.index.get(item) for item, features in left if features is None]
        if len(known) == len(left) and None not in known:
            return self._at(np.array(known, dtype=np.intp), block)
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
            few = self._left_of(retrieved, set(exclude))
            traits = Traits([self.features[self.ids[row]] for row in few.tolist()])
            rows = passing(rules, traits, None)
            ids, block = self._few(few[rows], self.block_of(encoder))
            return ids, block, Stage(rules, traits, rows, ids)
        if candidates is None:
            rows = passing(rules, self.traits, self._but(set(exclude)))
            ids, block = self._at(rows, self.block_of(encoder))
            return ids, block, Stage(rules, self.traits, rows, ids)
        out = set(exclude)
        left = [pair for pair in candidates if pair[0] not in out]
        traits = Traits([self.features.get(item, {}) if own is None else own for item, own in left])
        rows = passing(rules, traits, None)
        given, block = self.eligible([left[row] for row in rows.tolist()], (), encoder, misfits)
        return given, block, Stage(rules, traits, rows, given)

    def _but(self, out: set[str]) -> NDArray[np.intp] | None:
        """Return the rows of all items but these; None: of all."""
        gone = [self.index[item] for item in out if item in self.index]
        return np.delete(np.arange(len(self.ids)), gone) if gone else None

    def _left_of(self, retrieved: Retrieved, out: set[str]) -> NDArray[np.intp]:
        """Return the rows that a funnel found, without these items."""
        return np.array([row for row in retrieved.rows if not out or self.ids[row] not in out], dtype=np.intp)

    def _few(self, rows: NDArray[Any], block: Block) -> tuple[Sequence[str], Block]:
        """Select few items: for these alone, scorers had better look the ids up than for the whole catalogue."""
        return [self.ids[row] for row in rows.tolist()], block.take(rows)

    def _at(self, rows: NDArray[Any], block: Block) -> tuple[Ids, Block]:
        return self.known.take(rows), block.take(rows)
