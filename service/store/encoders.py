"""The encoders of a loop in Redis, but for its first, which its record holds; and the successors in the log.

An encoder is kept for as long as a kept version, a trial, the beginning of a policy, or the loop itself names it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any

import orjson
from redis.asyncio import Redis

from service.errors import InvalidRequest, NotFound, StaleEpoch
from service.records import Successor
from service.store import loop_store, policy_store
from service.store.announcements import announce_use
from service.store.codec import successor_body
from service.store.connection import answering, script
from service.store.keys import CHANGES, Keys

MOST_BYTES = 1 << 20  # of a schema as JSON
MOST_OF_A_POLICY = 8  # encoders for which versions of one policy are kept


async def read_schemas(redis: Redis, keys: Keys, versions: Sequence[str] | None = None) -> dict[str, dict[str, Any]]:
    """Return version -> schema of the loop's encoders but the first; of `versions`, those that are kept."""
    async with answering():
        if versions is None:
            found = await redis.hgetall(keys.encoders)
        elif versions:
            values = await redis.hmget(keys.encoders, list(versions))
            found = {name.encode(): value for name, value in zip(versions, values, strict=True) if value is not None}
        else:
            found = {}
    return {version.decode(): orjson.loads(schema) for version, schema in found.items()}


async def count(redis: Redis, keys: Keys) -> int:
    """Return the number of encoders that are kept beside the first."""
    async with answering():
        return int(await redis.hlen(keys.encoders))


async def fitted_on(redis: Redis, keys: Keys) -> int:
    """Return the number of events that the newest successor was fitted on; 0: none, or a person declared it."""
    async with answering():
        found = await redis.hget(keys.partition().successor, "events")
    return int(found or 0)


def check_size(schema: Mapping[str, Any]) -> None:
    """Refuse a schema, given as JSON, that is too large to be kept.

    Raises:
        InvalidRequest: it is.
    """
    if (size := len(orjson.dumps(schema))) > MOST_BYTES:
        raise InvalidRequest("schema", f"takes {size} bytes as JSON; at most {MOST_BYTES} are kept")


async def append_successor(
    redis: Redis,
    keys: Keys,
    schema: Mapping[str, Any],
    *,
    encoder: str,
    events: int,
    why: str,
    declared: bool = False,
    fixed: bool = False,
) -> str | None:
    """Append a successor to the log: from there on, every policy of the loop tries this encoder.

    Two that append the same append it once. Should the process die between the two writes, nothing is lost: policies
    that are there learn the entry, and those that are made later meet it in the log.

    Args:
        schema: as JSON; `encoder` is the version that it makes.
        events: that the schema was fitted on.
        why: for people.
        declared: a person did; the policies move without a trial.
        fixed: only a person may replace it.

    Returns:
        The position of the entry. None where the newest successor is the same, or where this one is not declared and
        the newest is fixed, or was fitted on as many events or more.

    Raises:
        NotFound: the loop is gone.
        InvalidRequest: the schema is too large.
    """
    check_size(schema)
    record = await loop_store.read_loop(redis, keys.loop)
    body = successor_body(Successor("", encoder, schema, events, why, declared=declared, catalogue=record.catalogue))
    part = keys.partition()
    answer = await script("append_successor")(
        redis, (part.events, part.successor), (encoder, events, int(declared), int(fixed), body)
    )
    if answer is None:
        return None
    position: str = answer.decode()
    async with answering():
        await announce_use(redis, keys.loop)
    await name_successor(
        redis,
        keys,
        schema,
        encoder=encoder,
        position=position,
        catalogue=record.catalogue,
        declared=(encoder if fixed else "") if declared else None,
    )
    return position


async def name_successor(
    redis: Redis,
    keys: Keys,
    schema: Mapping[str, Any],
    *,
    encoder: str,
    position: str,
    catalogue: int,
    declared: str | None = None,
) -> int:
    """Say in the loop's record which successor is the newest; return the loop's new epoch.

    Args:
        declared: version of the encoder that a person declared, "" where a person left it to the service again; None
            leaves that as it is.

    Raises:
        NotFound: the loop is gone.
    """
    newest = {"encoder": encoder, "position": position, "catalogue": catalogue}
    answer = await script("name_successor")(
        redis,
        (keys.record, keys.encoders),
        (
            CHANGES,
            keys.loop,
            keys.id,
            encoder,
            orjson.dumps(schema),
            position,
            orjson.dumps(newest),
            "=" if declared is None else declared,
        ),
    )
    return loop_store.new_epoch(answer, keys.loop)


async def fitted_to(redis: Redis, keys: Keys, spellings: Collection[bytes]) -> list[str]:
    """Return the versions of encoders whose schemas hold one of these texts, but for those that are to stay.

    Those are the one that a person declared last, and those that policies began with: they need them.
    """
    stays = {(await loop_store.read_loop(redis, keys.loop)).declared}
    for name in await policy_store.policy_names(redis, keys):
        with suppress(NotFound):  # deleted this very moment
            stays.update((await policy_store.read_policy(redis, keys, name)).needs)
    async with answering():
        schemas = await redis.hgetall(keys.encoders)
    found = [version.decode() for version, schema in schemas.items() if any(one in schema for one in spellings)]
    return [version for version in found if version not in stays]


async def withdraw(redis: Redis, keys: Keys, versions: Collection[str]) -> None:
    """Take back that one of these is the newest: the loop begins with its first encoder again, and fits another.

    The log is without them already.
    """
    if not versions:
        return
    async with answering():
        newest = await redis.hget(keys.partition().successor, "encoder")
        if newest is not None and newest.decode() in versions:
            await redis.delete(keys.partition().successor)
    while (loop := await loop_store.read_loop(redis, keys.loop)).newest is not None:
        if loop.newest["encoder"] not in versions:
            return
        with suppress(StaleEpoch):  # somebody else changed the loop meanwhile
            await loop_store.change_loop(redis, loop, {"newest": orjson.dumps(None)})


async def forget_unused(redis: Redis, keys: Keys) -> int:
    """Remove the encoders that nothing names; return their number."""
    async with answering():
        if not await redis.exists(keys.encoders):
            return 0
    names = await policy_store.policy_names(redis, keys)
    removed = await script("forget_encoders")(
        redis,
        (
            keys.record,
            keys.encoders,
            keys.policies,
            *(keys.policy(name) for name in names),
            *(keys.versions(name) for name in names),
        ),
        (keys.id, len(names)),
    )
    return int(removed)
