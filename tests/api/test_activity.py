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


def test_rewarded_items_count_as_activity_where_the_loop_says_so(
    client: httpx.Client, other_client: httpx.Client, make_loop: Callable[..., str]
) -> None:
    loop = make_loop(items=4, reward_activity=True, aggregation="sum", early_time=60)

    def rewarded(user: str | None, reward: float, times: int = 1, **sent: Any) -> str:
        asked = {"loop": loop, "user_id": user, **sent}
        decision = client.post("/recommend", json=asked).raise_for_status().json()
        for _ in range(times):
            report = {"loop": loop, "decision_id": decision["decision_id"], "reward": reward}
            assert client.post("/feedback", json=report).status_code == 202
        item: str = decision["items"][0]["id"]
        return item

    assert context_of(client, loop, "u/é") == {}
    rewarded("u/é", 0)
    rewarded(None, 1)
    assert context_of(client, loop, "u/é") == {}
    first = rewarded("u/é", 1, times=2)  # the second report on an item adds to its reward, and is no activity
    for one in (client, other_client):
        state = context_of(one, loop, "u/é")["@user"]
        assert (state["last_item"], state["last_type"], state["count"]) == (first, "reward", 1)
    early = {"loop": loop, "decision_id": "mine", "reward": 1}
    assert client.post("/feedback", json=early).json() == {"status": "early"}
    second = rewarded("u/é", 0, decision_id="mine")
    send(client, loop, {"user_id": "u/é", "item_id": "p001", "type": "view"})
    state = context_of(client, loop, "u/é")["@user"]
    assert (state["count"], state["kept"]) == (3, 3)
    shown = client.get("/users/u%2F%C3%A9", params={"loop": loop}).json()
    kinds = [(one["item_id"], one["type"]) for one in shown["activity"]]
    assert sorted(kinds) == sorted([(first, "reward"), (second, "reward"), ("p001", "view")])

    rewarded("gone", 1)  # nobody asks for him: a learner takes it up

    def status() -> dict[str, int]:
        told: dict[str, int] = client.get("/status").json()["loops"][loop]
        return told

    until(lambda: status()["activity"] == 4, "the reward of a user who does not come again is taken up")
    assert status()["activity_logged"] == status()["activity_held"] == 4
    assert (status()["activity_waiting"], status()["activity_dropped"]) == (0, 0)
    client.put(f"/loops/{loop}", json={"reward_activity": False}).raise_for_status()
    until(lambda: not client.get(f"/loops/{loop}").json()["settings"]["reward_activity"], "it is off")
    rewarded("u/é", 1)
    assert context_of(client, loop, "u/é")["@user"]["count"] == 3
