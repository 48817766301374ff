"""Loops in Redis: settings, catalogue, traffic, and which worker has adopted what.

Every administrative change raises the loop's epoch in the same transaction and is announced on one channel. A worker
that serves the new state writes the epoch down; the call that made the change waits for all live workers to have done
so (`adopted`), so that a client reads its own writes whichever worker answers next.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import orjson
from redis.asyncio import Redis

from service.errors import Conflict, NotFound, StoreUnavailable
from service.loop import LoopSettings
from service.store.connection import GONE, script
from service.store.keys import CHANGES, LOOPS, STORE, WORKERS, Keys

WORKER_TTL_S = 3.0  # a worker that has not been heard of for so long does not count as live
ITEM_LOG = 100_000  # changes of the catalogue that can be undone, for replays


@dataclass(frozen=True)
class LoopRecord:
    """The loop's hash, decoded."""

    name: str
    settings: LoopSettings
    schema: dict[str, Any]
    d: int
    encoder: str
    epoch: int
    catalogue: int
    traffic: dict[str, float]
    pins: dict[str, int]


@asynccontextmanager
async def answering() -> AsyncIterator[None]:
    """Turns a Redis that does not answer into `StoreUnavailable`."""
    try:
        yield
    except GONE as error:
        raise StoreUnavailable("Redis does not answer; nothing was acknowledged") from error


async def store_identity(redis: Redis) -> str:
    """The identity of the data in Redis; made when there is none."""
    async with answering():
        await redis.set(STORE, uuid4().hex, nx=True)
        identity: bytes = await redis.get(STORE)
        return identity.decode()


async def read_identity(redis: Redis) -> str | None:
    """The identity of the data in Redis, None when it holds none of ours."""
    async with answering():
        identity = await redis.get(STORE)
        return identity.decode() if identity else None


async def loop_names(redis: Redis) -> list[str]:
    async with answering():
        return sorted(name.decode() for name in await redis.smembers(LOOPS))


async def create_loop(redis: Redis, record: LoopRecord) -> bool:
    """False when it exists already (and nothing was changed)."""
    keys = Keys(record.name)
    async with answering():
        created = await redis.hsetnx(keys.loop, "d", record.d)
        if created:
            await redis.hset(
                keys.loop,
                mapping={
                    "settings": record.settings.model_dump_json(),
                    "schema": orjson.dumps(record.schema),
                    "encoder": record.encoder,
                    "catalogue": record.catalogue,
                    "traffic": orjson.dumps(record.traffic),
                    "pins": orjson.dumps(record.pins),
                    "epoch": 1,
                },
            )
        await redis.sadd(LOOPS, record.name)
        await redis.publish(CHANGES, record.name)
    return bool(created)


async def read_loop(redis: Redis, name: str) -> LoopRecord:
    """Raises NotFound when there is no such loop."""
    async with answering():
        stored = await redis.hgetall(Keys(name).loop)
    if b"epoch" not in stored:
        raise NotFound(f"there is no loop {name!r}; PUT /loops/{name} makes it", code="unknown_loop")
    return LoopRecord(
        name=name,
        settings=LoopSettings.model_validate_json(stored[b"settings"]),
        schema=orjson.loads(stored[b"schema"]),
        d=int(stored[b"d"]),
        encoder=stored[b"encoder"].decode(),
        epoch=int(stored[b"epoch"]),
        catalogue=int(stored[b"catalogue"]),
        traffic=orjson.loads(stored[b"traffic"]),
        pins=orjson.loads(stored[b"pins"]),
    )


async def change_loop(redis: Redis, name: str, changes: Mapping[str, str | bytes | int]) -> int:
    """Write fields of the loop's hash; the new epoch."""
    keys = Keys(name)
    async with answering(), redis.pipeline(transaction=True) as pipe:
        if changes:
            pipe.hset(keys.loop, mapping=dict(changes))
        pipe.hincrby(keys.loop, "epoch", 1)
        pipe.publish(CHANGES, name)
        results = await pipe.execute()
    return int(results[-2])


