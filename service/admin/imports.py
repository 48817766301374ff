"""Import a historical log: every policy of the loop learns from it, in the order in which it happened."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from redis.asyncio import Redis

from service.decide.active import ActiveLoop
from service.errors import Conflict, InvalidRequest
from service.records import Features
from service.represent.misfits import Misfits
from service.serve.feedback import check_reward
from service.serve.follower import Follower
from service.serve.misfit_counter import MisfitCounter
from service.store import event_log
from service.store.codec import event_body, row_bytes
from service.store.connection import now
from service.store.keys import Keys

AHEAD_S = 366 * 86_400.0  # by which the time of an event may lie ahead: it refuses all that is older


@dataclass(frozen=True)
class PastEvent:
    """One row of a historical log."""

    event_id: str
    user_id: str | None
    context: Features
    item_id: str
    features: Features | None
    reward: float
    propensity: float | None
    at: float | None  # unix seconds


async def import_events(
    redis: Redis, follower: Follower, misfits: MisfitCounter, loop: str, events: Sequence[PastEvent]
) -> int:
    """Append historical events, all or nothing, oldest first; return how many were new.

    Raises:
        NotFound: there is no such loop.
        InvalidRequest: a reward is out of range, some events have a time and others none, or a time lies ahead.
        Conflict: a new event is older than one that was imported before.
    """
    active = follower.loop(loop)
    for number, event in enumerate(events):
        check_reward(active.settings, event.reward, f"events.{number}.reward")
    latest = await now(redis) + AHEAD_S
    for number, event in enumerate(events):
        if event.at is not None and event.at > latest:
            raise InvalidRequest(
                f"events.{number}.at", "lies more than a year ahead, and would keep out all that is imported later"
            )
    keys = Keys(loop, active.id)
    found = Misfits()  # of this thread's own: the loop's are written down by another thread meanwhile
    rows = await asyncio.to_thread(_encode, active, _in_order(events), found)
    misfits.of(keys).merge(found)
    imported = await event_log.append_imported(redis, keys, rows, remember=active.settings.retention)
    if imported is None:
        raise Conflict(
            "events are learned in the order of their times, and one of these is older than what was imported before: "
            "import the oldest first (into a new loop, if this one has newer ones already), or leave out `at`",
            code="out_of_order",
        )
    return imported


def _in_order(events: Sequence[PastEvent]) -> list[PastEvent]:
    timed = [event for event in events if event.at is not None]
    if timed and len(timed) < len(events):
        number = next(number for number, event in enumerate(events) if event.at is None)
        raise InvalidRequest(f"events.{number}.at", "give every event of a request its time, or none of them")
    return sorted(events, key=lambda event: event.at or 0.0)


def _encode(
    active: ActiveLoop, events: Sequence[PastEvent], misfits: Misfits
) -> list[tuple[str, bytes, bytes, float, int | None]]:
    found = []
    for event in events:
        [features] = active.catalogue.shown([(event.item_id, event.features)], [event.item_id])
        _, block = active.catalogue.eligible([(event.item_id, event.features)], (), active.encoder, misfits)
        [row] = active.encoder.encode(event.context, block, misfits=misfits)
        body = event_body(
            decision_id=event.event_id,
            item=event.item_id,
            user=event.user_id,
            context=event.context,
            n=None,
            propensity=event.propensity,
            policy=None,
            version=0,
            features=features,
            encoder=active.encoder.version,
        )
        at = None if event.at is None else round(1000 * event.at)
        found.append((event.event_id, body, row_bytes(row), event.reward, at))
    return found
