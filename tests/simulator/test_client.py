"""The client says what went wrong and what to do; the wire speaks enough HTTP."""

from __future__ import annotations

import asyncio
import socket

import pytest

from simulator.client import Service
from simulator.errors import Failing, Refused, TooSlow, Unreachable
from simulator.wire import Broken, Wire
from tests.simulator.servers import reply, serving

pytestmark = pytest.mark.anyio


def nobody() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


async def test_unreachable_says_how_to_start_the_service() -> None:
    async with Service(nobody()) as service:
        with pytest.raises(Unreachable, match="rebound serve"):
            await service.recommend("default", "u", {})
        with pytest.raises(Unreachable, match="rebound serve"):
            await service.policies("default")
        with pytest.raises(Unreachable):
            await service.wait_ready(0)


async def test_refusals_carry_code_and_detail(service: str) -> None:
    async with Service(service) as client:
        with pytest.raises(Refused, match="no-such-loop") as refused:
            await client.recommend("no-such-loop", "u", {})
    assert refused.value.status == 404
    assert refused.value.code == "unknown_loop"


async def test_a_missing_key_says_how_to_give_one() -> None:
    async def closed(head: bytes, body: bytes) -> bytes:
        assert b"x-api-key" not in head.lower()
        return reply(b'{"code": "unauthorized", "detail": "a key is needed"}', "401 Unauthorized")

    async with serving(closed) as (url, _), Service(url) as client:
        with pytest.raises(Refused, match="--api-key"):
            await client.recommend("default", "u", {})


async def test_the_key_is_sent_on_both_ways() -> None:
    async def closed(head: bytes, body: bytes) -> bytes:
        assert b"x-api-key: secret" in head.lower()
        return reply(b'{"policies": []}')

    async with serving(closed) as (url, _), Service(url, api_key="secret") as client:
        assert await client.recommend("default", "u", {}) == {"policies": []}
        assert await client.policies("default") == []


async def test_trouble_and_nonsense_are_failures() -> None:
    async def trouble(head: bytes, body: bytes) -> bytes:
        return reply(b"busy", "503 Service Unavailable") if b"recommend" in head else reply(b"<html>")

    async with serving(trouble) as (url, _), Service(url) as client:
        with pytest.raises(Failing, match="503"):
            await client.recommend("default", "u", {})
        with pytest.raises(Failing, match="no JSON"):
            await client.feedback("default", [])


async def test_no_answer_in_time_is_too_slow() -> None:
    async def never(head: bytes, body: bytes) -> bytes:
        await asyncio.Event().wait()
        return b""

    async with serving(never) as (url, _), Service(url, timeout_s=0.05) as client:
        with pytest.raises(TooSlow, match=r"0\.05 s"):
            await client.recommend("default", "u", {})
        with pytest.raises(TooSlow):
            await client.policies("default")


async def test_connections_are_kept_and_shared() -> None:
    async def fine(head: bytes, body: bytes) -> bytes:
        await asyncio.sleep(0)
        return reply(body)

    async with serving(fine) as (url, requests):
        wire = Wire(url, headers={}, most=4)
        bodies = [str(i).encode() for i in range(40)]
        assert await asyncio.gather(*(wire.post("/x", body) for body in bodies)) == [(200, body) for body in bodies]
        await wire.aclose()
    assert len(requests) <= 4
    assert sum(requests) == 40


async def test_a_closed_connection_is_not_used_again() -> None:
    async def once(head: bytes, body: bytes) -> bytes:
        return reply(b"bye", headers="Connection: close\r\n")

    async with serving(once) as (url, requests):
        wire = Wire(url, headers={}, most=1)
        for _ in range(3):
            assert await wire.post("/x", b"") == (200, b"bye")
        await wire.aclose()
    assert requests == [1, 1, 1]


async def test_chunks_are_put_together() -> None:
    async def chunked(head: bytes, body: bytes) -> bytes:
        return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n1;x=y\r\n!\r\n0\r\nt: 1\r\n\r\n"

    async with serving(chunked) as (url, requests):
        wire = Wire(url, headers={}, most=1)
        assert [await wire.post("/x", b"") for _ in range(2)] == [(200, b"hello!")] * 2
        await wire.aclose()
    assert requests == [2]


async def test_a_given_up_request_takes_its_connection_along() -> None:
    gate = asyncio.Event()

    async def slow(head: bytes, body: bytes) -> bytes:
        await gate.wait()
        return reply(body)

    async with serving(slow) as (url, requests):
        wire = Wire(url, headers={}, most=1)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await wire.post("/x", b"first")
        gate.set()
        assert await wire.post("/x", b"second") == (200, b"second")
        await wire.aclose()
    assert requests == [1, 1]


async def test_a_broken_reply_is_broken() -> None:
    async def nonsense(head: bytes, body: bytes) -> bytes:
        return b"220 smtp ready\r\n\r\n"

    async with serving(nonsense) as (url, _):
        wire = Wire(url, headers={}, most=1)
        with pytest.raises(Broken):
            await wire.post("/x", b"")
        await wire.aclose()
