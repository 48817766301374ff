"""The encoders of a loop: its first, and those that came later."""

from __future__ import annotations

from redis.asyncio import Redis

from service.records import LoopRecord
from service.represent.encoder import Encoder
from service.represent.schema import FeatureSchema
from service.represent.stored import stored_encoder
from service.store import encoders
from service.store.keys import Keys


async def encoder_for(redis: Redis, loop: LoopRecord, version: str | None) -> Encoder:
    """Return the encoder of this version; None is the loop's first.

    Raises:
        ValueError: its schema is not kept, or this code makes another encoder of it.
    """
    if version in (None, loop.encoder):
        return Encoder(FeatureSchema.model_validate(loop.schema))
    schemas = await encoders.read_schemas(redis, Keys(loop.name, loop.id), [version])
    return stored_encoder(version, schemas.get(version))
