"""Ends connections whose client is too slow, in sending a request or in taking the reply.

Uvicorn waits for both without end. The connections are looked at once a second, so a request costs nothing more.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import structlog
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

log = structlog.get_logger()

Owed = tuple[str, Any]


def owed_by_client(connection: HttpToolsProtocol) -> Owed | None:
    """Return what a client has to send or to take before anything else happens; None: nothing.

    Returns:
        What it is, and the request that it belongs to (of a new request: the one before). The pair stays equal to
        itself until the client has done its part.
    """
    request = connection.cycle
    if connection.transport.get_write_buffer_size():
        return "takes the reply", request
    if request is not None and not request.response_complete:
        return ("sends the body", request) if request.more_body and not connection.flow.read_paused else None
    if connection.timeout_keep_alive_task is None:  # else it rests between two requests, and uvicorn counts
        return "sends the head", request
    return None


class SlowClients:
    """Knows since when each client owes what.

    Args:
        limit_s: after so many seconds, and at the next look, the connection is ended.
    """

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._owing: dict[HttpToolsProtocol, tuple[Owed, float]] = {}

    def look(self, connections: Iterable[HttpToolsProtocol], now: float) -> int:
        """End the connections of clients that owe the same for too long; return how many.

        Args:
            now: seconds of the monotonic clock.
        """
        owing, ended = {}, 0
        for connection in connections:
            owed = owed_by_client(connection)
            if owed is None:
                continue
            before, since = self._owing.get(connection, (owed, now))
            if before != owed:
                since = now
            if now - since < self._limit_s:
                owing[connection] = owed, since
            else:
                connection.transport.abort()
                ended += 1
        self._owing = owing
        if ended:
            log.warning("ended connections of clients that are too slow", connections=ended, after_s=self._limit_s)
        return ended
