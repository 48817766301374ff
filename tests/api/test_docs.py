"""`/docs` and `/openapi.json`: open to a browser, complete, and made of nothing from elsewhere."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.settings import Settings
from tests.browser import visit
from tests.conftest import Worker

Spec = dict[str, Any]


@pytest.fixture(scope="module")
def guarded(settings: Settings) -> Iterator[str]:
    """The address of a worker with keys, as compose starts it."""
    with_keys = Settings(redis_url=settings.redis_url, admin_keys="admin-secret", client_keys="client-secret")
    with Worker(with_keys, learner=False) as url:
        yield url


@pytest.fixture(scope="module")
def spec(guarded: str) -> Spec:
    found: Spec = httpx.get(f"{guarded}/openapi.json", timeout=60).json()
    return found


def operations(spec: Spec) -> Iterator[tuple[str, Spec]]:
    for path, methods in spec["paths"].items():
        for method, operation in methods.items():
            yield f"{method.upper()} {path}", operation


def says_something(schema: Spec, spec: Spec) -> bool:
    """Whether a schema, or what it refers to, names a type."""
    if "$ref" in schema:
        return says_something(spec["components"]["schemas"][schema["$ref"].rsplit("/", 1)[1]], spec)
    if schema.get("type") == "object":
        return bool(schema.get("properties")) or says_something(schema.get("additionalProperties") or {}, spec)
    parts = schema.get("anyOf") or schema.get("oneOf")
    return all(says_something(part, spec) for part in parts) if parts else "type" in schema


def test_what_is_empty_says_nothing() -> None:
    assert not says_something({}, {})
    assert not says_something({"type": "object"}, {})
    assert not says_something({"title": "x", "anyOf": [{"type": "string"}, {}]}, {})


def test_every_operation_has_a_tag_a_summary_and_a_description(spec: Spec) -> None:
    named = {tag["name"] for tag in spec["tags"]}
    found = dict(operations(spec))
    assert len(found) >= 25
    for name, operation in found.items():
        assert operation["summary"], name
        assert operation["description"], name
        assert set(operation["tags"]) <= named, name
        assert len(operation["tags"]) == 1, name
    assert len({operation["operationId"] for operation in found.values()}) == len(found)


def test_every_reply_has_a_type(spec: Spec) -> None:
    """No body with 204; a problem with every error."""
    for name, operation in operations(spec):
        replies = operation["responses"]
        assert any(status.startswith("2") for status in replies), name
        assert {"401", "403", "422", "500"} <= replies.keys(), name
        assert ("requestBody" in operation) <= ({"400", "413", "415"} <= replies.keys()), name
        for status, reply in replies.items():
            if status == "204":
                assert "content" not in reply, name
                continue
            [(media_type, content)] = reply["content"].items()
            assert says_something(content["schema"], spec), f"{name} {status}"
            assert (media_type == "application/problem+json") == (status >= "400"), f"{name} {status}"
            assert reply["description"], f"{name} {status}"


def test_every_error_that_is_met_is_documented(spec: Spec, guarded: str) -> None:
    """A problem has the fields that the description says, and no others."""
    known = spec["components"]["schemas"]["Problem"]["properties"].keys()
    with httpx.Client(base_url=guarded, headers={"X-API-Key": "admin-secret"}) as client:
        met = [
            client.get("/recommend"),
            client.get("/items/none"),
            client.put("/loops/x", json={"wait_time": 0}),
            client.post("/recommend", content=b"x" * 9_000_000),
            client.post("/recommend", content=b"x", headers={"Content-Encoding": "gzip"}),
            client.post("/recommend", content=b"x"),
            client.post("/recommend", json={"candidates": []}),
            client.get("/status", headers={"X-API-Key": "client-secret"}),
            client.get("/status", headers={"X-API-Key": "wrong"}),
        ]
    assert [reply.status_code for reply in met] == [405, 404, 422, 413, 415, 400, 422, 403, 401]
    for reply in met:
        problem = reply.json()
        assert problem.keys() <= known
        assert {"type", "title", "status", "code", "detail", "request_id"} <= problem.keys()
        assert problem["request_id"] == reply.headers["x-request-id"]


def test_when_to_come_again_is_described(spec: Spec) -> None:
    """Any key may have a limit, so every operation may answer with a 429."""
    for name, operation in operations(spec):
        assert operation["responses"]["429"]["headers"]["Retry-After"]["schema"]["type"] == "integer", name
    assert "Retry-After" in spec["paths"]["/feedback"]["post"]["responses"]["503"]["headers"]


def test_keys_are_described(spec: Spec) -> None:
    schemes = spec["components"]["securitySchemes"]
    assert {(scheme["type"], scheme.get("name", scheme.get("scheme"))) for scheme in schemes.values()} == {
        ("apiKey", "X-API-Key"),
        ("http", "bearer"),
    }
    for name, operation in operations(spec):
        asked = {scheme for way in operation["security"] for scheme in way}
        assert asked == (set() if name in ("GET /healthz", "GET /readyz") else set(schemes)), name


def test_the_description_names_all_and_only_what_is_there(spec: Spec) -> None:
    assert {"/recommend", "/feedback", "/events", "/policies/{name}/rollback", "/status"} <= set(spec["paths"])
    assert spec["components"]["schemas"]["RecommendRequest"]["examples"]
    assert not {path for path in spec["paths"] if path.startswith(("/docs", "/assets", "/openapi"))}


class References(HTMLParser):
    """Collects what a page refers to, and its scripts that stand in the page itself."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.inside = 0
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        self.found += [value for name in ("src", "href") if (value := named.get(name))]
        self.inside += tag in ("script", "style") and "src" not in named


