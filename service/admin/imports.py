"""Import a historical log: every policy of the loop learns from it, in the order in which it happened."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeAlias

from redis.asyncio import Redis

from service.admin.encoders import encoder_for
from service.decide.active import ActiveLoop
from service.decide.catalogue import Catalogue
from service.errors import Conflict, InvalidRequest
from service.exchange.dsjson import read_dsjson
from service.exchange.obp import read_arrays, read_table
from service.exchange.parquet import read_parquet
from service.loop import LoopSettings
from service.records import Change, LoopRecord, PastEvent
from service.represent.misfits import Misfits
from service.serve.feedback import check_reward
from service.serve.follower import Follower
from service.serve.misfit_counter import MisfitCounter
from service.store import change_log, event_log, item_store, loop_store
from service.store.codec import event_body, row_bytes
from service.store.connection import now
from service.store.keys import Keys

AHEAD_S = 366 * 86_400.0  # by which the time of an event may lie ahead: it refuses all that is older
BATCH, BATCH_BYTES = 1000, 8 << 20  # of the events that are appended at once: whichever is reached first
OUT_OF_ORDER = (
    "events are learned in the order of their times, and one of these is older than what was imported before: "
    "import the oldest first (into a new loop, if this one has newer ones already), or leave out `at`"
)

Row: TypeAlias = tuple[str, bytes, bytes, float, int | None]  # event id, e, x, reward, time in ms
Rows: TypeAlias = Iterator[tuple[str, PastEvent]]  # (row of a file, for people; event)


async def import_events(
    redis: Redis, follower: Follower, misfits: MisfitCounter, loop: str, events: Sequence[PastEvent], *, by: str
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
        _check_time(event, latest, f"events.{number}.at")
    keys = Keys(loop, active.id)
    found = Misfits()  # of this thread's own: the loop's are written down by another thread meanwhile
    ordered = _in_order(events)
    rows = await asyncio.to_thread(lambda: [_encode(active, event, found) for event in ordered])
    misfits.of(keys).merge(found)
    await _write_down(redis, keys, by, len(rows))
    return await _append(redis, keys, active.settings, rows)


async def _write_down(redis: Redis, keys: Keys, by: str, events: int) -> None:
    await change_log.append(redis, keys.data_changes, Change(by, "import events", None, {"events": events}))


async def _append(redis: Redis, keys: Keys, settings: LoopSettings, rows: Sequence[Row]) -> int:
    imported = await event_log.append_imported(redis, keys, rows, remember=settings.retention)
    if imported is None:
        raise Conflict(OUT_OF_ORDER, code="out_of_order")
    return imported


def _check_time(event: PastEvent, latest: float, field: str) -> None:
    if event.at is not None and event.at > latest:
        raise InvalidRequest(field, "lies more than a year ahead, and would keep out all that is imported later")


def _in_order(events: Sequence[PastEvent]) -> list[PastEvent]:
    timed = [event for event in events if event.at is not None]
    if timed and len(timed) < len(events):
        number = next(number for number, event in enumerate(events) if event.at is None)
        raise InvalidRequest(f"events.{number}.at", "give every event of a request its time, or none of them")
    return sorted(events, key=lambda event: event.at or 0.0)


def _encode(active: ActiveLoop, event: PastEvent, misfits: Misfits) -> Row:
    [features] = active.catalogue.shown([(event.item_id, event.features)], [event.item_id])
    _, block = active.catalogue.eligible([(event.item_id, event.features)], (), active.encoder, misfits)
    [row] = active.encoder.encode(event.context, block, misfits=misfits)
    body = event_body(
        decision_id=event.event_id if event.decision_id is None else event.decision_id,
        item=event.item_id,
        user=event.user_id,
        context=event.context,
        n=event.n,
        propensity=event.propensity,
        policy=event.policy,
        version=event.version,
        features=features,
        encoder=active.encoder.version,
    )
    at = None if event.at is None else round(1000 * event.at)
    return event.event_id, body, row_bytes(row), event.reward, at


# ---- files


@dataclass(frozen=True)
class Imported:
    """What became of the events of a file."""

    events: int
    new: int  # the others were imported before


def read_file(path: Path) -> Rows:
    """Read a file of any format: Parquet (also a folder), `.dsjson`, or Open Bandit Pipeline's `.npz` or `.csv`.

    Raises:
        InvalidRequest: it is none of these, or is damaged.
    """
    match path.suffix:
        case ".dsjson" | ".json":
            return read_dsjson(path)
        case ".npz":
            return read_arrays(path)
        case ".csv":
            return read_table(path)
        case ".parquet" | "":
            return read_parquet(path)
    if path.is_dir():
        return read_parquet(path)
    raise InvalidRequest("file", f"{path.name}: a name that ends in .parquet, .dsjson, .npz or .csv is needed")


async def import_file(
    redis: Redis, loop: str, read: Callable[[], Rows], progress: Callable[[int, int | None], None] = lambda *_: None
) -> Imported:
    """Append all events of a file, after all were checked: a file with a fault changes nothing.

    Should this be cut off, run it again: what is there already changes nothing.

    Args:
        read: reads the file from its start; it is called twice.
        progress: called with the events done, and how many there are (None: not known yet).

    Raises:
        NotFound: there is no such loop.
        InvalidRequest: a row is wrong; names it, and the field.
        Conflict: the events are this loop's own, are older than what was imported before, or the loop was deleted
            meanwhile.
    """
    record = await loop_store.read_loop(redis, loop)
    keys = Keys(loop, record.id)
    total = await _check(redis, record, read(), progress)
    await _write_down(redis, keys, "rebound import", total)
    misfits, found = MisfitCounter(redis), Misfits()
    active = await _active(redis, record)
    rows: list[Row] = []
    size = new = 0
    for done, (_, event) in enumerate(read(), 1):
        rows.append(_encode(active, event, found))
        size += len(rows[-1][1]) + len(rows[-1][2])
        if len(rows) == BATCH or size >= BATCH_BYTES or done == total:
            latest = await loop_store.read_loop(redis, loop)
            if latest.id != record.id:
                raise Conflict(f"the loop {loop!r} was deleted and made again meanwhile", code="loop_replaced")
            new += await _append(redis, keys, latest.settings, rows)
            rows, size = [], 0
            progress(done, total)
            if latest.epoch != active.epoch:
                active = await _active(redis, latest)
    misfits.of(keys).merge(found)
    await misfits.flush()
    return Imported(total, new)


async def _check(redis: Redis, record: LoopRecord, rows: Rows, progress: Callable[[int, int | None], None]) -> int:
    """Read all rows, and return how many there are."""
    latest = await now(redis) + AHEAD_S
    before: PastEvent | None = None
    count = 0
    while some := list(islice(rows, BATCH)):
        for where, event in some:
            check_reward(record.settings, event.reward, f"{where}, reward")
            _check_time(event, latest, f"{where}, time")
            if event.origin == record.id:
                raise Conflict(f"{where}: loop {record.name!r} has these events already, as they were exported from it")
            if before is not None and (event.at is None) != (before.at is None):
                raise InvalidRequest(f"{where}, time", "give every event its time, or none of them")
            if before is not None and (event.at or 0.0) < (before.at or 0.0):
                raise InvalidRequest(f"{where}, time", "is older than the row before; sort the file by time")
            before = event
        times = [(event.event_id, round(1000 * event.at)) for _, event in some if event.at is not None]
        older = await event_log.first_too_old(redis, Keys(record.name, record.id), times)
        if older is not None:
            raise Conflict(f"{some[older][0]}: {OUT_OF_ORDER}", code="out_of_order")
        count += len(some)
        progress(count, None)
    return count


async def _active(redis: Redis, record: LoopRecord) -> ActiveLoop:
    """Return what encodes a loop's imports."""
    encoder = await encoder_for(redis, record, record.encoder_of_imports)
    version, items = await item_store.read_items(redis, Keys(record.name, record.id))
    catalogue = Catalogue.of(version, items, encoder)
    return ActiveLoop(record.name, record.id, record.settings, encoder, catalogue, {}, {}, record.epoch)
