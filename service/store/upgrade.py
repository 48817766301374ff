"""Moves the keys of version 0.1 to where this version looks for them, once.

Version 0.1 kept all of a loop under the tag `{loop:0}`, without the loop's id, and a snapshot in a key of its own. The
upgrade stops at nothing half done: it may be killed at any point, and whoever starts next goes on. It refuses to begin
while a process of the old version is connected. This is a stop-and-start upgrade; from format 2 on, both versions may
run side by side.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from uuid import uuid4

import structlog
from redis.asyncio import Redis

from service.errors import StoreUnavailable
from service.store.codec import FORMAT, NewerFormat
from service.store.connection import answering, now
from service.store.keys import FORMAT as FORMAT_KEY
from service.store.keys import LOOPS, STORE, Keys, loop_record

LOCK = "rebound:upgrade"  # string with a time to live: who upgrades just now
LOCK_MS = 10_000
OLD_CLIENTS = ("rebound-api", "rebound-learner")
PAUSE_S = 0.5
BATCH = 1000
HOME = frozenset({"items", "item-log", "policies", "adopted"})  # keys of 0.1 that a loop has once ...
HOME_OF_POLICY = ("policy:", "state:", "versions:", "history:", "lease:", "fence:")  # ... and those of its policies

log = structlog.get_logger()


async def upgrade(redis: Redis, stop: asyncio.Event | None = None) -> None:
    """Bring the data in Redis to this version's layout; return when it is there, or when `stop` is set.

    Waits for Redis, for processes of the old version to end, and for another process that upgrades.

    Raises:
        NewerFormat: a newer version has written here.
    """
    told = ""
    while stop is None or not stop.is_set():
        try:
            waiting_for = await _try(redis)
        except StoreUnavailable:
            waiting_for = "redis does not answer"
        if waiting_for is None:
            return
        if waiting_for != told:
            log.warning("waiting", why=waiting_for)
            told = waiting_for
        await asyncio.sleep(PAUSE_S)


async def _try(redis: Redis) -> str | None:
    """Upgrade if it can be done now; None when the data is in this version's layout, else why it is not."""
    async with answering():
        found = await redis.get(FORMAT_KEY)
        if found is None and not await redis.exists(STORE):
            await redis.set(FORMAT_KEY, FORMAT, nx=True)  # no data of ours yet
            return None
        if found is not None and int(found) > FORMAT:
            raise NewerFormat("the data in Redis", int(found))
        if found is not None and int(found) == FORMAT:
            return None
        old = [client["name"] for client in await redis.client_list() if client["name"] in OLD_CLIENTS]
        if old:
            return f"{len(old)} connections of the old version are open ({', '.join(sorted(set(old)))}): stop it first"
        token = uuid4().hex
        if not await redis.set(LOCK, token, nx=True, px=LOCK_MS):
            return "another process upgrades the data"
        holder = asyncio.create_task(_hold(redis))
        try:
            await _move_all(redis)
            await redis.set(FORMAT_KEY, FORMAT)
        finally:
            holder.cancel()
            with suppress(asyncio.CancelledError):
                await holder
            await redis.delete(LOCK)
    log.info("the data was upgraded", format=FORMAT)
    return None


async def _hold(redis: Redis) -> None:
    while True:
        await asyncio.sleep(LOCK_MS / 3000)
        await redis.pexpire(LOCK, LOCK_MS)


async def _move_all(redis: Redis) -> None:
    started = await now(redis)
    for name in [member.decode() for member in await redis.smembers(LOOPS)]:
        await _move_loop(redis, name)
    log.info("keys moved", seconds=round(await now(redis) - started, 1))


async def _move_loop(redis: Redis, name: str) -> None:
    """Move one loop. Its record goes last: as long as it stands at its old place, the loop is not done."""
    old = f"rebound:{{{name}:0}}:"
    if not await redis.exists(old + "loop"):
        return
    loop_id = await _once(redis, old + "loop", "id")
    keys = Keys(name, loop_id)
    for policy in [member.decode() for member in await redis.smembers(old + "policies")]:
        if await redis.hexists(old + f"policy:{policy}", "alarms"):
            await _once(redis, f"{old}policy:{policy}", "id")
            await redis.hset(f"{old}policy:{policy}", "v", FORMAT)
        elif not await redis.exists(keys.policy(policy)):  # a start of 0.1 was cut off between two writes
            await redis.srem(old + "policies", policy)
            await redis.unlink(f"{old}policy:{policy}")
    renames: dict[str, str] = {}
    async for key in redis.scan_iter(match=old + "*", count=1000):
        rest = key.decode().removeprefix(old)
        if rest == "loop" or key.decode().startswith(keys.partition().prefix):
            continue
        if rest.startswith("snapshot:"):
            await _move_snapshot(redis, keys, key.decode(), rest)
        elif rest == "imported":
            await _move_imported(redis, keys, key.decode())
        else:
            renames[key.decode()] = _new_name(keys, rest)
        if len(renames) == BATCH:
            await _rename(redis, renames)
    await _rename(redis, renames)
    await redis.hset(old + "loop", "v", FORMAT)
    await redis.rename(old + "loop", loop_record(name))


async def _once(redis: Redis, key: str, field: str) -> str:
    """Return a field of a hash, given a new id if it has none; of a hash that is there."""
    if await redis.exists(key):
        await redis.hsetnx(key, field, uuid4().hex[:12])
    value = await redis.hget(key, field)
    return value.decode() if value else ""


async def _move_snapshot(redis: Redis, keys: Keys, key: str, rest: str) -> None:
    policy, version = rest.removeprefix("snapshot:").rsplit(":", 1)
    await redis.hset(keys.snapshots(policy), version, await redis.get(key) or b"")
    await redis.unlink(key)


async def _move_imported(redis: Redis, keys: Keys, key: str) -> None:
    members = [member async for member in redis.sscan_iter(key, count=1000)]
    for at in range(0, len(members), BATCH):
        numbered = {member: at + i for i, member in enumerate(members[at : at + BATCH])}
        await redis.zadd(keys.partition().imported, numbered, nx=True)
    await redis.unlink(key)


def _new_name(keys: Keys, rest: str) -> str:
    at_home = rest in HOME or rest.startswith(HOME_OF_POLICY)
    return (keys.home if at_home else keys.partition().prefix) + rest


async def _rename(redis: Redis, renames: dict[str, str]) -> None:
    """Rename keys and empty the dict. A key that a scan showed twice is gone the second time, which is no error."""
    async with redis.pipeline(transaction=False) as pipe:
        for old, new in renames.items():
            pipe.rename(old, new)
        for result in await pipe.execute(raise_on_error=False):
            if isinstance(result, Exception) and "no such key" not in str(result):
                raise result
    renames.clear()
