"""The encoders of a loop: its first, and those that came later."""

from __future__ import annotations

from redis.asyncio import Redis

from service.records import LoopRecord
from service.represent.stored import AnyEncoder, make_encoder, schema_of, stored_encoder
from service.store import encoders
from service.store.keys import Keys


async def encoder_for(redis: Redis, loop: LoopRecord, version: str | None) -> AnyEncoder:
    """Return the encoder of this version; None is the loop's first.

    Raises:
        ValueError: its schema is not kept, or this code makes another encoder of it.
    """
    if version in (None, loop.encoder):
        return make_encoder(schema_of(loop.schema))
    schemas = await encoders.read_schemas(redis, Keys(loop.name, loop.id), [version])
    return stored_encoder(version, schemas.get(version))
