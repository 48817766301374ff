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
from service.admin.encoders import encoder_for
from service.admin.policies import create_policy
from service.admin.validation import invalid
from service.errors import Conflict, InvalidRequest, NotFound
from service.loop import LOOP_NAME, LoopSettings
from service.records import START, Change, LoopRecord
from service.represent.learned import LearnedSchema
from service.represent.schema import FeatureSchema
from service.represent.stored import AnyEncoder, AnySchema, make_encoder, schema_of
from service.serve.follower import Follower
from service.serve.ids import DEFAULT_LOOP
from service.store import change_log, encoders, event_log, loop_store, policy_store, workers
from service.store.keys import Keys

DEFAULT_POLICY = "adaptive"
ITSELF = "rebound"  # who made what the service makes by itself


async def bootstrap(redis: Redis) -> None:
    """Make the loop `default` where there is no data at all; a loop that somebody deleted stays deleted."""
    if await workers.read_identity(redis) is not None:
        return
    new = new_record(DEFAULT_LOOP, LoopSettings(), None)
    await loop_store.create_loop(redis, new, _made(new, ITSELF))
    record = await loop_store.read_loop(redis, DEFAULT_LOOP)
    with suppress(Conflict):  # another worker starts at the same moment, or a start was cut off
        await create_policy(redis, record, DEFAULT_POLICY, DEFAULT_POLICY, {}, by=ITSELF, serve_alone=True)


async def put_loop(
    redis: Redis, follower: Follower, name: str, settings: Mapping[str, Any], schema: AnySchema | None, *, by: str
) -> bool:
    """Create a loop, or change the given settings of one; True when it was created.

    Raises:
        InvalidRequest: the name is no loop name, the settings do not fit together, or the schema is too large.
        Conflict: the reward range would change, and there are policies, events or early reports of the old one.

    A schema may change at any time. Where there are policies or events, it is appended to the log as a successor of
    the one before: every policy learns the log again through it, and moves.
    """
    if not LOOP_NAME.fullmatch(name):
        raise InvalidRequest("loop", "1 to 64 of: lower-case letters, digits, . _ - (starting with a letter or digit)")
    if schema is not None:
        encoders.check_size(schema.model_dump(mode="json"))  # before anything is written
    new = new_record(name, _settings({}, settings), schema) if await _absent(redis, name) else None
    if new is not None and await loop_store.create_loop(redis, new, _made(new, by)):
        await adoption(redis, follower, Keys(name, new.id), new.epoch)
        return True

    async def attempt(seen: LoopRecord) -> int:
        changes = await _changes(redis, seen, settings, schema)
        return await loop_store.change_loop(redis, seen, changes, _changed(seen, changes, by))

    seen, epoch = await change(redis, name, attempt)
    if schema is not None:
        epoch = await _declare(redis, name, schema, by) or epoch
    await adoption(redis, follower, Keys(name, seen.id), epoch)
    return False


def _made(record: LoopRecord, by: str) -> Change:
    return Change(by, "make loop", None, {"settings": record.settings.model_dump(mode="json"), "schema": record.schema})


def _changed(seen: LoopRecord, changes: Mapping[str, str | bytes | int], by: str) -> Change | None:
    """Return what a change of settings, or of the schema of a loop that is not in use, changes; None: nothing."""
    settings, schema = changes["settings"], changes.get("schema")
    assert isinstance(settings, str)
    old, new = seen.settings.model_dump(mode="json"), orjson.loads(settings)
    differ = [name for name in new if new[name] != old[name]]
    before, after = {name: old[name] for name in differ}, {name: new[name] for name in differ}
    if isinstance(schema, bytes) and changes["encoder"] != seen.encoder:
        before["schema"], after["schema"] = seen.schema, orjson.loads(schema)
    return Change(by, "change settings", before, after) if after else None


async def _absent(redis: Redis, name: str) -> bool:
    try:
        await loop_store.read_loop(redis, name)
    except NotFound:
        return True
    return False


async def _changes(
    redis: Redis, seen: LoopRecord, settings: Mapping[str, Any], schema: AnySchema | None
) -> dict[str, str | bytes | int]:
    """Return the fields of the record that change."""
    changed = _settings(seen.settings.model_dump(), settings)
    changes: dict[str, str | bytes | int] = {"settings": changed.model_dump_json()}
    if changed.reward_range != seen.settings.reward_range:
        await _check_unused(redis, seen, "reward_range")
    if changed.reward_activity:  # from now on there are states
        changes["activity"] = 1
    if schema is not None and not await _used(redis, seen):
        encoder = make_encoder(_with_item_ids(schema, seen))
        changes |= {
            "schema": _dump(encoder.schema),
            "d": encoder.d,
            "encoder": encoder.version,
            "declared": encoder.version if schema.declares else "",
        }
    return changes


