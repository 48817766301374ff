"""Announcements: heard at once, at most one a second of a loop, and a gap is told."""

from __future__ import annotations

import asyncio

import pytest
from redis.asyncio import Redis

from service.store import announcements
from service.store.announcements import InUse, announce_use, listen
from service.store.connection import end
from service.store.keys import USED
from tests.waiting import until_async

pytestmark = pytest.mark.anyio


async def test_announcements_are_heard_and_a_gap_is_told(quiet_redis: Redis) -> None:
    heard: list[tuple[str, str]] = []
    connections = 0

    def connected() -> None:
        nonlocal connections
        connections += 1

    async def is_connected() -> bool:
        return connections > before

    async def is_heard() -> bool:
        return len(heard) == before + 1

    listening = asyncio.create_task(
        listen(quiet_redis, USED, "other", heard=lambda *said: heard.append(said), connected=connected)
    )
    try:
        for before in range(2):
            await until_async(is_connected, "it listens")
            await announce_use(quiet_redis, f"loop-{before}")
            await until_async(is_heard, "the announcement is heard")
            await quiet_redis.client_kill_filter(_type="pubsub")
    finally:
        await asyncio.wait_for(end(listening), 10)
    assert heard == [(USED, "loop-0"), (USED, "loop-1")]


async def test_a_connection_that_is_silent_but_stands_is_kept(
    quiet_redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(announcements, "SILENCE_S", 0.01)
    connections = 0

    def connected() -> None:
        nonlocal connections
        connections += 1

    async def pinged() -> bool:
        return int((await quiet_redis.info("commandstats")).get("cmdstat_ping", {"calls": 0})["calls"]) > 5

    listening = asyncio.create_task(listen(quiet_redis, USED, heard=lambda *_: None, connected=connected))
    try:
        await quiet_redis.config_resetstat()
        await until_async(pinged, "silence was asked about several times")
    finally:
        await asyncio.wait_for(end(listening), 10)
    assert connections == 1


def test_a_use_is_announced_once_in_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("service.store.announcements.time.monotonic", lambda: now)
    use = InUse()
    assert use.untold({"a", "b"}) == {"a", "b"}
    assert use.untold({"b", "c"}) == {"c"}
    now += announcements.EVERY_S + 0.01
    assert use.untold({"b"}) == {"b"}
    use.forget()
    assert use.untold({"b"}) == {"b"}
