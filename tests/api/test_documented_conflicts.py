"""A loop that a newer version has written to is a 409, and `/openapi.json` says so of each route that answers it."""

from __future__ import annotations

from collections.abc import Callable

import httpx
import pytest
from redis import Redis

from service.store.codec import FORMAT
from service.store.keys import loop_record

ROUTES: list[tuple[str, str, object]] = [
    ("GET", "/loops/{loop}", None),
    ("DELETE", "/items/{item_id}", None),
    ("GET", "/dead-letters", None),
    ("POST", "/dead-letters/retry", {}),
]


@pytest.mark.parametrize(("method", "path", "body"), ROUTES)
def test_what_is_answered_is_documented(
    client: httpx.Client, make_loop: Callable[..., str], redis_url: str, method: str, path: str, body: object
) -> None:
    loop = make_loop()
    item = client.get("/items", params={"loop": loop}).json()["items"][0]["id"]
    with Redis.from_url(redis_url) as redis:
        redis.hset(loop_record(loop), "v", FORMAT + 1)
        answer = client.request(method, path.format(loop=loop, item_id=item), params={"loop": loop}, json=body)
        redis.hset(loop_record(loop), "v", FORMAT)
    said = client.get("/openapi.json").json()["paths"][path][method.lower()]["responses"]
    assert (answer.status_code, answer.json()["code"]) == (409, "newer_format")
    assert "409" in said
