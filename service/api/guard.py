"""The outermost layer: request id, body limit, API key."""

from __future__ import annotations

import os
import re
import time
from functools import lru_cache
from typing import Any
from urllib.parse import unquote_to_bytes

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.keys import ANYBODY, Key, KeyRing
from service.api.metrics import Metrics
from service.api.problems import DEFECT, MEDIA_TYPE, render
from service.errors import (
    Forbidden,
    InvalidRequest,
    PayloadTooLarge,
    RateLimited,
    ReboundError,
    Unauthorized,
    UnsupportedEncoding,
)
from service.settings import is_loopback

OPEN = frozenset({"/healthz", "/readyz", "/docs", "/openapi.json", "/console"})  # a browser sends no key for a page
OPEN_FOLDERS = ("/assets/", "/console/")  # the scripts and styles of these pages
FOR_CLIENTS = frozenset({"/recommend", "/recommend/batch", "/feedback", "/activity", "/edges"})
HOST = re.compile(r"(?:\[([0-9a-f:.]+)\]|([^:\[\]]+))(?::\d*)?")

log = structlog.get_logger()


class Guard:
    """Checks key, encoding and size of every request, and turns what goes wrong inside into a problem.

    Args:
        this_machine_only: there are no keys, so a browser must not carry requests of other sites here.

    It reads the whole body, which is bounded, and keeps it in `scope["state"]["body"]` for the layers inside, and in
    `scope["state"]["key"]` what the caller may do. HEAD becomes GET there; the server leaves out the body of the reply.
    """

    def __init__(
        self, app: ASGIApp, keys: KeyRing, metrics: Metrics, *, max_body_bytes: int, this_machine_only: bool
    ) -> None:
        self._app, self._keys, self._metrics, self._limit = app, keys, metrics, max_body_bytes
        self._this_machine_only = this_machine_only

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if scope["method"] == "HEAD":
            scope = {**scope, "method": "GET"}
        headers: dict[bytes, bytes] = dict(scope["headers"])
        id_header = headers.get(b"x-request-id", b"")[:128] or os.urandom(16).hex().encode()
        request_id = id_header.decode("latin-1")
        scope.setdefault("state", {})["request_id"] = request_id
        started = finished = False

        async def send_with_id(message: Message) -> None:
            nonlocal started, finished
            if message["type"] == "http.response.start":
                started = True
                message["headers"] = [*message["headers"], (b"x-request-id", id_header)]
            else:
                finished = not message.get("more_body", False)
            await send(message)

        try:
            _check_path(scope)
            scope["state"]["key"] = self._authorise(scope["path"], headers)
            body = await self._read(headers, receive)
            if body is None:  # the client went away
                return
            scope["state"]["body"] = body
            await self._app(scope, _replay(body, receive), send_with_id)
        except ReboundError as error:
            await problem(error, send_with_id, request_id)
        except Exception:
            log.exception("request failed", path=scope["path"], request_id=request_id)
            if not started:
                await problem(ReboundError(DEFECT), send_with_id, request_id)
            elif not finished:
                raise

    def _authorise(self, path: str, headers: dict[bytes, bytes]) -> Key:
        """Return what the caller may do. Loops are looked at where they are known: in routes and replies.

        Raises:
            Unauthorized: there is no key, or none of ours.
            RateLimited: the key calls too often.
            Forbidden: the key's role does not allow this; or there are no keys, and another site's page sent it.
        """
        if path in OPEN or path.startswith(OPEN_FOLDERS):
            return ANYBODY
        if self._this_machine_only:
            _check_site(headers)
        given = headers.get(b"x-api-key") or headers.get(b"authorization", b"").removeprefix(b"Bearer ")
        key = self._keys.find(given)
        if key is None:
            raise Unauthorized("send a key of this service in the header X-API-Key")
        if key.bucket is not None and (wait_s := key.bucket.take(time.monotonic())):
            self._metrics.limited(key.name)
            raise RateLimited(key.name, wait_s)
        if key.role != "admin" and path not in FOR_CLIENTS and not path.startswith("/decisions/"):
            raise Forbidden(
                "this is for admin keys; client keys may call /recommend, /recommend/batch, /feedback, /activity,"
                " /edges and /decisions"
            )
        return key

    async def _read(self, headers: dict[bytes, bytes], receive: Receive) -> bytes | None:
        if headers.get(b"content-encoding", b"identity").lower() not in (b"identity", b""):
            raise UnsupportedEncoding("send the body as it is, without Content-Encoding", accepts="identity")
        declared = headers.get(b"content-length", b"0")
        if not declared.isdigit() or int(declared) > self._limit:
            raise PayloadTooLarge(f"at most {self._limit} bytes are taken; send smaller batches", limit=self._limit)
        parts, size = [], 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self._limit:
                raise PayloadTooLarge(f"at most {self._limit} bytes are taken; send smaller batches", limit=self._limit)
            if not message.get("more_body"):
                return parts[0] if len(parts) == 1 else b"".join(parts)


def _check_path(scope: Scope) -> None:
    """Refuse a path that is not UTF-8: servers replace such bytes, and two ids would become one.

    Raises:
        InvalidRequest.
    """
    if "\ufffd" in scope["path"]:
        try:
            unquote_to_bytes(scope["raw_path"]).decode()
        except UnicodeDecodeError:
            raise InvalidRequest("path", "is not UTF-8") from None


def _check_site(headers: dict[bytes, bytes]) -> None:
    """Refuse what a page of another site has a browser send: under its own name, or under a name of ours that it took.

    A site may have its name resolve to 127.0.0.1 (DNS rebinding); the browser then holds this service for that site,
    and lets its pages read answers. So the name that was asked for must be one of this machine.

    Raises:
        Forbidden.
    """
    host = headers.get(b"host")
    if host is not None and not _is_this_machine(host):
        raise Forbidden(
            f"there are no keys, so this service answers to loopback names only, not to {host.decode('latin-1')!r}: "
            "set REBOUND_ADMIN_KEYS, or REBOUND_WITHOUT_KEYS=true if something else keeps others out",
            code="other_site",
        )
    origin = headers.get(b"origin")
    if origin is not None and origin.partition(b"://")[2] != host:
        raise Forbidden("there are no keys, and a page of another site sent this", code="other_site")


@lru_cache(maxsize=64)
def _is_this_machine(host: bytes) -> bool:
    """Return whether the name in a `Host` header, with or without a port, is a loopback one."""
    found = HOST.fullmatch(host.decode("latin-1").lower())
    return found is not None and is_loopback(found[1] or found[2])


def _replay(body: bytes, receive: Receive) -> Receive:
    waiting: list[Any] = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        message: Message = waiting.pop() if waiting else await receive()
        return message

    return again


async def respond(
    send: Send, status: int, body: bytes, *, media_type: str, headers: dict[str, str] | None = None
) -> None:
    """Send one complete response."""
    sent = [(b"content-type", media_type.encode()), (b"content-length", str(len(body)).encode())]
    sent += [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()]
    await send({"type": "http.response.start", "status": status, "headers": sent})
    await send({"type": "http.response.body", "body": body})


async def problem(error: ReboundError, send: Send, request_id: str) -> None:
    """Send an error as a response."""
    status, body, headers = render(error, request_id)
    await respond(send, status, body, media_type=MEDIA_TYPE, headers=headers)
