"""What holds for every route: methods, queries, encodings, ids in paths, defects."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
import structlog

from service.api.routes import status
from service.settings import Settings
from tests.conftest import Worker
from tests.waiting import until

Make = Callable[..., str]

GETS = (
    *("/healthz", "/readyz", "/status", "/metrics", "/docs", "/openapi.json", "/kinds", "/loops", "/loops/default"),
    *("/items", "/policies", "/traffic", "/assets/docs.js"),
)


@pytest.mark.parametrize("path", GETS)
def test_head_answers_as_get_does(client: httpx.Client, path: str) -> None:
    get, head = client.get(path), client.head(path)
    assert (get.status_code, head.status_code, head.content) == (200, 200, b"")
    assert head.headers["content-type"] == get.headers["content-type"]
    assert client.head(path + "x").status_code in (404, 422)


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/recommend", "POST"),
        ("/feedback", "POST"),
        ("/events", "POST"),
        ("/healthz", "GET, HEAD"),
        ("/docs", "GET, HEAD"),
        ("/openapi.json", "GET, HEAD"),
        ("/assets/docs.js", "GET, HEAD"),
        ("/items", "GET, HEAD, POST"),
        ("/items/a/b", "DELETE, GET, HEAD, PUT"),
        ("/loops", "GET, HEAD"),
        ("/loops/x", "DELETE, GET, HEAD, PUT"),
        ("/policies", "GET, HEAD, POST"),
        ("/policies/x", "DELETE, GET, HEAD"),
        ("/policies/x/activate", "POST"),
        ("/policies/x/rollback", "POST"),
        ("/policies/x/train", "POST"),
        ("/traffic", "GET, HEAD, PUT"),
        ("/decisions/x", "GET, HEAD"),
    ],
)
def test_a_405_names_the_methods_that_are_allowed(client: httpx.Client, path: str, allowed: str) -> None:
    methods = {"GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"} - set(allowed.split(", "))
    for method in methods:
        reply = client.request(method, path)
        assert (reply.status_code, reply.headers["allow"]) == (405, allowed), method
        if method != "HEAD":
            assert reply.json()["allow"] == allowed.split(", ")


@pytest.mark.parametrize("path", [*GETS, "/items/a", "/decisions/a", "/policies/a", "/nowhere"])
def test_unknown_query_parameters_are_refused(client: httpx.Client, path: str) -> None:
    expected = 404 if path == "/nowhere" else 422
    for query in ("explained=true", "loop_=default", "LOOP=default", "loops=default", "x", "", "=1"):
        reply = client.get(f"{path}?{query}")
        assert reply.status_code == (expected if query else client.get(path).status_code), query
        if query and expected == 422:
            assert reply.json()["errors"][0]["field"] == query.split("=")[0]


def test_unknown_query_parameters_are_refused_with_every_method(client: httpx.Client, make_loop: Make) -> None:
    loop = make_loop(policy=None)
    calls: list[tuple[str, str, Any]] = [
        ("POST", "/items", {"items": [{"id": "new"}]}),
        ("PUT", "/items/new", {}),
        ("DELETE", "/items/p001", None),
        ("POST", "/events", {"events": [{"event_id": "e", "item_id": "a", "reward": 1}]}),
        ("POST", "/policies", {"kind": "random"}),
        ("PUT", "/traffic", {}),
        ("POST", "/recommend", {}),
    ]
    for method, path, body in calls:
        reply = client.request(method, path, params={"loop": loop, "dry_run": "true"}, json=body)
        assert (reply.status_code, reply.json()["errors"][0]["field"]) == (422, "dry_run"), path
        twice = client.request(method, path, params=[("loop", loop), ("loop", loop)], json=body)
        assert (twice.status_code, twice.json()["errors"][0]["field"]) == (422, "loop"), path
    assert client.request("DELETE", f"/loops/{loop}?loop={loop}-other").status_code == 422
    assert client.get("/items", params={"loop": loop}).json()["items"][0]["id"] == "p000"
    assert len(client.get("/items", params={"loop": loop}).json()["items"]) == 10


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/items"), ("PUT", "/items/a"), ("PUT", "/loops/x"), ("POST", "/events"), ("GET", "/status")],
)
def test_encoded_bodies_are_refused_everywhere(client: httpx.Client, method: str, path: str) -> None:
    reply = client.request(method, path, content=b"\x1f\x8b", headers={"Content-Encoding": "gzip"})
    assert (reply.status_code, reply.json()["code"]) == (415, "unsupported_encoding")
    assert reply.headers["accept-encoding"] == "identity"


@pytest.mark.parametrize("media_type", ["", "text/plain", "application/x-www-form-urlencoded", "application/jsonx"])
def test_administration_takes_json_only(client: httpx.Client, media_type: str) -> None:
    """A page of another site may send the others without being asked, to a service without keys."""
    headers = {"Content-Type": media_type} if media_type else {}
    reply = client.put("/loops/csrf", content=b"{}", headers=headers)
    assert (reply.status_code, reply.json()["errors"][0]["field"]) == (422, "body")
    assert "application/json" in reply.json()["detail"]
    for good in ("application/json", "Application/JSON; charset=utf-8", "application/merge-patch+json"):
        reply = client.put("/loops/UPPER", content=b"{}", headers={"Content-Type": good})
        assert reply.json()["errors"][0]["field"] == "loop", good


@pytest.mark.parametrize("body", [b"", b"{", b"NaN", b'"\xff"', b"[" * 100_000])
def test_administration_reads_json_by_the_letter(client: httpx.Client, body: bytes) -> None:
    for method, path in (("PUT", "/loops/x"), ("POST", "/items"), ("PUT", "/traffic"), ("POST", "/policies")):
        reply = client.request(method, path, content=body, headers={"Content-Type": "application/json"})
        assert (reply.status_code, reply.json()["code"]) == (400, "malformed_json"), path


# ---- ids

IDS = [
    *("a/b", "/a", "a/", "//", "/", "../x", "..", ".", "./a", "a/../b", "https://shop.example/p?id=1#top", "a?loop=x"),
    *("a b", " a ", "+", "%2F", "%", "a%00b", "\x00", "a\n", "\n", "a\r\nb", "\ta", "\x7f", "\\", '"', "'", "{a}", ":"),
    *("é", "e\u0301", "日本語", "🐟", "\u200b", "\u2028", "\ufffd", "\U0010ffff", "null", "true", "0", "-1", "1.0"),
    *("x" * 128, "é" * 128, "🐟" * 128, "activate", "a/activate", "sku-1;v=2", "a,b", "a&b=c", "~", "%FF"),
]


def encoded(item: str) -> str:
    """Every byte as %XX: a client would resolve `..` by itself."""
    return "".join(f"%{byte:02X}" for byte in item.encode())


def test_whatever_a_body_takes_as_an_id_can_be_addressed(client: httpx.Client, make_loop: Make) -> None:
    params = {"loop": make_loop(policy=None, items=0)}
    items = [{"id": item, "features": {"n": number}} for number, item in enumerate(IDS)]
    client.post("/items", params=params, json={"items": items}).raise_for_status()
    assert {item["id"] for item in client.get("/items", params=params).json()["items"]} == set(IDS)
    for number, item in enumerate(IDS):
        path = f"/items/{encoded(item)}"
        found = client.get(path, params=params)
        assert (found.status_code, found.json()) == (200, {"id": item, "features": {"n": number}}), repr(item)
        assert client.put(path, params=params, json={"features": {"n": -number}}).status_code == 200, repr(item)
        assert client.get(path, params=params).json() == {"id": item, "features": {"n": -number}}, repr(item)
        decision = {**params, "candidates": [item], "decision_id": item, "user_id": item}
        assert client.post("/recommend", json=decision).json()["decision_id"] == item, repr(item)
        sent = {**params, "decision_id": item, "item_id": item, "feedback_id": item, "reward": 1}
        assert client.post("/feedback", json=sent).json() == {"status": "accepted"}, repr(item)
        ledger = client.get(f"/decisions/{encoded(item)}", params=params).json()
        assert (ledger["decision"]["decision_id"], ledger["status"]) == (item, "rewarded"), repr(item)
        assert ledger["feedback"][0]["feedback_id"] == item, repr(item)
    for left, item in zip(reversed(range(len(IDS))), IDS, strict=True):
        assert client.delete(f"/items/{encoded(item)}", params=params).status_code == 204, repr(item)
        assert len(client.get("/items", params=params).json()["items"]) == left, repr(item)


def test_what_a_body_refuses_as_an_id_a_path_refuses(client: httpx.Client, make_loop: Make) -> None:
    params = {"loop": make_loop(policy=None, items=0)}
    for item in ("", "x" * 129, "🐟" * 129):
        path = f"/items/{encoded(item)}"
        for reply in (
            client.get(path, params=params),
            client.put(path, params=params, json={}),
            client.delete(path, params=params),
            client.get(f"/decisions/{encoded(item)}", params=params),
            client.post("/items", params=params, json={"items": [{"id": item}]}),
            client.post("/recommend", json={**params, "candidates": [item]}),
        ):
            assert (reply.status_code, reply.json()["code"]) == (422, "invalid_request"), reply.text
    assert client.get("/items", params=params).json()["items"] == []


def test_bytes_that_are_no_text_name_no_item(client: httpx.Client, make_loop: Make) -> None:
    """A server replaces them by U+FFFD, and would delete the item of that name."""
    params = {"loop": make_loop(policy=None, items=0)}
    client.put("/items/%EF%BF%BD", params=params, json={}).raise_for_status()
    for raw in ("%FF", "%C3", "%ED%A0%80", "%EF%BF%BD%FF"):
        reply = client.delete(f"/items/{raw}", params=params)
        assert (reply.status_code, reply.json()["errors"][0]["field"]) == (422, "path"), raw
    assert client.delete("/items/%EF%BF%BD", params=params).status_code == 204


def test_pages_of_items_are_cut_after_any_id(client: httpx.Client, make_loop: Make) -> None:
    params: dict[str, Any] = {"loop": make_loop(policy=None, items=0)}
    client.post("/items", params=params, json={"items": [{"id": item} for item in IDS]}).raise_for_status()
    seen: list[str] = []
    after: str | None = ""
    while after is not None:
        page = client.get("/items", params={**params, "limit": 1, "after": after}).json()
        seen += [item["id"] for item in page["items"]]
        after = page["next"]
    assert seen == sorted(IDS, key=str.encode)


# ---- request ids, defects, keys


@pytest.mark.parametrize(
    ("given", "expected"), [("abc", "abc"), ("x" * 200, "x" * 128), ("a b;c", "a b;c"), ("é", "é"), ("", None)]
)
def test_the_request_id_is_echoed_or_made(client: httpx.Client, given: str, expected: str | None) -> None:
    reply = client.get("/items/none", headers={b"X-Request-ID": given.encode("latin-1")})
    echoed = dict(reply.headers.raw)[b"x-request-id"].decode("latin-1")
    assert reply.json()["request_id"] == echoed
    assert echoed == expected if expected else len(echoed) == 32


@pytest.fixture(scope="module")
def broken(settings: Settings) -> Iterator[str]:
    """The address of a worker whose every route has a defect."""

    async def defect(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("service.api.replies.HotRoutes.recommend", defect)
        patch.setattr("service.api.replies.HotRoutes.feedback", defect)
        patch.setattr(status, "read_status", defect)
        patch.setattr("service.api.routes.items.change_items", defect)
        with Worker(settings, learner=False) as url, Worker(settings, learner=False, hot_path=False) as ordinary:
            yield f"{url} {ordinary}"


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/recommend", {}),
        ("POST", "/feedback", {"decision_id": "a", "reward": 1}),
        ("GET", "/status", None),
        ("PUT", "/items/a", {}),
    ],
)
def test_a_defect_is_a_problem_with_the_request_id(broken: str, method: str, path: str, body: Any) -> None:
    for url in broken.split():
        with structlog.testing.capture_logs() as logs:
            reply = httpx.request(method, url + path, json=body, headers={"X-Request-ID": "find-me"})
            until(lambda: logs, "the defect is logged")
        assert [(line["event"], line.get("request_id")) for line in logs] == [("request failed", "find-me")]
        assert reply.status_code == 500
        assert reply.headers["content-type"] == "application/problem+json"
        assert (reply.json()["code"], reply.json()["request_id"]) == ("internal", "find-me")
        assert "ZeroDivisionError" not in reply.text
        assert httpx.get(f"{url}/healthz").status_code == 200


def test_unknown_paths_are_problems(client: httpx.Client) -> None:
    for path in ("/nowhere", "/", "/recommend/x", "/loops/a/b", "/policies/a/b", "/items/"):
        reply = client.get(path)
        assert reply.headers["content-type"] == "application/problem+json"
        assert reply.status_code == (422 if path == "/items/" else 404)


def test_a_path_that_names_a_loop_takes_the_same_loop_in_the_query(client: httpx.Client) -> None:
    """Every route takes `?loop=`, so that a client may send it with every call."""
    assert client.get("/loops/default", params={"loop": "default"}).status_code == 200
    other = client.get("/loops/default", params={"loop": "shop"})
    assert (other.status_code, other.json()["errors"][0]["field"]) == (422, "loop")
