"""What a source is: one file of this folder, which finds items of a catalogue for a decision.

Items are rows of the catalogue, so they are numbers below N. A source is immutable and made beside the one that serves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, ClassVar, NamedTuple, Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from service.funnel import SourceSetting
from service.records import Features
from service.represent.misfits import Misfits
from service.represent.tokens import mix
from service.retrieve.counts import Standing
from service.retrieve.covisits import Covisits
from service.retrieve.towers import Towers

Array = NDArray[Any]

GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / φ, the step of splitmix64
FEW = 8  # times as many numbers as are drawn: they are shuffled, rather than drawn
MORE = 8  # times as many items are asked for, where too few of those that were found are wanted


@dataclass(frozen=True, slots=True)
class Items:
    """N items of a catalogue, as sources see them."""

    ids: Sequence[str]  # (N,)
    features: Mapping[str, Features]
    standing: Standing
    # (N,) where each stood, with the same features, in the catalogue that a former source was made for; -1: nowhere
    before: Array | None = None
    covisits: Covisits | None = None  # None: nothing is known
    towers: Towers | None = None  # None: none were learned, or no source needs them

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class Query:
    """What is asked of a source."""

    context: Features
    seed: str  # of the decision
    user: str | None = None
    last: Sequence[str] = ()  # items that the user took, the newest first


class Found(NamedTuple):
    """What a source found, the best first."""

    rows: Array  # (m,) intp, different ones
    scores: Array  # (m,) float64, which mean something within one source only


NOTHING = Found(np.zeros(0, dtype=np.intp), np.zeros(0))


class Source(Protocol):
    """Finds items."""

    learned: ClassVar[bool]  # whether it depends on what was learned, and not on the catalogue alone

    @classmethod
    def of(cls, setting: SourceSetting, items: Items, former: Self | None = None) -> Self:
        """Prepare what does not depend on the decision.

        Args:
            former: of the same setting, for the catalogue of `items.before`.
        """

    def find(self, query: Query, most: int, misfits: Misfits) -> Found:
        """Find at most so many items; values of the context that it cannot use are counted."""


@runtime_checkable
class Narrowing(Source, Protocol):
    """A source that knows how to find among some of its items."""

    def among(self, mask: Array) -> Source:
        """Return this source over the items of a mask, (N,) bool, alone."""


def found_among(mask: Array | None, source: Source, query: Query, most: int, misfits: Misfits) -> Found:
    """Return what a source finds among the items of a mask, (N,) bool; None: all.

    A source that gives too few of them is asked for more, until there are enough, or no more.
    """
    found = source.find(query, most, misfits)
    if mask is None:
        return found
    asked = most
    while (left := mask[found.rows]).sum() < most and len(found.rows) >= asked:
        asked *= MORE
        found = source.find(query, asked, Misfits())
    return Found(found.rows[left][:most], found.scores[left][:most])


def drawn(seed: str, what: str, most: int, of: int) -> Array:
    """Draw `most` different numbers below `of`, all alike; all of them where there are no more.

    The draw is a hash of the decision's seed and of `what` draws (decision record 0010). It costs what `most`
    costs. One in many thousand is a number or two short of `most`.
    """
    start = int.from_bytes(blake2b(f"{seed}:{what}".encode(), digest_size=8).digest(), "big")
    few = of <= FEW * most
    hashes = mix(np.uint64(start) + GOLDEN * np.arange(1, 1 + (of if few else 2 * most), dtype=np.uint64))
    if few:
        return hashes.argsort(kind="stable")[:most]
    different = dict.fromkeys((hashes % np.uint64(of)).tolist())
    return np.array(list(different)[:most], dtype=np.intp)
