"""What serves a loop right now: immutable, and replaced as a whole.

A request reads one `ActiveLoop` and works on it to its end, so no request ever sees half of a change.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from itertools import accumulate
from typing import Any

from service.decide.assignment import Assigner
from service.decide.catalogue import Catalogue
from service.layout import Rows
from service.loop import LoopSettings
from service.policies import KINDS, Array, Candidates, Fold, Ranked, Scorer, columns_for, new_scorer
from service.policies.random import RandomScorer
from service.records import OUTSIDE, Assignment, Features, PolicyRecord
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
    fold: Fold | None = None  # of the scorer's bounds over the catalogue; None: every row is scored

    def rank(self, rows: Rows, ids: Sequence[str], user: str | None) -> tuple[Ranked, bool]:
        """Score n candidates, by the fold if all of them are items of its catalogue.

        Returns:
            The candidates, scored, and whether they were by the fold.
        """
        at = None if self.fold is None else self.fold.places(ids)
        if self.fold is None or at is None or rows.context is None:
            return self.scorer.rank(Candidates(rows.columns(0, self.columns), ids, user)), False
        return Ranked(self.scorer, self.fold.estimate(rows.context, at)), True

    @property
    def can_fold(self) -> bool:
        """Whether the scorer has bounds, and no column of its rows is hashed."""
        return self.encoder is not None and self.encoder.products is not None and self.scorer.bounds(()) is not None

    def folded(self, catalogue: Catalogue | None) -> ServedPolicy:
        """Fold the scorer's bounds over a catalogue; None: over none.

        A function of the version, the encoder and the catalogue. There is no fold where the policy cannot fold, or
        where it would be too large (`service/policies/fold.py`).
        """
        products = None if self.encoder is None else self.encoder.products
        if catalogue is None or self.encoder is None or products is None or not self.can_fold:
            return self if self.fold is None else replace(self, fold=None)
        items = catalogue.whole
        z = items.blocks[self.encoder.version].z
        if self.fold is not None and self.fold.ids is items.known and self.fold.z is z:
            return self
        bounds = self.scorer.bounds(items.known)
        fold = None if bounds is None else Fold.of(bounds, products.first(self.columns), z, items.known)
        return replace(self, fold=fold)


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
    edges: bool = False  # whether users have neighbourhoods
    assigner: Assigner | None = None  # of the experiment that runs, or is to begin
    release: Mapping[str, Any] | None = None  # policy, id and guard's latency of the release that runs
    retriever: Retriever | None = None  # None: every item of the catalogue is a candidate
    cumulative: tuple[float, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "cumulative", tuple(accumulate(self.traffic.values()))[:-1])

    @property
    def knows_users(self) -> bool:
        """Whether something beside the context may be known of a user."""
        return self.activity or self.edges

    def assigned(
        self, user_id: str | None, decision_id: str, *, at: float, context: Features
    ) -> tuple[ServedPolicy, Assignment | None]:
        """Return the policy that serves a decision, and where the decision fell if it takes part in an experiment."""
        found = (
            None if self.assigner is None else self.assigner.assignment(user_id, decision_id, at=at, context=context)
        )
        if found is None or found.arm == OUTSIDE:
            return self.policy_for(user_id or decision_id), found
        assert self.assigner is not None
        return self.served[self.assigner.experiment.arms[found.arm].policy], found

    def policy_for(self, user: str) -> ServedPolicy:
        """Return the policy that the traffic gives this user: the same one for as long as it stays as it is."""
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
