"""Clients that send a byte now and then, or read nothing: they are cut off, and cost nobody else anything."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from typing import Any

import pytest

from service.run import worker
from service.run.worker import Server, make_server
from service.settings import Settings
from tests.run.test_worker import Message
from tests.waiting import until

LIMIT_S = 0.3
LARGE = b"x" * (32 << 20)  # more than the kernel's buffers hold
ASK = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"


async def answers(scope: Message, receive: Callable[..., Any], send: Callable[..., Any]) -> None:
    """Read the body, then answer: `/large` with 32 MiB, anything else with two bytes."""
    assert scope["type"] == "http", "no lifespan here"
    while (await receive()).get("more_body"):
        pass
    body = LARGE if scope["path"] == "/large" else b"ok"
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(worker, "TICK_S", 0.05)
    server = make_server(Settings(port=0, client_timeout_s=LIMIT_S), answers)
    thread = threading.Thread(target=server.run)
    thread.start()
    until(lambda: server.started, "the worker listens")
    yield server
    server.should_exit = True
    thread.join(timeout=20)
    assert not thread.is_alive()


def address(server: Server) -> tuple[str, int]:
    found: tuple[str, int] = server.servers[0].sockets[0].getsockname()
    return found


def is_cut_off(client: socket.socket) -> bool:
    """Whether the server has ended the connection: read to the end, or a reset."""
    client.setblocking(False)
    try:
        return client.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


def drip(client: socket.socket, more: Iterator[bytes]) -> bool:
    """Send a byte more; whether the connection is ended."""
    try:
        client.send(next(more))
    except ConnectionError:
        return True
    return is_cut_off(client)


def forever(text: bytes) -> Iterator[bytes]:
    while True:
        for at in range(len(text)):
            yield text[at : at + 1]


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"GET / HTTP/1.1\r\nhost: x\r\na: ",
        b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 100000\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nffff\r\n",
        ASK + b"GET / HTTP/1.1\r\na: ",
    ],
    ids=["nothing", "a head", "a body", "a chunk", "a second head"],
)
def test_who_sends_a_byte_now_and_then_is_cut_off_and_others_are_answered(server: Server, sent: bytes) -> None:
    with socket.create_connection(address(server)) as slow:
        slow.sendall(sent)
        if sent.startswith(ASK):
            slow.settimeout(20)
            assert slow.recv(65536).endswith(b"ok")
        began, more = time.monotonic(), forever(b"a")
        end = is_cut_off if not sent else lambda client: drip(client, more)
        until(lambda: end(slow), "it is cut off")
        assert time.monotonic() - began > LIMIT_S / 2, "not before its time"
        other = HTTPConnection(*address(server))
        other.request("GET", "/")
        assert other.getresponse().read() == b"ok"
        other.close()
    until(lambda: not server.server_state.connections, "nothing is left of it")
    until(lambda: not server.server_state.tasks, "nor of its request")


@pytest.mark.parametrize("close", [False, True])
def test_who_does_not_read_the_reply_is_cut_off(server: Server, close: bool) -> None:
    with socket.create_connection(address(server)) as slow:
        head = b"GET /large HTTP/1.1\r\nhost: x\r\n"
        slow.sendall(head + (b"connection: close\r\n\r\n" if close else b"\r\n"))
        until(lambda: server.server_state.connections, "it is connected")
        until(lambda: not server.server_state.connections, "it is cut off")
        slow.settimeout(20)
        got = 0
        try:
            while part := slow.recv(1 << 20):
                got += len(part)
        except ConnectionError:
            pass
    assert got < len(LARGE), "the rest of the reply was thrown away"


def test_who_rests_between_two_requests_or_reads_at_his_pace_is_not(server: Server) -> None:
    client = HTTPConnection(*address(server))
    client.request("GET", "/")
    assert client.getresponse().read() == b"ok"
    ticks, tick = [0], server.on_tick

    async def counted(counter: int) -> bool:
        ticks[0] += 1
        return await tick(counter)

    server.on_tick = counted  # type: ignore[method-assign]
    until(lambda: ticks[0] > 3 * LIMIT_S / worker.TICK_S, "more than the limit has passed")
    client.request("GET", "/large")
    assert len(client.getresponse().read()) == len(LARGE)
    client.close()
