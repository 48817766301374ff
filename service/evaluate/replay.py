"""Makes decisions and learned states again, and compares them bit for bit."""

from __future__ import annotations

from dataclasses import replace

from service.decide.active import ActiveLoop, ServedPolicy
from service.decide.catalogue import Catalogue
from service.decide.decision import decide, request_of
from service.records import Decision, LoopRecord
from service.represent.stored import AnyEncoder


def same_decision(
    decision: Decision, loop: LoopRecord, encoder: AnyEncoder, catalogue: Catalogue, served: ServedPolicy
) -> bool:
    """Return whether a decision comes out the same, from its record, the catalogue of then and the version of then."""
    settings = loop.settings.model_copy(update={"exploration_floor": decision.exploration_floor})
    # Its own name: a loop that was restored from a backup may have another one now, and draws depend on it.
    active = ActiveLoop(decision.loop, loop.id, settings, encoder, catalogue, {}, {}, loop.epoch)
    again, _ = decide(request_of(decision), active, at=decision.at, served=served, experiment=decision.experiment)
    return again == replace(decision, items=again.items) and again.items == decision.items
