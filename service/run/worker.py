"""Run one API worker: uvicorn on an address of its own, or on a socket that the supervisor shares."""

from __future__ import annotations

import asyncio
import gc
import socket
import sys
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

import uvicorn

from service.run.one_send import OneSend
from service.run.pulse import beating
from service.run.slow_clients import SlowClients
from service.run.tls import server_context
from service.settings import Settings

if TYPE_CHECKING:
    from starlette.types import ASGIApp

STARTUP_FAILURE = 3  # uvicorn's own exit code for it
TICK_S = 1.0  # from one date header, and one look at slow clients, to the next


class Server(uvicorn.Server):
    """A uvicorn that shows its supervisor that its event loop runs, sleeps while nothing happens, ends slow clients."""

    def __init__(self, config: uvicorn.Config, pulse: int | None, client_timeout_s: float) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        super().__init__(config)
        self._pulse, self._slow_clients = pulse, SlowClients(client_timeout_s)

    async def main_loop(self) -> None:
        """Write the date header anew each second, and end when told to. Uvicorn's own wakes ten times a second."""
        self._told, self._loop = asyncio.Event(), asyncio.get_running_loop()
        try:
            while not await self.on_tick(0):
                self._slow_clients.look(list(self.server_state.connections), self._loop.time())  # type: ignore[arg-type]  # all are OneSend
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._told.wait(), TICK_S)
        finally:
            self._loop = None

    @property
    def should_exit(self) -> bool:
        """Whether the server has been told to end: by a signal, or from another thread."""
        return self._should_exit

    @should_exit.setter
    def should_exit(self, told: bool) -> None:
        self._should_exit = told
        if told and (loop := self._loop) is not None:
            loop.call_soon_threadsafe(self._told.set)

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        await beating(super().serve(sockets), self._pulse)


def run_worker(settings: Settings, app: ASGIApp, *, fd: int | None = None, pulse: int | None = None) -> None:
    """Serve `app` until SIGTERM or SIGINT. Exits with code 3 if the app or the socket cannot be started.

    Args:
        settings: its host and port are listened on if `fd` is None.
        fd: descriptor of a TCP socket that is bound and listens.
        pulse: descriptor of a pipe to the supervisor.
    """
    server = make_server(settings, app, pulse)
    # The modules and the app stay, so the collector need not look through them again and again. What a request makes is
    # freed by its references: a look at every 700 new objects finds the requests at work, and no rubbish.
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 10, 10)
    with ExitStack() as stack, suppress(KeyboardInterrupt):
        server.run(None if fd is None else [stack.enter_context(inherited_socket(fd))])
    if not server.started:
        sys.exit(STARTUP_FAILURE)


def make_server(settings: Settings, app: ASGIApp, pulse: int | None = None) -> Server:
    """Return the server of one worker, not yet running.

    Raises:
        InvalidCertificate: it is to speak TLS, and cannot.
    """
    tls = server_context(settings)
    return Server(
        uvicorn.Config(
            app,
            http=OneSend,
            host=settings.host,
            port=settings.port,
            access_log=False,
            log_config=None,
            timeout_keep_alive=75,
            timeout_graceful_shutdown=5,
            backlog=2048,
            ssl_context_factory=None if tls is None else lambda config, default: tls,
        ),
        pulse,
        settings.client_timeout_s,
    )


def inherited_socket(fd: int) -> socket.socket:
    """Return the socket of a descriptor, with its true address family.

    Uvicorn's own option `fd` takes every descriptor for a unix socket. The event loop then leaves Nagle's algorithm on,
    and each reply on a kept connection waits about 40 ms for the client's delayed acknowledgement.
    The protocol is given because asyncio turns Nagle's algorithm off for IPPROTO_TCP only, and not every system can
    tell the protocol of a socket.
    """
    return socket.socket(fileno=fd, proto=socket.IPPROTO_TCP)
