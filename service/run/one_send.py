"""Uvicorn's HTTP protocol, with one system call a reply: uvicorn writes head and body apart."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


class OneSend(HttpToolsProtocol):
    """Sends what is written in one turn of the event loop together."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Write through a gathering transport."""
        super().connection_made(Gathering(transport, self.loop))  # type: ignore[arg-type]  # does all that is used of one


class Gathering:
    """A transport that gathers what is written until the turn of the event loop ends; all else goes to the real one."""

    def __init__(self, transport: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop = transport, loop
        self._parts: list[bytes] = []

    def write(self, data: bytes) -> None:
        """Send soon, in the order of the calls."""
        if not self._parts:
            self._loop.call_soon(self._flush)
        self._parts.append(data)

    def _flush(self) -> None:
        if self._parts:
            parts, self._parts = self._parts, []
            self._transport.write(b"".join(parts))

    def close(self) -> None:
        """Send what was written, then close."""
        self._flush()
        self._transport.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)
