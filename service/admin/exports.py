"""Write a loop's log to files for other tools. A backup (`backups.py`) is what restores a loop."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from redis.asyncio import Redis

from service.errors import InvalidRequest
from service.exchange.dsjson import write_line
from service.exchange.parquet import ParquetFolder, arrow
from service.records import Decision, Event, Features, Unreadable
from service.store import activity_log, event_log, item_store, loop_store, policy_store
from service.store.keys import Keys
from service.store.settled import read_decisions

Progress = Callable[[int, int], None]  # (entries of the log done, entries in all)


@dataclass
class Exported:
    """What was written, and what was not."""

    events: int = 0
    decisions: int = 0
    activity: int = 0
    left_out: dict[str, int] = field(default_factory=dict)  # why -> events

    def leave_out(self, why: str, events: int = 1) -> None:
        if events:
            self.left_out[why] = self.left_out.get(why, 0) + events


async def export_parquet(redis: Redis, loop: str, folder: Path, progress: Progress = lambda *_: None) -> Exported:
    """Write policies, decisions, events and activity into a folder, which appears whole or not at all.

    A decision is written with the event of its first item, if the ledger still holds it. What waits for its reward
    comes with a later export.

    Raises:
        NotFound: there is no such loop.
        InvalidRequest: the folder is there, or PyArrow is not installed.
    """
    arrow()
    record = await loop_store.read_loop(redis, loop)
    keys = Keys(loop, record.id)
    part = _part(folder)
    part.mkdir(mode=0o700)  # it holds what users did
    done = Exported()
    try:
        with closing(ParquetFolder(part, record)) as files:
            names = await policy_store.policy_names(redis, keys)
            policies = [await policy_store.read_policy(redis, keys, name) for name in names]
            files.write_policies((policy, record.traffic.get(policy.name, 0.0)) for policy in policies)
            async for events, decisions in _log(redis, keys, done, progress):
                for event in events:
                    files.add_event(event)
                    done.events += 1
                    decision = decisions.get(event.decision_id)
                    if decision is not None and decision.items[0].id == event.item:
                        files.add_decision(decision)
                        done.decisions += 1
            async for activity in activity_log.scan_log(redis, keys, until=await activity_log.end_of(redis, keys)):
                for one in activity:
                    files.add_activity(one)
                done.activity += len(activity)
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return done


async def export_dsjson(redis: Redis, loop: str, file: Path, progress: Progress = lambda *_: None) -> Exported:
    """Write events as lines of DSJSON into a file, which appears whole or not at all.

    All candidates are written where the ledger still holds the decision and the catalogue of then is kept, else the
    chosen item alone. Events without a propensity are left out: nobody could learn from them.

    Raises:
        NotFound: there is no such loop.
        InvalidRequest: the file is there.
    """
    record = await loop_store.read_loop(redis, loop)
    keys = Keys(loop, record.id)
    part = _part(file)
    done = Exported()
    catalogues = _Catalogues(redis, keys)
    try:
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
            async for events, decisions in _log(redis, keys, done, progress):
                for event in events:
                    if event.propensity is None:
                        done.leave_out("without a propensity")
                        continue
                    decision = decisions.get(event.decision_id)
                    candidates = None if decision is None else await catalogues.candidates(decision, event)
                    out.write(write_line(event, candidates, origin=record.id))
                    done.events += 1
                    done.decisions += candidates is not None
        part.rename(file)
    finally:
        part.unlink(missing_ok=True)
    return done


def candidates_of(decision: Decision, items: Mapping[str, Features]) -> Sequence[tuple[str, Features | None]]:
    """Return the candidates of a decision as a request names them, before exclusions.

    Args:
        items: the catalogue of then, by the ids in order.
    """
    if decision.candidates is not None:
        return decision.candidates
    if decision.retrieved is None:
        return [(item, None) for item in items]
    ids = list(items)
    return [(ids[row], None) for row in decision.retrieved.rows]


def _part(path: Path) -> Path:
    """Return where to write what is to be renamed to `path` at the end."""
    part = path.with_name(path.name + ".part")
    for found in (path, part):
        if found.exists():
            raise InvalidRequest("file", f"{found} is there already; remove it, or name another")
    return part


async def _log(
    redis: Redis, keys: Keys, exported: Exported, progress: Progress
) -> AsyncIterator[tuple[list[Event], Mapping[str, Decision]]]:
    """Read the log up to where it ends now: events, and those of their decisions that the ledger holds."""
    [until] = await event_log.ends(redis, [keys])
    total, done = await event_log.size(redis, keys), 0
    async for entries in event_log.scan(redis, keys, until=until):
        events = [entry for entry in entries if isinstance(entry, Event)]
        exported.leave_out("unreadable", sum(isinstance(entry, Unreadable) for entry in entries))
        ids = list(dict.fromkeys(event.decision_id for event in events if event.source != "import"))
        yield events, {decision.decision_id: decision for _, decision in await read_decisions(redis, keys, ids)}
        done += len(entries)
        progress(min(done, total), total)


class _Catalogues:
    """The items of the versions of the catalogue, the last one kept."""

    def __init__(self, redis: Redis, keys: Keys) -> None:
        self._redis, self._keys = redis, keys
        self._version: int | None = None
        self._items: Mapping[str, Features] | None = None  # None: no longer kept

    async def candidates(self, decision: Decision, event: Event) -> list[tuple[str, Features]] | None:
        """Return what the event's item was drawn from; None: that is no longer known.

        Of a slate these are the candidates without the items of the places before.
        """
        items = await self._at(decision.catalogue)
        if items is None:
            return None
        named = candidates_of(decision, items)
        shown = [item.id for item in decision.items]
        out = {*decision.left_out, *(shown[: shown.index(event.item)] if event.item in shown else ())}
        left = {item: items.get(item, {}) if own is None else own for item, own in named if item not in out}
        if len(left) != event.n or event.item not in left:
            return None
        if event.features is not None:
            left[event.item] = event.features
        return list(left.items())

    async def _at(self, version: int) -> Mapping[str, Features] | None:
        if version != self._version:
            self._items = await item_store.kept_items_at(self._redis, self._keys, version)
            self._version = version
        return self._items
