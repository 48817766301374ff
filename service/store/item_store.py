"""A loop's items in Redis: the catalogue of now, and every version that the log of changes still covers."""

from __future__ import annotations

from collections.abc import Collection, Mapping
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
    """Return (catalogue version, item id -> features), read at one instant, sorted by id."""
    async with answering(), redis.pipeline(transaction=True) as pipe:
        pipe.hget(keys.record, "catalogue")
        pipe.hgetall(keys.items)
        version, items = await pipe.execute()
    return int(version or 0), {item.decode(): orjson.loads(items[item]) for item in sorted(items)}


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
    reached = {int(entry.split(b"-")[0]) for entry, _ in later}
    whole = not later or later[0][0].endswith(b"-1")  # else the log begins within a version
    if not (version <= now and set(range(version + 1, now + 1)) <= reached and whole):
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
