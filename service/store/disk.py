"""Redis's own files: the append-only file and the snapshot, which hold what was deleted until they are written anew."""

from __future__ import annotations

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from service.store.connection import answering


async def rewrite(redis: Redis) -> list[str] | None:
    """Ask Redis to write its files anew.

    Returns:
        What it cannot, in sentences for people; None: it is at it already, for somebody else; ask again later.
    """
    about = await _about(redis)
    if about["aof_rewrite_in_progress"] or about["aof_rewrite_scheduled"] or about["rdb_bgsave_in_progress"]:
        return None
    refused = []
    if about["aof_enabled"]:
        refused += await _ask(redis, "BGREWRITEAOF")
    if about["saves"]:
        refused += await _ask(redis, "BGSAVE", "SCHEDULE")
    return refused


async def rewritten(redis: Redis) -> list[str] | None:
    """Return what failed of what `rewrite` asked for, in sentences for people; None: Redis is still at it."""
    about = await _about(redis)
    if about["aof_rewrite_in_progress"] or about["aof_rewrite_scheduled"] or about["rdb_bgsave_in_progress"]:
        return None
    failed = []
    if about["aof_enabled"] and about["aof_last_bgrewrite_status"] != "ok":
        failed.append("Redis could not rewrite its append-only file; see its log, then run BGREWRITEAOF")
    if about["saves"] and about["rdb_last_bgsave_status"] != "ok":
        failed.append("Redis could not write a new snapshot; see its log, then run BGSAVE")
    return failed


async def _about(redis: Redis) -> dict[str, int | str | bool]:
    """Return how Redis keeps its data, and what it is at."""
    async with answering():
        about: dict[str, int | str | bool] = dict(await redis.info("persistence"))
        try:
            about["saves"] = bool((await redis.config_get("save")).get("save"))
        except ResponseError:  # a managed one does not say; a snapshot is then written in vain at worst
            about["saves"] = True
    return about


async def _ask(redis: Redis, *command: str) -> list[str]:
    try:
        async with answering():
            await redis.execute_command(*command)
    except ResponseError as error:
        return [f"Redis refused {command[0]} ({error}): its file holds the id until it is written anew"]
    return []
