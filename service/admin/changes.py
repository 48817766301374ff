"""What was changed, and by whom."""

from __future__ import annotations

from redis.asyncio import Redis

from service.errors import NotFound
from service.records import Change
from service.store import change_log, loop_store
from service.store.keys import Keys


async def list_changes(
    redis: Redis, loop: str, *, data: bool, before: str | None, most: int
) -> list[tuple[str, Change]]:
    """Return (id, change) of a loop, newest first, older than the id `before`.

    Args:
        data: those of items and imports; else those of settings, policies and traffic, with what happened to
            whole loops of this name: deletions, restores.

    Raises:
        NotFound: there is no such loop, and none was deleted that is remembered.
    """
    whole = [] if data else await change_log.read_of_loop(redis, loop)
    kept: list[tuple[str, Change]] = []
    try:
        record = await loop_store.read_loop(redis, loop)
        keys = Keys(loop, record.id)
        kept = await change_log.read(redis, keys.data_changes if data else keys.change_log, before=before, most=most)
    except NotFound:
        if not whole:
            raise
    return change_log.merged(kept, whole, before=before)[:most]