async def delete_loop(redis: Redis, name: str) -> None:
    """Everything under the loop's prefix goes; its name first, so that nobody serves from the rest."""
    async with answering():
        await redis.srem(LOOPS, name)
        await redis.publish(CHANGES, name)
        async for key in redis.scan_iter(match=Keys(name).prefix.replace("[", "\\[") + "*", count=1000):
            await redis.unlink(key)


# ---- catalogue


async def change_items(redis: Redis, name: str, changes: Mapping[str, Mapping[str, Any] | None]) -> int:
    """Upsert items (None: delete), all or nothing; the loop's new epoch."""
    keys = Keys(name)
    args: list[str | bytes | int] = [ITEM_LOG]
    for item, features in changes.items():
        args += (item, b"" if features is None else orjson.dumps(features))
    await script("items")(redis, (keys.items, keys.item_log, keys.loop), args)
    async with answering():
        await redis.publish(CHANGES, name)
        return int(await redis.hget(keys.loop, "epoch"))


async def read_items(redis: Redis, name: str) -> tuple[int, dict[str, dict[str, Any]]]:
    """(catalogue version, item id -> features), read at one instant, sorted by id."""
    keys = Keys(name)
    async with answering(), redis.pipeline(transaction=True) as pipe:
        pipe.hget(keys.loop, "catalogue")
        pipe.hgetall(keys.items)
        version, items = await pipe.execute()
    return int(version or 0), {item.decode(): orjson.loads(items[item]) for item in sorted(items)}


async def read_items_at(redis: Redis, name: str, version: int) -> dict[str, dict[str, Any]]:
    """The catalogue as it was at `version`, by undoing what came later.

    Raises:
        Conflict: the log of changes no longer reaches back so far.
    """
    now, items = await read_items(redis, name)
    async with answering():
        later = await redis.xrange(Keys(name).item_log, min=f"{version + 1}-0")
    reached = {int(entry.split(b"-")[0]) for entry, _ in later}
    if not set(range(version + 1, now + 1)) <= reached:
        raise Conflict(f"catalogue version {version} of loop {name!r} is no longer kept", code="version_gone")
    for entry, fields in reversed(later):
        if int(entry.split(b"-")[0]) > now:  # came in after `items` was read
            continue
        item = fields[b"id"].decode()
        if fields[b"was"]:
            items[item] = orjson.loads(fields[b"was"])
        else:
            items.pop(item, None)
    return dict(sorted(items.items(), key=lambda pair: pair[0].encode()))


# ---- workers


async def heartbeat(redis: Redis, worker: str) -> None:
    async with answering():
        await redis.zadd(WORKERS, {worker: await _now(redis)})
        await redis.zremrangebyscore(WORKERS, "-inf", await _now(redis) - 60)


async def sign_off(redis: Redis, worker: str) -> None:
    """A worker that stops says so, and no call waits for it."""
    async with answering():
        await redis.zrem(WORKERS, worker)


async def live_workers(redis: Redis) -> set[str]:
    async with answering():
        names = await redis.zrangebyscore(WORKERS, await _now(redis) - WORKER_TTL_S, "+inf")
        return {name.decode() for name in names}


async def adopt(redis: Redis, loop: str, worker: str, epoch: int) -> None:
    async with answering():
        await redis.hset(Keys(loop).adopted, worker, epoch)


async def adopted(redis: Redis, loop: str, epoch: int, *, within_s: float = 10.0) -> tuple[list[str], list[str]]:
    """Waits until every live worker serves `epoch` of the loop: (those that do, live ones that do not)."""
    deadline = time.monotonic() + within_s
    pause = 0.002
    while True:
        live = await live_workers(redis)
        async with answering():
            epochs = await redis.hgetall(Keys(loop).adopted)
        there = {worker.decode() for worker, at in epochs.items() if int(at) >= epoch}
        if live <= there or time.monotonic() > deadline:
            return sorted(live & there), sorted(live - there)
        await asyncio.sleep(pause)
        pause = min(pause * 1.5, 0.05)


async def _now(redis: Redis) -> float:
    seconds, micros = await redis.time()
    return float(seconds + micros / 1e6)
