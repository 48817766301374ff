"""A loop's items in Redis: the catalogue of now, and every version that the log of changes still covers."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import orjson
from redis.asyncio import Redis

from service.errors import Conflict, NotFound
from service.records import Change, Features, ItemChange
from service.store import change_log
from service.store.connection import answering, script
from service.store.keys import CHANGES, Keys
from service.store.loop_store import new_epoch

ITEM_LOG = 100_000  # changes of the catalogue that can be undone, for replays
MOST_CHANGES = 10_000  # that are read from the log; with more, all items are read
AT_ONCE = 5_000  # items that are read in one round trip, about


async def change_items(
    redis: Redis,
    keys: Keys,
    changes: Mapping[str, Features | None],
    *,
    must_exist: bool = False,
    change: Change | None = None,
) -> int:
    """Upsert items (None: delete), all or nothing; return the loop's new epoch.

    Args:
        must_exist: refuse to delete an item that is not there.
        change: to be written down; the script adds what the items were before.

    Raises:
        NotFound: the loop, or an item that must exist, is gone.
    """
    args: list[str | bytes | int] = [CHANGES, keys.loop, keys.id, ITEM_LOG, int(must_exist)]
    args += change_log.logged(change)
    for item, features in changes.items():
        args += (item, b"" if features is None else orjson.dumps(features))
    answer = await script("change_items")(redis, (keys.record, keys.items, keys.item_log, keys.data_changes), args)
    if answer == b"missing":
        raise NotFound(f"there is no item {next(iter(changes))!r} in loop {keys.loop!r}", code="unknown_item")
    return new_epoch(answer, keys.loop)


async def read_items(redis: Redis, keys: Keys) -> tuple[int, dict[str, dict[str, Any]]]:
    """Return (catalogue version, item id -> features) of one instant, sorted by id."""
    version, items = await read_written(redis, keys)
    return version, {item: orjson.loads(features) for item, features in items.items()}


async def read_written(redis: Redis, keys: Keys) -> tuple[int, dict[str, bytes]]:
    """Return (catalogue version, item id -> features as JSON) of one instant, sorted by id.

    Items are read some at a time, so that a large catalogue holds up neither Redis nor this process. What changed
    meanwhile is read from the log of changes. Where that does not reach back so far, they are read all at once.
    """
    async with answering(), redis.pipeline(transaction=True) as pipe:
        pipe.hget(keys.record, "catalogue").hscan(keys.items, count=AT_ONCE)
        said, (cursor, items) = await pipe.execute()
    version = int(said or 0)
    if cursor:
        async with answering():
            while cursor:
                cursor, some = await redis.hscan(keys.items, cursor, count=AT_ONCE)
                items |= some
        found = await read_changes(redis, keys, version)
        if found is None:
            return await _read_at_once(redis, keys)
        version, changes = found
        items |= {item.encode(): features for item, features in changes.items()}
    return version, await asyncio.to_thread(_sorted, items)


def _sorted(items: Mapping[bytes, bytes | None]) -> dict[str, bytes]:
    return {item.decode(): features for item in sorted(items) if (features := items[item]) is not None}


async def _read_at_once(redis: Redis, keys: Keys) -> tuple[int, dict[str, bytes]]:
    async with answering(), redis.pipeline(transaction=True) as pipe:
        pipe.hget(keys.record, "catalogue").hgetall(keys.items)
        said, items = await pipe.execute()
    return int(said or 0), await asyncio.to_thread(_sorted, items)


async def read_changes(redis: Redis, keys: Keys, since: int) -> tuple[int, dict[str, bytes | None]] | None:
    """Return (catalogue version, item id -> features as JSON, None: deleted) of what changed since a version.

    Returns:
        None if the log of changes does not reach back so far, or more than `MOST_CHANGES` were made.
    """
    async with answering(), redis.pipeline(transaction=True) as pipe:
        pipe.hget(keys.record, "catalogue")
        pipe.xrange(keys.item_log, min=f"{since + 1}-0", count=MOST_CHANGES + 1)
        said, later = await pipe.execute()
    version = int(said or 0)
    if version < since or len(later) > MOST_CHANGES or not _reaches_back(later, since, version):
        return None
    return version, {fields[b"id"].decode(): fields[b"now"] or None for _, fields in later}


def _reaches_back(later: Sequence[tuple[bytes, Any]], since: int, version: int) -> bool:
    """Return whether entries of the log are all that was changed after the version `since` until `version`."""
    reached = {int(entry.split(b"-")[0]) for entry, _ in later}
    whole = not later or later[0][0].endswith(b"-1")  # else the log begins within a version
    return whole and set(range(since + 1, version + 1)) <= reached


async def read_some(redis: Redis, keys: Keys, items: Collection[str]) -> dict[str, dict[str, Any]]:
    """Return item id -> features of those of these items that the catalogue of now holds."""
    if not items:
        return {}
    names = sorted(items)
    async with answering():
        found = await redis.hmget(keys.items, names)
    return {item: orjson.loads(features) for item, features in zip(names, found, strict=True) if features is not None}


async def read_turnover(redis: Redis, keys: Keys, after: int, *, most: int = 1000) -> list[ItemChange]:
    """Return which items came and went after a version, as far as it is still kept: oldest first, whole versions.

    Args:
        most: changes to read at once; more, where one version has more.
    """
    async with answering():
        found = await redis.xrange(keys.item_log, min=f"{after + 1}-0", count=most)
        if len(found) == most:
            last = found[-1][0].decode()
            found += await redis.xrange(keys.item_log, min=f"({last}", max=last.split("-")[0])
    return [
        ItemChange(
            int(entry.split(b"-")[0]), fields[b"id"].decode(), was=fields[b"was"] != b"", now=fields[b"now"] != b""
        )
        for entry, fields in found
    ]


async def read_stand_ins(redis: Redis, keys: Keys, version: int) -> dict[str, dict[str, Any]]:
    """Return the catalogue as it was at `version` for events that do not say an item's features; empty once it is gone.

    Such events are of a version of Rebound before, or of an item whose features are large.
    """
    return await kept_items_at(redis, keys, version) or {}


async def kept_items_at(redis: Redis, keys: Keys, version: int) -> dict[str, dict[str, Any]] | None:
    """Return the catalogue as `read_items_at` does; None once it is no longer kept."""
    try:
        return await read_items_at(redis, keys, version)
    except Conflict:
        return None


async def read_items_at(redis: Redis, keys: Keys, version: int) -> dict[str, dict[str, Any]]:
    """Return the catalogue as it was at `version`, by undoing what came later.

    Raises:
        Conflict: the log of changes no longer reaches back so far.
    """
    now, items = await read_items(redis, keys)
    async with answering():
        later = await redis.xrange(keys.item_log, min=f"{version + 1}-0")
    if version > now or not _reaches_back(later, version, now):
        raise Conflict(f"catalogue version {version} of loop {keys.loop!r} is no longer kept", code="version_gone")
    for entry, fields in reversed(later):
        if int(entry.split(b"-")[0]) > now:  # came in after `items` was read
            continue
        item = fields[b"id"].decode()
        if fields[b"was"]:
            items[item] = orjson.loads(fields[b"was"])
        else:
            items.pop(item, None)
    return dict(sorted(items.items(), key=lambda pair: pair[0].encode()))
