"""What a decision leaves in the log, by the scripts themselves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from uuid import uuid4

import numpy as np
import pytest
from redis.asyncio import Redis

from service import events
from service.loop import LoopSettings
from service.store import log
from service.store.connection import GroupCommit, connect
from service.store.decisions import Decision, DecisionLog, SlateItem, join, settle_due
from service.store.keys import Keys

pytestmark = pytest.mark.anyio
D = 2
SETTINGS = LoopSettings(wait_time=2.0)


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    connection = connect(redis_url, name="test", timeout_s=5)
    yield connection
    await connection.aclose()


def decision(loop: str, name: str, items: str) -> Decision:
    slate = [
        SlateItem(
            item,
            events.body(decision_id=name, item=item, user=None, context={}, n=9, propensity=0.5, policy="p", version=1),
            np.zeros(D, "<f4").tobytes(),
        )
        for item in items
    ]
    return Decision(loop, name, b"{}", SETTINGS.wait_ms, slate)


async def logged(redis: Redis, loop: str) -> list[tuple[str, str, str, int | None]]:
    """(Decision, item, source, place) of each event."""
    found = []
    for position, fields in await log.read(redis, loop, log.START):
        event = events.decode(position, fields, D)
        assert isinstance(event, events.Event)
        found.append((event.decision_id, event.item, event.source, event.place))
    return found


async def settle(redis: Redis, commit: GroupCommit, loop: str, n: int) -> None:
    """Until n events were appended."""
    appended = 0
    async with asyncio.timeout(10):
        while appended < n:
            appended += await settle_due(redis, commit, loop, SETTINGS)


async def test_events_know_the_order_in_which_items_were_shown(redis: Redis) -> None:
    loop = f"places-{uuid4().hex[:10]}"
    commit = GroupCommit(redis)
    decisions = DecisionLog(commit, buffer=10)
    for name, items in (("first", "ab"), ("second", "c"), ("first", "ab"), ("third", "abc")):  # one of them twice
        await decisions.append(decision(loop, name, items))
    for name, item in (("third", "b"), ("first", "a")):
        answer = await join(
            commit, loop, SETTINGS, decision_id=name, item=item, reward=1.0, feedback_id=f"{name}-{item}"
        )
        assert answer == "accepted"
    await settle(redis, commit, loop, 4)
    found = await logged(redis, loop)
    assert found[:2] == [("third", "b", "feedback", 4), ("first", "a", "feedback", 0)]
    assert sorted(found[2:]) == [
        ("first", "b", "default", 1),
        ("second", "c", "default", 2),
        ("third", "a", "default", 3),
        ("third", "c", "default", 5),
    ]


async def test_decisions_from_before_there_were_places_are_joined_and_settled(redis: Redis) -> None:
    loop = f"places-{uuid4().hex[:10]}"
    commit = GroupCommit(redis)
    for name in ("joined", "settled"):
        await DecisionLog(commit, buffer=10).append(decision(loop, name, "a"))
        await redis.hdel(Keys(loop).decision(name), "place")
    await join(commit, loop, SETTINGS, decision_id="joined", item="a", reward=1.0, feedback_id="f")
    await settle(redis, commit, loop, 1)
    assert await logged(redis, loop) == [("joined", "a", "feedback", None), ("settled", "a", "default", None)]
