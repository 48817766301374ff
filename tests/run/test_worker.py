"""One API worker on a socket that another process opened."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from http.client import HTTPConnection
from typing import Any

import pytest
import uvicorn

from service.run import worker
from service.run.one_send import Gathering
from service.run.supervisor import listen
from service.run.worker import inherited_socket, make_server, run_worker
from service.settings import Settings
from tests.waiting import until

Message = MutableMapping[str, Any]


async def hello(
    scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]
) -> None:
    """Answer `hello` to every request."""
    if scope["type"] == "lifespan":
        raise ValueError("no lifespan here")  # uvicorn then serves without
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]})
    await send({"type": "http.response.body", "body": b"hello"})


async def cannot_start(
    scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]
) -> None:
    await receive()
    await send({"type": "lifespan.startup.failed", "message": "no"})


def option(connection: Any, name: int) -> int:
    """The value of a TCP option of one of the server's connections."""
    value: int = connection.transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, name)
    return value


def serve_one(server: uvicorn.Server, listener: socket.socket) -> tuple[bytes, list[int]]:
    """One reply on a socket that was handed over by descriptor, and TCP_NODELAY of every connection then open."""
    inherited = inherited_socket(os.dup(listener.fileno()))
    thread = threading.Thread(target=server.run, args=([inherited],))
    thread.start()
    client = HTTPConnection(*listener.getsockname())
    try:
        client.request("GET", "/")
        body = client.getresponse().read()
        return body, [option(connection, socket.TCP_NODELAY) for connection in server.server_state.connections]
    finally:
        client.close()
        server.should_exit = True
        thread.join(timeout=20)
        assert not thread.is_alive()


@pytest.mark.parametrize("event_loop", ["uvloop", "asyncio"])
def test_replies_on_an_inherited_socket_are_not_delayed(event_loop: Any) -> None:
    server = make_server(Settings(), hello)
    server.config.loop = event_loop
    with listen("127.0.0.1", 0) as listener:
        assert serve_one(server, listener) == (b"hello", [1])


def test_an_inherited_socket_has_its_true_family() -> None:
    with listen("127.0.0.1", 0) as listener, inherited_socket(os.dup(listener.fileno())) as inherited:
        assert (inherited.family, inherited.proto) == (socket.AF_INET, socket.IPPROTO_TCP)
        assert inherited.getsockname() == listener.getsockname()


@pytest.fixture
def collector() -> Iterator[None]:
    """Leave the garbage collector of this process as it is."""
    threshold = gc.get_threshold()
    yield
    gc.unfreeze()
    gc.set_threshold(*threshold)


@pytest.mark.usefixtures("collector")
def test_an_app_that_cannot_start_ends_the_worker_with_code_3() -> None:
    with listen("127.0.0.1", 0) as listener, pytest.raises(SystemExit) as ended:
        run_worker(Settings(), cannot_start, fd=os.dup(listener.fileno()))
    assert ended.value.code == 3


@pytest.mark.usefixtures("collector")
def test_the_collector_leaves_out_what_was_there_before_the_first_request() -> None:
    with listen("127.0.0.1", 0) as listener, pytest.raises(SystemExit):
        run_worker(Settings(), cannot_start, fd=os.dup(listener.fileno()))
    assert gc.get_freeze_count() > len(sys.modules)


def test_a_worker_without_a_descriptor_listens_by_itself() -> None:
    server = make_server(Settings(port=0), hello)
    thread = threading.Thread(target=server.run)
    thread.start()
    until(lambda: server.started, "the worker listens")
    client = HTTPConnection(*server.servers[0].sockets[0].getsockname())
    client.request("GET", "/")
    assert client.getresponse().read() == b"hello"
    client.close()
    server.should_exit = True
    thread.join(timeout=20)
    assert not thread.is_alive()


@pytest.mark.parametrize("event_loop", ["uvloop", "asyncio"])
def test_a_worker_that_sleeps_ends_as_soon_as_it_is_told(monkeypatch: pytest.MonkeyPatch, event_loop: Any) -> None:
    monkeypatch.setattr(worker, "TICK_S", 60.0)
    server = make_server(Settings(port=0), hello)
    server.config.loop = event_loop
    thread = threading.Thread(target=server.run)
    thread.start()
    until(lambda: server.started, "the worker listens")
    server.should_exit = True
    thread.join(timeout=20)
    assert not thread.is_alive()


SLEEPER = """
import sys
from service.run import worker
from service.settings import Settings

async def app(scope, receive, send):
    raise ValueError("no lifespan here")

worker.TICK_S = 60.0
server = worker.make_server(Settings(port=0), app)
server.config.loop = sys.argv[1]
tick = server.on_tick

async def told(counter):
    print("ticks", flush=True)
    return await tick(counter)

server.on_tick = told
server.run()
"""


@pytest.mark.parametrize("event_loop", ["uvloop", "asyncio"])
def test_a_worker_that_sleeps_ends_as_soon_as_a_signal_comes(event_loop: str) -> None:
    with subprocess.Popen([sys.executable, "-c", SLEEPER, event_loop], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ticks\n"
        process.terminate()
        assert process.wait(20) == -signal.SIGTERM


def test_the_date_in_replies_moves_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "TICK_S", 0.01)
    server = make_server(Settings(port=0), hello)
    thread = threading.Thread(target=server.run)
    thread.start()
    until(lambda: server.started, "the worker listens")
    monkeypatch.setattr("uvicorn.server.formatdate", lambda *_, **__: "later")
    until(lambda: (b"date", b"later") in server.server_state.default_headers, "the date is another one")
    server.should_exit = True
    thread.join(timeout=20)
    assert not thread.is_alive()


class Recorded:
    """A transport that keeps what it is told."""

    def __init__(self) -> None:
        self.said: list[bytes | str] = []

    def write(self, data: bytes) -> None:
        self.said.append(data)

    def close(self) -> None:
        self.said.append("closed")

    def is_closing(self) -> bool:
        return "closed" in self.said


def test_what_is_written_in_one_turn_is_sent_together_and_in_order() -> None:
    async def turns() -> list[bytes | str]:
        real = Recorded()
        transport = Gathering(real, asyncio.get_running_loop())
        transport.write(b"head ")
        transport.write(b"body")
        assert real.said == []
        await asyncio.sleep(0)
        transport.write(b"last")
        assert not transport.is_closing()
        transport.close()
        assert transport.is_closing()
        await asyncio.sleep(0)
        return real.said

    assert asyncio.run(turns()) == [b"head body", b"last", "closed"]


def test_pipelined_requests_are_answered_in_order_and_the_last_reply_is_whole() -> None:
    server = make_server(Settings(port=0), hello)
    thread = threading.Thread(target=server.run)
    thread.start()
    until(lambda: server.started, "the worker listens")
    ask = b"GET / HTTP/1.1\r\nhost: x\r\n"
    with socket.create_connection(server.servers[0].sockets[0].getsockname()) as client:
        client.settimeout(20)
        client.sendall((ask + b"\r\n") * 9 + ask + b"connection: close\r\n\r\n")
        said = b""
        while more := client.recv(65536):
            said += more
    server.should_exit = True
    thread.join(timeout=20)
    assert not thread.is_alive()
    assert said.count(b"HTTP/1.1 200 OK\r\n") == said.count(b"\r\n\r\nhello") == 10
    assert said.endswith(b"hello")
