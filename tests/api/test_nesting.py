"""A body that is nested deeper than what can be stored is refused on every route, and what is not is taken."""

from __future__ import annotations

from collections.abc import Callable

import httpx
import pytest

from service.api.replies import MOST_NESTED

BODIES = [  # path, body around X, levels of it around X
    ("/recommend", '{"context": X}', 1),
    ("/recommend", '{"candidates": [{"id": "a", "features": X}], "k": 1}', 3),
    ("/items", '{"items": [{"id": "deep", "features": X}]}', 3),
    ("/events", '{"events": [{"event_id": "e", "item_id": "a", "reward": 1, "context": X}]}', 3),
    ("/events", '{"events": [{"event_id": "f", "item_id": "a", "reward": 1, "features": X}]}', 3),
]


@pytest.mark.parametrize(("path", "body", "around"), BODIES)
def test_bodies_as_deep_as_allowed_are_taken_and_deeper_ones_are_not(
    client: httpx.Client, make_loop: Callable[..., str], path: str, body: str, around: int
) -> None:
    loop = make_loop(items=2, policy=None)
    headers = {"content-type": "application/json"}

    def send(levels: int) -> httpx.Response:
        nested = '{"a":' * (levels - 1) + "{}" + "}" * (levels - 1)
        return client.post(path, params={"loop": loop}, headers=headers, content=body.replace("X", nested))

    for levels in (MOST_NESTED + 1, 1000):
        refused = send(levels - around)
        assert refused.status_code == 422
        assert refused.json()["detail"] == f"body: is nested deeper than {MOST_NESTED} levels"
    taken = send(MOST_NESTED - around)
    assert taken.status_code == 200, taken.text
    if "decision_id" in taken.json():
        path = f"/decisions/{taken.json()['decision_id']}"
        assert client.get(path, params={"loop": loop}).status_code == 200
    assert client.get("/items", params={"loop": loop}).status_code == 200
