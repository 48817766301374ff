"""Moves the keys of version 0.1 to where this version looks for them, once.

Version 0.1 kept all of a loop under the tag `{loop:0}`, without the loop's id, and a snapshot in a key of its own. The
upgrade stops at nothing half done: it may be killed at any point, and whoever starts next goes on. It refuses to begin
while a process of the old version is connected. This is a stop-and-start upgrade; from format 2 on, both versions may
run side by side.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from uuid import uuid4

import orjson
import structlog
from redis.asyncio import Redis

from service.errors import StoreUnavailable
from service.loop import LOOP_NAME
from service.store.codec import FORMAT, NewerFormat
from service.store.connection import answering, end, now, script
from service.store.keys import FORMAT as FORMAT_KEY
from service.store.keys import LOOPS, STORE, Keys, loop_record

LOCK = "rebound:upgrade"  # string with a time to live: who upgrades just now
LOCK_MS = 10_000
OLD_CLIENTS = ("rebound-api", "rebound-learner")
PAUSE_S = 0.5
BATCH = 1000
# The keys that version 0.1 had under the tag of a loop: those that a loop has once, those of each of its policies, and
# those that grow with its traffic. Three were kept in another form: `loop`, `imported` and `snapshot:...`.
HOME = frozenset({"items", "item-log", "policies", "adopted"})
HOME_OF_POLICY = frozenset({"policy", "state", "versions", "history", "lease", "fence"})
TRAFFIC = frozenset({"pending", "events", "dead", "stats"})
TRAFFIC_OF_DECISION = "decision"
OLD_KEY = re.compile(rf"rebound:\{{(?P<loop>{LOOP_NAME.pattern}):0\}}:(?P<rest>.+)", re.DOTALL)

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
        holder = asyncio.create_task(_hold(redis, token))
        try:
            await _move_all(redis)
            await redis.set(FORMAT_KEY, FORMAT)
        finally:
            await end(holder)
            await script("renew_lease")(redis, (LOCK,), (token, 1))
    log.info("the data was upgraded", format=FORMAT)
    return None


async def _hold(redis: Redis, token: str) -> None:
    """Keep the lock. Should it be lost all the same, two processes move the same keys, which does no harm."""
    while True:
        await asyncio.sleep(LOCK_MS / 3000)
        await script("renew_lease")(redis, (LOCK,), (token, LOCK_MS))


async def _move_all(redis: Redis) -> None:
    """Move every loop. Its record goes last: as long as it stands at its old place, the loop is not done."""
    started = await now(redis)
    loops: dict[str, Keys] = {}
    for name in sorted(member.decode() for member in await redis.smembers(LOOPS)):
        if await redis.exists(_old(name, "loop")) and (loop_id := await _once(redis, _old(name, "loop"))):
            loops[name] = Keys(name, loop_id)
            await _prepare_policies(redis, loops[name])
    await _move_keys(redis, loops)
    for name in loops:
        await _keep_rows(redis, _old(name, "loop"))
        await redis.hset(_old(name, "loop"), "v", FORMAT)
    await _rename(redis, {_old(name, "loop"): loop_record(name) for name in loops})
    log.info("keys moved", loops=len(loops), seconds=round(await now(redis) - started, 1))


def _old(loop: str, rest: str) -> str:
    return f"rebound:{{{loop}:0}}:{rest}"


async def _once(redis: Redis, key: str) -> str | None:
    """Return the id of a record, given a new one if it has none; None where another process moved it meanwhile."""
    await redis.hsetnx(key, "id", uuid4().hex[:12])
    found: bytes | None = await redis.hget(key, "id")
    return None if found is None else found.decode()


async def _keep_rows(redis: Redis, loop: str) -> None:
    """Say in a loop's schema that its rows hold no ids, as they did not in 0.1: the logged ones must stay right."""
    schema = await redis.hget(loop, "schema")
    if schema is not None:
        await redis.hset(loop, "schema", orjson.dumps({"item_ids": False, **orjson.loads(schema)}))


async def _prepare_policies(redis: Redis, keys: Keys) -> None:
    """Give the policies of a loop their ids and formats; a name without a whole record is no policy."""
    names = _old(keys.loop, "policies")
    for policy in [member.decode() for member in await redis.smembers(names)]:
        record = _old(keys.loop, f"policy:{policy}")
        if await _whole(redis, record):
            await _once(redis, record)
            await redis.hset(record, "v", FORMAT)
        elif not await redis.exists(keys.policy(policy)):  # else an upgrade that was cut off has moved it
            await redis.srem(names, policy)


async def _whole(redis: Redis, policy: str) -> bool:
    """Return whether a policy's record is whole: 0.1 wrote it in two steps, and a crash could come in between."""
    return bool(await redis.hexists(policy, "alarms"))


async def _move_keys(redis: Redis, loops: Mapping[str, Keys]) -> None:
    """Move all keys of these loops but their records, in one pass over the data."""
    renames: dict[str, str] = {}
    async for key in redis.scan_iter(match="rebound:{*:0}:*", count=1000):
        found = OLD_KEY.fullmatch(key.decode())
        keys = loops.get(found["loop"]) if found else None
        if found is None or keys is None:
            continue
        kind, _, rest = found["rest"].partition(":")
        if kind == "snapshot":
            await _move_snapshot(redis, keys, found[0], rest)
        elif found["rest"] == "imported":
            await _move_imported(redis, keys, found[0])
        elif kind == "policy" and not await _whole(redis, found[0]):
            await redis.unlink(found[0])
        elif kind in HOME_OF_POLICY or found["rest"] in HOME:
            renames[found[0]] = keys.home + found["rest"]
        elif kind == TRAFFIC_OF_DECISION or found["rest"] in TRAFFIC:
            renames[found[0]] = keys.partition().prefix + found["rest"]
        if len(renames) >= BATCH:
            await _rename(redis, renames)
    await _rename(redis, renames)


async def _move_snapshot(redis: Redis, keys: Keys, key: str, rest: str) -> None:
    policy, version = rest.rsplit(":", 1)
    snapshot = await redis.get(key)
    if snapshot is not None:  # a scan may show a key twice
        await redis.hset(keys.snapshots(policy), version, snapshot)
        await redis.unlink(key)


async def _move_imported(redis: Redis, keys: Keys, key: str) -> None:
    """Turn the set of event ids into one with numbers. They came before all that are imported from now on."""
    members = [member async for member in redis.sscan_iter(key, count=1000)]
    for at in range(0, len(members), BATCH):
        numbered = {member: at + i for i, member in enumerate(members[at : at + BATCH])}
        await redis.zadd(keys.partition().imported, numbered, nx=True)
    await redis.unlink(key)


async def _rename(redis: Redis, renames: dict[str, str]) -> None:
    """Rename keys, and empty the dict.

    A key that a scan showed twice is gone the second time, which is no error. What stands at the new place stays.
    """
    async with redis.pipeline(transaction=False) as pipe:
        for old, new in renames.items():
            pipe.renamenx(old, new)
        for result in await pipe.execute(raise_on_error=False):
            if isinstance(result, Exception) and "no such key" not in str(result):
                raise result
    renames.clear()
