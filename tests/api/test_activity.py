"""`POST /activity`, and the state of the user in the decision that follows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from tests.waiting import until


def send(client: httpx.Client, loop: str, *activity: Any) -> list[dict[str, str]]:
    reply = client.post("/activity", json={"loop": loop, "activity": activity})
    assert reply.status_code == 200, reply.text
    results: list[dict[str, str]] = reply.json()["results"]
    return results


def context_of(client: httpx.Client, loop: str, user: str | None, **asked: Any) -> dict[str, Any]:
    """Ask for a decision, and return the context that its record holds."""
    decision = client.post("/recommend", json={"loop": loop, "user_id": user, **asked}).raise_for_status().json()
    assert not decision["degraded"]
    record = client.get(f"/decisions/{decision['decision_id']}").json()["decision"]
    found: dict[str, Any] = record["context"]
    return found


def test_the_next_decision_sees_what_was_just_sent(
    client: httpx.Client, other_client: httpx.Client, make_loop: Callable[..., str]
) -> None:
    loop = make_loop(items=4, activity_kept=2)
    assert context_of(client, loop, "u", context={"hour": 3}) == {"hour": 3}
    click = {"user_id": "u", "item_id": "p001", "type": "click", "activity_id": "a1"}
    assert send(client, loop, click) == [{"status": "accepted"}]
    found = context_of(client, loop, "u", context={"hour": 3})
    assert found["hour"] == 3
    assert found["@user"].pop("seconds_since") in range(5)
    assert found["@user"] == {
        "last": {"category": "b", "price": 1},
        "last_item": "p001",
        "last_type": "click",
        "recent": {"category": ["b"]},
        "often": {"category": ["b"]},
        "count": 1,
        "kept": 1,
    }
    late = {"user_id": "u", "item_id": "p000", "type": "buy", "at": "2020-01-01T00:00:00Z"}
    assert send(client, loop, click, late, {**late, "user_id": "v"}) == [
        {"status": "duplicate"},
        {"status": "accepted"},
        {"status": "accepted"},
    ]
    again = context_of(client, loop, "u")["@user"]
    assert (again["last_item"], again["count"], again["kept"]) == ("p001", 2, 2)
    assert context_of(client, loop, "nobody", context={"hour": 3}) == {"hour": 3}
    assert context_of(client, loop, None) == {}
    until(lambda: "@user" in context_of(other_client, loop, "v"), "another worker knows that there is activity")
    told = client.get("/status").json()["loops"][loop]
    assert (told["activity"], told["activity_duplicate"], told["activity_users"]) == (3, 1, 2)
    assert told["activity_user_bytes"] > 0


def test_each_element_is_answered_by_itself(client: httpx.Client, make_loop: Callable[..., str]) -> None:
    loop = make_loop(items=2)
    good = {"user_id": 7, "item_id": "p000", "type": "own-word"}
    wrong = [{**good, "type": "Two Words"}, {**good, "at": True}, {"user_id": "u", "type": "view"}, {**good, "x": 1}, 3]
    results = send(client, loop, good, *wrong)
    assert results[0] == {"status": "accepted"}
    assert [result["status"] for result in results[1:]] == ["rejected"] * 5
    for result, field in zip(results[1:], ["type", "at", "item_id", "x", "activity"], strict=True):
        assert (result["code"], result["detail"].startswith(field)) == ("invalid_request", True), result


@pytest.mark.parametrize(
    ("path", "body", "status", "field"),
    [
        ("/activity", {"activity": []}, 422, "activity"),
        ("/activity", {"activity": [{}] * 1001}, 422, "activity"),
        ("/activity", {}, 422, "activity"),
        ("/activity", {"loop": "nowhere", "activity": [{}]}, 404, None),
        ("/recommend", {"context": {"@user": {"last_item": "a"}}}, 422, "context.@user"),
    ],
)
def test_what_is_wrong_is_named(client: httpx.Client, path: str, body: Any, status: int, field: str | None) -> None:
    reply = client.post(path, json=body)
    assert reply.status_code == status
    if field is not None:
        assert reply.json()["errors"][0]["field"] == field


def test_a_strict_loop_does_not_blame_the_client_for_the_state(
    client: httpx.Client, make_loop: Callable[..., str]
) -> None:
    schema = {"context": {"hour": {"type": "numeric", "min": 0, "max": 23}}, "hash_dims": 0}
    loop = make_loop(items=2, strict=True, schema=schema)
    send(client, loop, {"user_id": "u", "item_id": "p000", "type": "view"})
    assert "@user" in context_of(client, loop, "u", context={"hour": 3})
