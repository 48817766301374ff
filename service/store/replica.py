"""All data of a Redis at one moment, taken as a replica takes it: Redis goes on meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from redis import Redis
from redis.exceptions import RedisError

from service.errors import StoreUnavailable
from service.store.connection import GONE

CHUNK = 1 << 20
LONGEST_SILENCE_S = 60.0  # Redis sends a line feed each few seconds while it prepares the data


def fetch_data(url: str, path: Path, progress: Callable[[int, int], None] = lambda done, total: None) -> None:
    """Write all data of a Redis, as of now, into a file that a redis-server can load.

    Args:
        progress: called with the bytes that are there, and all.

    Raises:
        StoreUnavailable: Redis does not answer, or does not give its data away (managed ones do not).
    """
    with Redis.from_url(url, client_name="rebound:backup", socket_timeout=LONGEST_SILENCE_S) as client:
        connection: Any = client.connection_pool.make_connection()
        try:
            connection.connect()
            connection.send_command("SYNC")
            # What follows is no reply: a length, and bytes without an end mark, which redis-py cannot read.
            with connection._sock.makefile("rb") as stream, path.open("wb") as file:
                _copy(stream, file, progress)
        except GONE as error:
            raise StoreUnavailable("Redis does not answer, or broke off; nothing was written") from error
        except RedisError as error:
            raise _refused(str(error)) from error
        finally:
            connection.disconnect()


def _copy(stream: Any, file: Any, progress: Callable[[int, int], None]) -> None:
    while (line := stream.readline()) == b"\n":
        pass
    if not line.startswith(b"$"):
        raise _refused(line.decode(errors="replace").strip())
    total = left = int(line[1:])
    while left:
        part = stream.read(min(CHUNK, left))
        if not part:
            raise StoreUnavailable("Redis broke off; nothing was written")
        file.write(part)
        left -= len(part)
        progress(total - left, total)


def _refused(why: str) -> StoreUnavailable:
    return StoreUnavailable(
        f"Redis does not give its data away ({why or 'it said nothing'}); the user needs the permission `+sync`, and "
        "where Redis is a managed one that has no SYNC, use its own backups"
    )
