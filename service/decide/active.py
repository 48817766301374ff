"""What serves a loop right now: immutable, and replaced as a whole.

A request reads one `ActiveLoop` and works on it to its end, so no request ever sees half of a change.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import accumulate

from service.decide.catalogue import Catalogue
from service.loop import LoopSettings
from service.policies import KINDS, Array, Scorer, columns_for, new_scorer
from service.policies.random import RandomScorer
from service.records import PolicyRecord
from service.represent.stored import AnyEncoder
from service.retrieve.retriever import Retriever


@dataclass(frozen=True, slots=True)
class ServedPolicy:
    """One policy at one version, ready to score. Version 0: no snapshot yet, uniform."""

    policy: str
    id: str
    version: int
    scorer: Scorer
    encoder: AnyEncoder | None = None  # whose rows the scorer takes; None: the loop's
    columns: int | None = None  # of a row that the scorer takes, the first ones; None: all


UNIFORM = ServedPolicy("random", "", 0, RandomScorer())


@dataclass(frozen=True)
class ActiveLoop:
    """All that a decision in one loop needs."""

    name: str
    id: str
    settings: LoopSettings
    encoder: AnyEncoder  # of imports, and of policies without one of their own
    catalogue: Catalogue  # encoded for every policy that serves
    traffic: Mapping[str, float]  # policy -> share; sums to 1, or is empty: uniform
    served: Mapping[str, ServedPolicy]
    epoch: int
    activity: bool = False  # whether users have states
    retriever: Retriever | None = None  # None: every item of the catalogue is a candidate
    cumulative: tuple[float, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "cumulative", tuple(accumulate(self.traffic.values()))[:-1])

    def policy_for(self, user: str) -> ServedPolicy:
        """Return the policy that serves this user: the same one for as long as the traffic stays as it is."""
        if not self.traffic:
            return UNIFORM
        if not self.cumulative:
            return self.served[next(iter(self.traffic))]
        digest = blake2b(f"{self.name}\0{user}".encode(), digest_size=8).digest()
        at = int.from_bytes(digest, "big") / 2**64
        return self.served[tuple(self.traffic)[bisect_right(self.cumulative, at)]]


def build_scorer(record: PolicyRecord, snapshot: Mapping[str, Array], encoder: AnyEncoder) -> Scorer:
    """Make the serving half from a snapshot, checked.

    Raises:
        ValueError: not finite, of the wrong shape, or of a kind that this process does not know.
    """
    if record.kind not in KINDS:
        raise ValueError(f"unknown kind {record.kind!r}")
    params = KINDS[record.kind].Params.model_validate(record.params)
    return new_scorer(record.kind, snapshot, encoder.d, encoder.layout, params)


def serving(record: PolicyRecord, version: int, snapshot: Mapping[str, Array], encoder: AnyEncoder) -> ServedPolicy:
    """Make a policy ready to score.

    Raises:
        ValueError: see `build_scorer`.
    """
    scorer = build_scorer(record, snapshot, encoder)
    columns = columns_for(record.kind, encoder.d, encoder.layout)
    return ServedPolicy(record.name, record.id, version, scorer, encoder, columns)