def test_the_page_refers_to_nothing_elsewhere(guarded: str) -> None:
    """A browser sends no key for a page: page, description, scripts and styles are open."""
    page = httpx.get(f"{guarded}/docs")
    assert page.status_code == 200
    references = References(page.text)
    assert references.inside == 0
    assert len(references.found) >= 4
    for reference in references.found:
        if reference != "data:,":
            assert not re.match(r"[a-z]+:|/", reference), reference  # relative: it works behind a prefix, too
            assert httpx.get(f"{guarded}/{reference}").status_code == 200
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert set(re.findall(r"'[a-z-]+'|[a-z]+:", policy)) == {"'none'", "'self'", "data:"}


def test_assets_are_checked_for_changes_and_nothing_else_is_served(guarded: str) -> None:
    first = httpx.get(f"{guarded}/assets/swagger-ui.css")
    assert first.headers["x-content-type-options"] == "nosniff"
    assert first.headers["content-security-policy"]
    again = httpx.get(f"{guarded}/assets/swagger-ui.css", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    for name in ("", "..%2Fapp.py", "..%2f..%2f..%2fpyproject.toml", "%00", "redoc.standalone.js"):
        reply = httpx.get(f"{guarded}/assets/{name}")
        assert (reply.status_code, reply.headers["content-type"]) == (404, "application/problem+json"), name
    assert httpx.put(f"{guarded}/assets/docs.js").status_code == 405
    assert httpx.get(f"{guarded}/assets/docs.js?v=1").status_code == 422


def test_a_browser_shows_the_operations_and_loads_nothing_from_elsewhere(guarded: str, spec: Spec) -> None:
    seen = visit(f"{guarded}/docs")
    for path in spec["paths"]:
        assert f'data-path="{path}"' in seen.dom
    assert seen.dom.count('class="opblock opblock-') == len(list(operations(spec)))
    assert "Authorize" in seen.dom
    assert {url.removeprefix(guarded) for url in seen.requested} == {
        "/docs",
        "/assets/swagger-ui.css",
        "/assets/swagger-ui-bundle.js",
        "/assets/docs.js",
        "/openapi.json",
    }
    assert seen.console == []


def test_the_browser_would_tell_of_a_page_that_loads_from_elsewhere(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(
        "<p>text</p><script src='http://elsewhere.example/a.js'></script><script>console.log('said')</script>"
    )
    seen = visit(page.as_uri())
    assert "http://elsewhere.example/a.js" in seen.requested
    assert "said" in "".join(seen.console)
    assert "<p>text</p>" in seen.dom
