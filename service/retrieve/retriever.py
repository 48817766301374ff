"""Finds the candidates of a decision: the sources' items, united and cut.

The first item of each source comes first, in the order of the funnel, then the second of each, and so on; an item that
was there before does not count again. Pinned items come before all. The first `cut` of them are the candidates, and
they stand in the order of the catalogue. Letters: **N** items of the catalogue, **n** candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice, zip_longest

import numpy as np

from service.funnel import Funnel
from service.records import Features
from service.represent.misfits import Misfits
from service.retrieve.ann import Ann
from service.retrieve.counts import Counts
from service.retrieve.covisited import Covisited
from service.retrieve.fresh import Fresh
from service.retrieve.friends import Friends
from service.retrieve.learned import Learned
from service.retrieve.popular import Popular
from service.retrieve.random import Random
from service.retrieve.source import Array, Found, Items, Narrowing, Query, Source, found_among
from service.retrieve.towers import Towers

SOURCES: Mapping[str, type[Source]] = {
    "popular": Popular,
    "fresh": Fresh,
    "random": Random,
    "ann": Ann,
    "covisited": Covisited,
    "friends": Friends,
    "learned": Learned,
}
KEPT_NARROWED = 16  # filters whose funnels are kept; one holds some tens of bytes an item that meets its filter


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a candidate came from."""

    source: str
    rank: int  # from 1
    score: float  # means something within one source only


def _before(former: Sequence[str], ids: Sequence[str], changed: frozenset[str]) -> Array | None:
    """Return where each id stood before, -1 where it is new or has changed; None where these are not all changes.

    What did not change stands in the same order in both.
    """
    stood = [row for row, item in enumerate(former) if item not in changed]
    stands = [row for row, item in enumerate(ids) if item not in changed]
    if len(stood) != len(stands):
        return None
    before = np.full(len(ids), -1, dtype=np.intp)
    before[stands] = stood
    return before


@dataclass(frozen=True)
class Retriever:
    """The funnel of a loop over one version of its catalogue. What it finds does not change.

    Attributes:
        version: of the counts that it was made from; 0: there were none.
        counts: lent to the funnel that comes after it, which moves them on; the sources hold what they took from them.
        catalogue: the version of the catalogue.
        ids: of that, in order.
        embedding: the version of the learned embeddings; 0: there are none.
        towers: these.
        mask: (N,) bool, the items that it finds; None: any.
    """

    version: int
    counts: Counts
    funnel: Funnel
    catalogue: int
    ids: Sequence[str]
    sources: Sequence[Source]
    embedding: int = 0
    towers: Towers | None = None
    mask: Array | None = None
    _narrowed: dict[Hashable, Retriever] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def of(
        cls,
        funnel: Funnel,
        ids: Sequence[str],
        features: Mapping[str, Features],
        counts: Counts,
        *,
        version: int,
        catalogue: int,
        former: Retriever | None = None,
        changed: Collection[str] | None = None,
        embedding: int = 0,
        towers: Towers | None = None,
    ) -> Retriever:
        """Prepare all sources.

        Args:
            ids: of the catalogue, in order.
            catalogue: its version.
            former: lends the sources that would be the same, and what does not change of the others.
            changed: the items that differ between its catalogue and this one; None: nobody knows.
        """
        before = None if former is None or changed is None else _before(former.ids, ids, frozenset(changed))
        items = Items(ids, features, counts.standing(ids), before, counts.covisits, towers)
        lent = {} if former is None else dict(zip(former.funnel.sources, former.sources, strict=True))
        same = former is not None and former.catalogue == catalogue
        sources = [
            lent[one]
            if same and one in lent and not lent[one].learned
            else SOURCES[one.source].of(one, items, lent.get(one))
            for one in funnel.sources
        ]
        return cls(version, counts, funnel, catalogue, ids, sources, embedding, towers)

    def retrieve(
        self,
        query: Query,
        *,
        exclude: Sequence[int] = (),
        pinned: Sequence[int] = (),
        misfits: Misfits | None = None,
    ) -> tuple[int, ...]:
        """Return the rows of the n candidates, ascending.

        Args:
            exclude: rows that are not to be found; a source gives others in their place.
            pinned: rows that are candidates whatever the sources find, where the mask has them.
        """
        found = [one.rows.tolist() for one in self._find(query, exclude, Misfits() if misfits is None else misfits)]
        in_turn = (row for rank in zip_longest(*found) for row in rank if row is not None)
        rows = dict.fromkeys(chain((row for row in pinned if self.mask is None or self.mask[row]), in_turn))
        return tuple(sorted(islice(rows, self.funnel.cut)))

    def origins(self, query: Query, *, exclude: Sequence[int] = ()) -> dict[int, list[Origin]]:
        """Return row -> where it came from, of all rows that the sources find."""
        origins: dict[int, list[Origin]] = {}
        for setting, found in zip(self.funnel.sources, self._find(query, exclude, Misfits()), strict=True):
            for rank, (row, score) in enumerate(zip(found.rows.tolist(), found.scores.tolist(), strict=True), 1):
                origins.setdefault(row, []).append(Origin(setting.source, rank, score))
        return origins

    def among(self, key: Hashable, meeting: Callable[[], Array]) -> Retriever:
        """Return this funnel over some of the items alone: each source gives its quota of these.

        Args:
            key: of these items; the funnels of the latest 16 are kept.
            meeting: makes the mask of these items, (N,) bool.
        """
        found = self._narrowed.pop(key, None)
        if found is None:
            mask = meeting()
            sources = [one.among(mask) if isinstance(one, Narrowing) else one for one in self.sources]
            found = replace(self, sources=sources, mask=mask, _narrowed={})
        while len(self._narrowed) >= KEPT_NARROWED:
            del self._narrowed[next(iter(self._narrowed))]
        self._narrowed[key] = found
        return found

    def _find(self, query: Query, exclude: Sequence[int], misfits: Misfits) -> list[Found]:
        found = []
        for setting, source in zip(self.funnel.sources, self.sources, strict=True):
            rows, scores = found_among(self.mask, source, query, setting.quota + len(exclude), misfits)
            if exclude:
                left = ~np.isin(rows, exclude)
                rows, scores = rows[left], scores[left]
            found.append(Found(rows[: setting.quota], scores[: setting.quota]))
        return found
