"""Check from outside whether a process is at work: `python -m service.run.health learner`, or `api`.

Prints one line and exits with 0 or 1. Made for health checks of containers, which run every few seconds: it asks over
a plain socket and imports only the standard library, because importing the service costs over a CPU second.
"""

from __future__ import annotations

import os
import socket
import sys
from contextlib import ExitStack
from urllib.parse import parse_qs, unquote, urlsplit

from service.store.keys import LEARNER

TIMEOUT_S = 3.0


def learner_alive(url: str, *, timeout_s: float = TIMEOUT_S) -> bool:
    """Return whether a learner has written its heartbeat to Redis in the last 10 s.

    Args:
        url: `redis://[[user]:password@]host[:port][/db]` or `unix://[[user]:password@]/path[?db=0]`, answered here; any
            other URL that redis-py knows, such as `rediss://` for TLS, is left to redis-py, whose import takes longer.
        timeout_s: for the connection and for each answer.

    Raises:
        OSError: Redis does not answer, or refuses.
    """
    parts = urlsplit(url)
    options = parse_qs(parts.query)
    if parts.scheme not in ("redis", "unix") or not options.keys() <= {"db"}:
        return _learner_alive_by_client(url, timeout_s)
    commands = []
    if parts.password:
        user = [unquote(parts.username)] if parts.username else []
        commands.append(["AUTH", *user, unquote(parts.password)])
    path = unquote(parts.path).replace("/", "")
    db = options["db"][0] if "db" in options else path if parts.scheme == "redis" and path.isdigit() else "0"
    commands.append(["SELECT", db])
    commands.append(["EXISTS", LEARNER])
    with _connect(parts.scheme, unquote(parts.path), parts.hostname, parts.port, timeout_s) as connection:
        connection.sendall(b"".join(map(_encode, commands)))
        with connection.makefile("rb") as answers:
            return [_read(answers.readline()) for _ in commands][-1] == ":1"


def _connect(scheme: str, path: str, host: str | None, port: int | None, timeout_s: float) -> socket.socket:
    if scheme == "redis":
        return socket.create_connection((host or "localhost", port or 6379), timeout=timeout_s)
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(timeout_s)
    try:
        connection.connect(path)
    except OSError:
        connection.close()
        raise
    return connection


def _encode(command: list[str]) -> bytes:
    """One command in Redis' protocol: an array of bulk strings."""
    words = [word.encode() for word in command]
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words)


def _read(line: bytes) -> str:
    """One simple answer in Redis' protocol, `+OK` or `:1`."""
    if not line.endswith(b"\r\n"):
        raise ConnectionError("Redis closed the connection")
    answer = line.decode(errors="replace").strip()
    if answer.startswith("-"):
        raise OSError(answer[1:])
    return answer


def _learner_alive_by_client(url: str, timeout_s: float) -> bool:
    import asyncio

    from service.store.connection import connect

    async def ask() -> bool:
        redis = connect(url, name="health", timeout_s=timeout_s)
        try:
            return bool(await redis.exists(LEARNER))
        finally:
            await redis.aclose()

    return asyncio.run(ask())


def api_ready(host: str, port: int, *, tls: bool = False, timeout_s: float = TIMEOUT_S) -> bool:
    """Return whether the API worker on an address answers `GET /readyz` with 200.

    Args:
        tls: it speaks TLS. Its certificate is not checked: it need not name this address.

    Raises:
        OSError: it does not answer.
    """
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    with ExitStack() as stack:
        connection = stack.enter_context(socket.create_connection((reachable, port), timeout=timeout_s))
        if tls:
            from service.run.tls import unverified  # imports OpenSSL, which takes longer than all else here

            connection = stack.enter_context(unverified().wrap_socket(connection))
        connection.sendall(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        with connection.makefile("rb") as answer:
            return answer.readline().split()[1:2] == [b"200"]


def main(arguments: list[str]) -> int:
    """Check the process that is named, as the variables `REBOUND_*` describe it; return the exit code."""
    variables = os.environ
    try:
        if arguments == ["learner"]:
            good = learner_alive(variables["REBOUND_REDIS_URL"])
            print("a learner is at work" if good else "no learner has been heard of in the last 10 s")
        elif arguments == ["api"]:
            port = int(variables.get("REBOUND_PORT") or 8000)
            host = variables.get("REBOUND_HOST") or "127.0.0.1"
            good = api_ready(host, port, tls=bool(variables.get("REBOUND_TLS_CERT")))
            print("the API is ready" if good else "the API is not ready")
        else:
            print("usage: python -m service.run.health learner|api")
            return 2
    except KeyError as error:
        print(f"{error.args[0]} is not set")
        return 2
    except Exception as error:
        print(f"no answer: {error}")
        return 1
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
