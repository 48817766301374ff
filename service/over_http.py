"""Calls a running service, for commands that work through its API."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any

import orjson

from service.errors import ReboundError

TIMEOUT_S = 30.0


def call(method: str, url: str, key: str | None, body: Mapping[str, Any] | bytes | None = None) -> Any:
    """Call a route of a running service; return what it answers.

    Args:
        key: an API key; None: none is needed.
        body: a JSON object, or one that is written already.

    Raises:
        ReboundError: the service refuses; `extra` holds the members of its answer beside the detail.
        OSError: the service does not answer.
    """
    headers = {} if key is None else {"X-API-Key": key}
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    if data is not None:
        headers["Content-Type"] = "application/json"
    request = urllib.request.Request(url, data=data, headers=headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as reply:
            return orjson.loads(reply.read())
    except urllib.error.HTTPError as error:
        with error:
            try:
                said = dict(json.loads(error.read()))
                detail = said.pop("detail")
            except (ValueError, KeyError, TypeError):
                said, detail = {}, f"{url} answers {error.code}"
        raise ReboundError(detail, code=said.pop("code", None), **said) from error
