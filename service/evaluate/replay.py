"""Makes decisions and learned states again, and compares them bit for bit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from service.decide.active import ActiveLoop, ServedPolicy
from service.decide.catalogue import Catalogue
from service.decide.decision import decide, request_of
from service.policies import Array
from service.records import Decision, LoopRecord
from service.represent.stored import AnyEncoder


def same_decision(
    decision: Decision, loop: LoopRecord, encoder: AnyEncoder, catalogue: Catalogue, served: ServedPolicy
) -> bool:
    """Return whether a decision comes out the same, from its record, the catalogue of then and the version of then."""
    settings = loop.settings.model_copy(update={"exploration_floor": decision.exploration_floor})
    active = ActiveLoop(loop.name, loop.id, settings, encoder, catalogue, {}, {}, loop.epoch)
    again, _ = decide(request_of(decision), active, at=decision.at, served=served)
    return again == replace(decision, items=again.items) and again.items == decision.items


def same_arrays(one: Mapping[str, Array], other: Mapping[str, Array]) -> bool:
    """Return whether two sets of arrays have the same names, types, shapes and bytes."""
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype
        and one[name].shape == other[name].shape
        and one[name].tobytes() == other[name].tobytes()
        for name in one
    )
