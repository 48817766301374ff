"""`strict`: a request with a field that the declared schema cannot use is refused, and the field named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest

Make = Callable[..., str]
SCHEMA = {
    "context": {
        "segment": {"type": "categorical", "levels": ["a", "b"]},
        "age": {"type": "numeric", "min": 0, "max": 100},
    },
    "item": {"taste": {"type": "vector", "size": 2}},
    "hash_dims": 0,
}
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"context": {"segment": "c"}}, "context.segment"),
    ({"context": {"age": "old"}}, "context.age"),
    ({"context": {"age": 101}}, "context.age"),
    ({"context": {"colour": "red"}}, "context.colour"),
    ({"candidates": [{"id": "x", "features": {"taste": [1]}}]}, "candidates.features.taste"),
    ({"candidates": [{"id": "x", "features": {"size": 1}}]}, "candidates.features.size"),
]


@pytest.mark.parametrize(("body", "field"), WRONG, ids=[field for _, field in WRONG])
def test_a_strict_loop_names_the_field(client: httpx.Client, make_loop: Make, body: dict[str, Any], field: str) -> None:
    strict = make_loop(items=0, policy=None, schema=SCHEMA, strict=True)
    asked = {"candidates": ["x"], **body}
    refused = client.post("/recommend", json={"loop": strict, **asked})
    assert (refused.status_code, refused.json()["errors"][0]["field"]) == (422, field), refused.text
    assert client.get("/status").json()["loops"][strict]["decisions"] == 0
    lenient = make_loop(items=0, policy=None, schema=SCHEMA)
    assert client.post("/recommend", json={"loop": lenient, **asked}).status_code == 200


def test_what_fits_is_answered(client: httpx.Client, make_loop: Make) -> None:
    strict = make_loop(items=0, policy="linucb", schema=SCHEMA, strict=True)
    for context in ({"segment": "a", "age": 7}, {"age": None}, {}):
        asked = {"loop": strict, "context": context, "candidates": [{"id": "x", "features": {"taste": [1, 2]}}]}
        assert client.post("/recommend", json=asked).status_code == 200


def test_without_a_schema_strict_refuses_no_field(client: httpx.Client, make_loop: Make) -> None:
    loop = make_loop(items=0, policy=None, strict=True)
    asked = {"loop": loop, "context": {"any": {"thing": [1, 2]}}, "candidates": ["x"]}
    assert client.post("/recommend", json=asked).status_code == 200
    assert client.put(f"/loops/{loop}", json={"strict": "yes"}).status_code == 422
