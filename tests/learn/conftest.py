"""A loop of one's own for every test that runs the learner's parts on a real Redis."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from service.records import LoopRecord
from service.store import loop_store
from service.store.keys import Keys
from tests.builders import loop_of, store_loop


@pytest.fixture
async def loop(redis: Redis) -> AsyncIterator[LoopRecord]:
    """Store a loop that no running learner knows, and remove it afterwards."""
    record = loop_of(retention=1000)
    keys = await store_loop(redis, record)
    yield record
    await redis.delete(keys.record)
    await loop_store.remove_keys(redis, keys)


@pytest.fixture
def keys(loop: LoopRecord) -> Keys:
    """Return the keys of `loop`."""
    return Keys(loop.name, loop.id)
