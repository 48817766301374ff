"""The connection pool speaks enough of HTTP/1.1, and never repeats a request."""

from __future__ import annotations

import asyncio

import pytest

from simulator.connections import ConnectionBroken, ConnectionPool
from tests.simulator.servers import reply, serving

pytestmark = pytest.mark.anyio


async def test_connections_are_kept_and_shared() -> None:
    async def fine(head: bytes, body: bytes) -> bytes:
        await asyncio.sleep(0)
        return reply(body)

    async with serving(fine) as (url, requests):
        pool = ConnectionPool(url, headers={}, limit=4)
        bodies = [str(i).encode() for i in range(40)]
        assert await asyncio.gather(*(pool.post("/x", body) for body in bodies)) == [(200, body) for body in bodies]
        await pool.aclose()
    assert len(requests) <= 4
    assert sum(requests) == 40


async def test_a_closed_connection_is_not_used_again() -> None:
    async def once(head: bytes, body: bytes) -> bytes:
        return reply(b"bye", headers="Connection: close\r\n")

    async with serving(once) as (url, requests):
        pool = ConnectionPool(url, headers={}, limit=1)
        for _ in range(3):
            assert await pool.post("/x", b"") == (200, b"bye")
        await pool.aclose()
    assert requests == [1, 1, 1]


async def test_chunks_are_put_together() -> None:
    async def chunked(head: bytes, body: bytes) -> bytes:
        return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n1;x=y\r\n!\r\n0\r\nt: 1\r\n\r\n"

    async with serving(chunked) as (url, requests):
        pool = ConnectionPool(url, headers={}, limit=1)
        assert [await pool.post("/x", b"") for _ in range(2)] == [(200, b"hello!")] * 2
        await pool.aclose()
    assert requests == [2]


async def test_a_given_up_request_takes_its_connection_along() -> None:
    gate = asyncio.Event()

    async def slow(head: bytes, body: bytes) -> bytes:
        await gate.wait()
        return reply(body)

    async with serving(slow) as (url, requests):
        pool = ConnectionPool(url, headers={}, limit=1)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await pool.post("/x", b"first")
        gate.set()
        assert await pool.post("/x", b"second") == (200, b"second")
        await pool.aclose()
    assert requests == [1, 1]


async def test_a_broken_reply_is_broken() -> None:
    async def nonsense(head: bytes, body: bytes) -> bytes:
        return b"220 smtp ready\r\n\r\n"

    async with serving(nonsense) as (url, _):
        pool = ConnectionPool(url, headers={}, limit=1)
        with pytest.raises(ConnectionBroken):
            await pool.post("/x", b"")
        await pool.aclose()