async def declared_encoder(redis: Redis, record: LoopRecord) -> AnyEncoder:
    """Return the encoder of the schema that a person declared last; where none is, of the one that declares nothing."""
    first = schema_of(record.schema)
    if record.declared is None and isinstance(first, FeatureSchema) and first.declares:
        return make_encoder(FeatureSchema(item_ids=first.item_ids))
    return await encoder_for(redis, record, record.declared)


async def _declare(redis: Redis, name: str, schema: AnySchema, by: str) -> int | None:
    """Append a person's schema to the log of a loop that is in use, unless it stands already; return the new epoch."""
    seen = await loop_store.read_loop(redis, name)
    encoder, fixed = make_encoder(_with_item_ids(schema, seen)), schema.declares
    if seen.declared == (encoder.version if fixed else None):
        return None
    keys, after = Keys(name, seen.id), {"encoder": encoder.version, "schema": orjson.loads(_dump(encoder.schema))}
    noted = Change(by, "declare schema", {"encoder": seen.declared}, after if fixed else {"encoder": None})
    await change_log.append(redis, keys.change_log, noted)
    await encoders.append_successor(
        redis,
        keys,
        orjson.loads(_dump(encoder.schema)),
        encoder=encoder.version,
        events=0,
        why="declared" if fixed else "left to the service",
        declared=True,
        fixed=fixed,
    )
    return (await loop_store.read_loop(redis, name)).epoch


def _with_item_ids(schema: AnySchema, seen: LoopRecord) -> AnySchema:
    """A loop of version 0.1 keeps its rows as they are, unless the schema says otherwise."""
    if isinstance(schema, LearnedSchema) or "item_ids" in schema.model_fields_set:
        return schema
    return schema.model_copy(update={"item_ids": seen.schema.get("item_ids", True)})


async def _used(redis: Redis, seen: LoopRecord) -> bool:
    """Return whether there are policies, decisions or events of the loop."""
    keys = Keys(seen.name, seen.id)
    if await policy_store.policy_names(redis, keys) or await event_log.read(redis, keys, START, most=1):
        return True
    return bool((await event_log.read_stats(redis, keys)).get("decisions"))


async def _check_unused(redis: Redis, seen: LoopRecord, what: str) -> None:
    """Raise Conflict when policies, decisions, events or early reports were made with the loop's reward range."""
    early = (await event_log.read_stats(redis, Keys(seen.name, seen.id)))["early_waiting"]
    if early or await _used(redis, seen):
        raise Conflict(
            f"policies, decisions, events or early reports of loop {seen.name!r} were made with its {what}; make a new "
            "loop and import the log",
            code=f"{what}_in_use",
        )


def _settings(old: Mapping[str, Any], new: Mapping[str, Any]) -> LoopSettings:
    try:
        return LoopSettings.model_validate({**old, **new})
    except ValidationError as error:
        raise invalid(error, whole="default_reward") from error


def new_record(name: str, settings: LoopSettings, schema: AnySchema | None) -> LoopRecord:
    """Make the record of a new loop."""
    encoder = make_encoder(schema or FeatureSchema())
    return LoopRecord(
        name=name,
        id=uuid4().hex[:12],
        settings=settings,
        schema=orjson.loads(_dump(encoder.schema)),
        d=encoder.d,
        encoder=encoder.version,
        epoch=1,
        catalogue=0,
        traffic={},
        pins={},
        declared=encoder.version if encoder.schema.declares else None,
        activity=settings.reward_activity,
    )


def _dump(schema: AnySchema) -> bytes:
    return orjson.dumps(schema.model_dump(mode="json"))


async def delete_loop(redis: Redis, follower: Follower, name: str, *, by: str) -> None:
    """Delete a loop and all that belongs to it, readable or not.

    Raises:
        NotFound: there is no such loop.
    """
    before: dict[str, Any] = {}
    with suppress(Conflict):  # a record that cannot be read can be deleted
        record = await loop_store.read_loop(redis, name)
        before = {"settings": record.settings.model_dump(mode="json"), "traffic": record.traffic}
    await change_log.append_of_loop(redis, name, Change(by, "delete loop", before, None))
    keys = await loop_store.delete_loop(redis, name)
    await follower.refresh(name)
    if keys is None:
        raise NotFound(f"there is no loop {name!r}", code="unknown_loop")
    await loop_store.remove_keys(redis, keys)
