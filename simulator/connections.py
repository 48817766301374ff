"""A pool of kept-alive HTTP/1.1 connections that can POST, for the two hot routes.

A request by httpx costs 1.7 ms of CPU, and 7 ms with 80 in flight, because its pool looks at every connection each
time. A request by this pool costs a tenth of that, so the simulator measures the service and not itself.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from dataclasses import dataclass
from urllib.parse import urlsplit

IDLE_S = 4.0  # uvicorn closes a connection that was idle for 5 s


class ConnectionBroken(OSError):
    """The connection could not be made, broke, or did not speak HTTP/1.1."""


@dataclass(slots=True)
class _Connection:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    used: float  # time.monotonic() of its last reply

    @property
    def stale(self) -> bool:
        return self.reader.at_eof() or self.writer.is_closing() or time.monotonic() - self.used > IDLE_S


class ConnectionPool:
    """Connections to one address. The one used last is taken first.

    Args:
        url: http or https.
        headers: sent with every request.
        limit: requests in flight at most; further ones wait.
    """

    def __init__(self, url: str, *, headers: dict[str, str], limit: int) -> None:
        parts = urlsplit(url)
        self._host, self._tls = parts.hostname or "", parts.scheme == "https"
        self._port = parts.port or (443 if self._tls else 80)
        self._prefix = parts.path.rstrip("/")
        lines = {"host": parts.netloc.rpartition("@")[2], **headers}
        self._headers = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        self._slots = asyncio.Semaphore(limit)
        self._idle: list[_Connection] = []

    async def aclose(self) -> None:
        for connection in self._idle:
            connection.writer.close()
        self._idle.clear()

    async def post(self, path: str, body: bytes) -> tuple[int, bytes]:
        """Send a request; return the status and the body of the reply.

        Raises:
            ConnectionBroken: there was no reply. The request is not repeated, because it may have had its effect.
        """
        head = f"POST {self._prefix}{path} HTTP/1.1\r\n{self._headers}content-length: {len(body)}\r\n\r\n"
        async with self._slots:
            connection = await self._connect()
            try:
                connection.writer.write(head.encode("ascii") + body)
                status, reply, keep = await _read(connection.reader)
            except BaseException as error:  # a cancelled request leaves an unread reply on the connection
                connection.writer.close()
                if isinstance(error, (OSError, EOFError, ValueError, asyncio.LimitOverrunError)):
                    raise ConnectionBroken(str(error) or type(error).__name__) from error
                raise
            if keep:
                connection.used = time.monotonic()
                self._idle.append(connection)
            else:
                connection.writer.close()
            return status, reply

    async def _connect(self) -> _Connection:
        """Take an idle connection, or make one."""
        while self._idle:
            connection = self._idle.pop()
            if not connection.stale:
                return connection
            connection.writer.close()
        tls = ssl.create_default_context() if self._tls else None
        try:
            reader, writer = await asyncio.open_connection(self._host, self._port, ssl=tls)
        except OSError as error:
            raise ConnectionBroken(str(error)) from error
        return _Connection(reader, writer, time.monotonic())


async def _read(reader: asyncio.StreamReader) -> tuple[int, bytes, bool]:
    """Read one reply: (status, body, whether the connection can be used again)."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    version, status, _ = head.split(b" ", 2)
    fields = dict(line.split(b":", 1) for line in head.split(b"\r\n")[1:] if line)
    keep = version == b"http/1.1" and b"close" not in fields.get(b"connection", b"")
    if b"content-length" in fields:
        return int(status), await reader.readexactly(int(fields[b"content-length"])), keep
    if b"chunked" in fields.get(b"transfer-encoding", b""):
        return int(status), await _read_chunks(reader), keep
    return int(status), await reader.read(), False


async def _read_chunks(reader: asyncio.StreamReader) -> bytes:
    chunks = []
    while size := int((await reader.readline()).split(b";")[0], 16):
        chunks.append(await reader.readexactly(size))
        await reader.readexactly(2)
    while (await reader.readline()).strip():
        pass  # trailers
    return b"".join(chunks)
