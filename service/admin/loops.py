"""Make, change and delete loops."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any
from uuid import uuid4

import orjson
from pydantic import ValidationError
from redis.asyncio import Redis

from service.admin.adoption import adoption
from service.admin.change import change
from service.admin.policies import create_policy
from service.admin.validation import invalid
from service.errors import Conflict, InvalidRequest, NotFound
from service.loop import LOOP_NAME, LoopSettings
from service.records import START, LoopRecord
from service.represent.encoder import Encoder
from service.represent.schema import FeatureSchema
from service.serve.follower import Follower
from service.serve.ids import DEFAULT_LOOP
from service.store import event_log, loop_store, policy_store, workers
from service.store.keys import Keys

DEFAULT_POLICY = "adaptive"


async def bootstrap(redis: Redis) -> None:
    """Make the loop `default` where there is no data at all; a loop that somebody deleted stays deleted."""
    if await workers.read_identity(redis) is not None:
        return
    await loop_store.create_loop(redis, new_record(DEFAULT_LOOP, LoopSettings(), FeatureSchema()))
    record = await loop_store.read_loop(redis, DEFAULT_LOOP)
    with suppress(Conflict):  # another worker starts at the same moment, or a start was cut off
        await create_policy(redis, record, DEFAULT_POLICY, DEFAULT_POLICY, {}, serve_alone=True)


async def put_loop(
    redis: Redis, follower: Follower, name: str, settings: Mapping[str, Any], schema: FeatureSchema | None
) -> bool:
    """Create a loop, or change the given settings of one; True when it was created.

    Raises:
        InvalidRequest: the name is no loop name, or the settings do not fit together.
        Conflict: the schema or the reward range would change, and there are policies or events of the old one.
    """
    if not LOOP_NAME.fullmatch(name):
        raise InvalidRequest("loop", "1 to 64 of: lower-case letters, digits, . _ - (starting with a letter or digit)")
    new = new_record(name, _settings({}, settings), schema or FeatureSchema()) if await _absent(redis, name) else None
    if new is not None and await loop_store.create_loop(redis, new):
        await adoption(redis, follower, Keys(name, new.id), new.epoch)
        return True

    async def attempt(seen: LoopRecord) -> int:
        return await loop_store.change_loop(redis, seen, await _changes(redis, seen, settings, schema))

    seen, epoch = await change(redis, name, attempt)
    await adoption(redis, follower, Keys(name, seen.id), epoch)
    return False


async def _absent(redis: Redis, name: str) -> bool:
    try:
        await loop_store.read_loop(redis, name)
    except NotFound:
        return True
    return False


async def _changes(
    redis: Redis, seen: LoopRecord, settings: Mapping[str, Any], schema: FeatureSchema | None
) -> dict[str, str | bytes | int]:
    """Return the fields of the record that change."""
    changed = _settings(seen.settings.model_dump(), settings)
    changes: dict[str, str | bytes | int] = {"settings": changed.model_dump_json()}
    if changed.reward_range != seen.settings.reward_range:
        await _check_unused(redis, seen, "reward_range")
    if schema is not None and "item_ids" not in schema.model_fields_set:  # a loop of 0.1 keeps its rows as they are
        schema = schema.model_copy(update={"item_ids": seen.schema.get("item_ids", True)})
    encoder = Encoder(schema) if schema is not None else None
    if encoder is not None and encoder.version != seen.encoder:
        await _check_unused(redis, seen, "schema")
        changes |= {"schema": _dump(encoder.schema), "d": encoder.d, "encoder": encoder.version}
    return changes


async def _check_unused(redis: Redis, seen: LoopRecord, what: str) -> None:
    """Raise Conflict when policies, decisions or events were made with the loop's schema or reward range."""
    keys = Keys(seen.name, seen.id)
    used = await policy_store.policy_names(redis, keys) or await event_log.read(redis, keys, START, most=1)
    if used or (await event_log.read_stats(redis, keys)).get("decisions"):
        raise Conflict(
            f"policies, decisions or events of loop {seen.name!r} were made with its {what}; make a new loop and "
            "import the log",
            code=f"{what}_in_use",
        )


def _settings(old: Mapping[str, Any], new: Mapping[str, Any]) -> LoopSettings:
    try:
        return LoopSettings.model_validate({**old, **new})
    except ValidationError as error:
        raise invalid(error, whole="default_reward") from error


def new_record(name: str, settings: LoopSettings, schema: FeatureSchema) -> LoopRecord:
    """Make the record of a new loop."""
    encoder = Encoder(schema)
    return LoopRecord(
        name=name,
        id=uuid4().hex[:12],
        settings=settings,
        schema=orjson.loads(_dump(schema)),
        d=encoder.d,
        encoder=encoder.version,
        epoch=1,
        catalogue=0,
        traffic={},
        pins={},
    )


def _dump(schema: FeatureSchema) -> bytes:
    return orjson.dumps(schema.model_dump(mode="json"))


async def delete_loop(redis: Redis, follower: Follower, name: str) -> None:
    """Delete a loop and all that belongs to it, readable or not.

    Raises:
        NotFound: there is no such loop.
    """
    keys = await loop_store.delete_loop(redis, name)
    await follower.refresh(name)
    if keys is None:
        raise NotFound(f"there is no loop {name!r}", code="unknown_loop")
    await loop_store.remove_keys(redis, keys)
