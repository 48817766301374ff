"""Builds active loops and requests, with defaults."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from service.decide.active import UNIFORM, ActiveLoop, ServedPolicy
from service.decide.catalogue import Catalogue
from service.decide.decision import Request
from service.loop import LoopSettings
from service.policies import Scorer
from service.records import Features
from service.represent.encoder import Encoder
from service.represent.schema import FeatureSchema
from service.rules import NO_RULES, Rules

ENCODER = Encoder(FeatureSchema())


def catalogue_of(items: Mapping[str, Features] | int = 5, *, version: int = 1, encoder: Encoder = ENCODER) -> Catalogue:
    """Build a catalogue; a number makes items p0, p1, ... without features."""
    if isinstance(items, int):
        items = {f"p{i}": {} for i in range(items)}
    return Catalogue.of(version, items, encoder)


def served_of(name: str, scorer: Scorer = UNIFORM.scorer, *, version: int = 1) -> ServedPolicy:
    """Build a policy that serves."""
    return ServedPolicy(name, f"id-of-{name}", version, scorer)


def active_of(
    items: Mapping[str, Features] | int = 5,
    *,
    traffic: Mapping[str, float] | None = None,
    served: Mapping[str, ServedPolicy] | None = None,
    name: str = "shop",
    catalogue: Catalogue | None = None,
    encoder: Encoder = ENCODER,
    **settings: Any,
) -> ActiveLoop:
    """Build an active loop; policies with traffic serve uniformly unless they are given."""
    traffic = traffic or {}
    return ActiveLoop(
        name=name,
        id="1",
        settings=LoopSettings(**settings),
        encoder=encoder,
        catalogue=catalogue or catalogue_of(items, encoder=encoder),
        traffic=traffic,
        served=served or {policy: served_of(policy) for policy in traffic},
        epoch=1,
    )


def request_of(
    decision_id: str = "d1",
    *,
    user_id: str | None = None,
    context: Features | None = None,
    candidates: Sequence[str | tuple[str, Features | None]] | None = None,
    exclude: Sequence[str] = (),
    k: int = 1,
    rules: Rules = NO_RULES,
) -> Request:
    """Build a request; a candidate without features may be its id alone."""
    pairs = None if candidates is None else [(c, None) if isinstance(c, str) else c for c in candidates]
    return Request(decision_id, user_id, context or {}, pairs, exclude, k, rules)
