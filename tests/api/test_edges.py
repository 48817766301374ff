"""`POST /edges`, `DELETE /edges`, and what a decision sees of a user's neighbourhood."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from tests.api.test_activity import context_of
from tests.waiting import until

RESULTS = "results"


def send(client: httpx.Client, loop: str, *edges: Any) -> list[dict[str, str]]:
    reply = client.post("/edges", json={"loop": loop, "edges": edges})
    assert reply.status_code == 200, reply.text
    results: list[dict[str, str]] = reply.json()[RESULTS]
    return results


def test_a_decision_sees_what_friends_took_and_who_of_them_know_each_other(
    client: httpx.Client, make_loop: Callable[..., str]
) -> None:
    loop = make_loop(items=4)
    assert context_of(client, loop, "u", context={"hour": 3}) == {"hour": 3}
    edges = [{"from": "u", "to": to} for to in ("a", "b", "c")] + [{"from": "b", "to": "a", "kind": "follows"}]
    assert send(client, loop, *edges) == [{"status": "accepted"}] * 4
    took = [{"user_id": user, "item_id": item, "type": "buy"} for user, item in (("a", "p000"), ("c", "p001"))]
    client.post("/activity", json={"loop": loop, "activity": took}).raise_for_status()
    shown = client.post("/recommend", json={"loop": loop, "user_id": "b", "candidates": ["p002"]}).json()
    client.post("/feedback", json={"decision_id": shown["decision_id"], "reward": 1}).raise_for_status()

    def graph() -> dict[str, Any]:
        found: dict[str, Any] = context_of(client, loop, "u", context={"hour": 3}).get("@graph", {})
        return found

    until(lambda: sorted(graph().get("items", [])) == ["p000", "p001", "p002"], "all takes have come")
    found = graph()
    assert found.pop("version") > 0
    assert (found["friends"], found["triangles"], found["clustering"]) == (3, 1, 0.3333)
    assert found["circle"] == {"category": ["a"]}
    assert sorted(found["took"]["category"]) == ["a", "b"]
    assert context_of(client, loop, "nobody", context={"hour": 3}) == {"hour": 3}

    kept = client.get("/users/u", params={"loop": loop}).json()
    assert [(edge["to"], edge["kind"], edge["weight"]) for edge in kept["edges"]] == [
        (to, "friend", 1.0) for to in ("a", "b", "c")
    ]
    assert {**found, "version": kept["graph"]["version"]} == kept["graph"]
    other = client.get("/users/b", params={"loop": loop}).json()
    assert other["known_by"] == ["u"]
    assert [(take["item_id"], take["share"]) for take in other["took"]] == [("p002", 1.0)]
    told = client.get("/status").json()["loops"][loop]
    assert (told["edges"], told["edge_users"], told["edges_pending"], told["graph_stale"]) == (4, 2, 0, 0)
    assert told["edge_user_bytes"] > 0

    gone = client.delete("/edges", params={"loop": loop, "from": "b", "to": "a", "kind": "follows"})
    assert (gone.status_code, gone.json()) == (200, {"status": "deleted"})
    until(lambda: graph()["triangles"] == 0, "the triangle is gone")
    assert "circle" not in graph()
    again = client.delete("/edges", params={"loop": loop, "from": "b", "to": "a", "kind": "follows"})
    assert (again.status_code, again.json()["code"]) == (404, "unknown_edge")


def test_what_friends_took_becomes_a_candidate(client: httpx.Client, make_loop: Callable[..., str]) -> None:
    funnel = {"sources": [{"source": "friends", "quota": 2}, {"source": "fresh", "quota": 1}], "cut": 3}
    loop = make_loop(items=40, funnel=funnel)
    send(client, loop, {"from": "u", "to": "a"})
    took = [{"user_id": "a", "item_id": "p031", "type": "buy"}]
    client.post("/activity", json={"loop": loop, "activity": took}).raise_for_status()

    def origins() -> list[dict[str, Any]]:
        asked = {"loop": loop, "user_id": "u", "explain": True}
        found = client.post("/recommend", json=asked).raise_for_status().json()["explanation"]
        return [source for one in found if one["id"] == "p031" for source in one["sources"] or ()]

    until(lambda: bool(origins()), "what a friend took is a candidate")
    assert {"source": "friends", "rank": 1, "score": 1.0} in origins()


def test_each_element_is_answered_by_itself(client: httpx.Client, make_loop: Callable[..., str]) -> None:
    loop = make_loop(items=2, edges_kept=2)
    good = {"from": 7, "to": "b", "weight": 2, "at": 1.7e9}
    wrong: list[Any] = [
        {**good, "to": 7},
        {**good, "weight": 0},
        {**good, "weight": True},
        {**good, "kind": "Two Words"},
        {"from": "u"},
        {**good, "user": "u"},
        3,
    ]
    results = send(client, loop, good, good, {**good, "weight": 3}, *wrong)
    assert [result["status"] for result in results] == ["accepted", "duplicate", "accepted"] + ["rejected"] * len(wrong)
    fields = ["body", "weight", "weight", "kind", "to", "user", "edges"]
    for result, field in zip(results[3:], fields, strict=True):
        assert (result["code"], result["detail"].startswith(field)) == ("invalid_request", True), result
    more = send(client, loop, {"from": 7, "to": "c"}, {"from": 7, "to": "d", "weight": 0.5})
    assert [result.get("code") for result in more] == [None, "too_many_edges"]
    assert client.get("/status").json()["loops"][loop]["edges_refused"] == 1


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "field"),
    [
        ("POST", "/edges", {"edges": []}, 422, "edges"),
        ("POST", "/edges", {"edges": [{}] * 1001}, 422, "edges"),
        ("POST", "/edges", {"loop": "nowhere", "edges": [{}]}, 404, None),
        ("DELETE", "/edges?from=u", None, 422, "to"),
        ("DELETE", "/edges?from=u&to=v&kind=Two%20Words", None, 422, "kind"),
        ("DELETE", "/edges?from=u&to=v&loop=nowhere", None, 404, None),
        ("POST", "/recommend", {"context": {"@graph": {"friends": 1}}}, 422, "context.@graph"),
        ("POST", "/recommend", {"context": {"@graph.friends": 1}}, 422, "context.@graph.friends"),
    ],
)
def test_what_is_wrong_is_named(
    client: httpx.Client, method: str, path: str, body: Any, status: int, field: str | None
) -> None:
    reply = client.request(method, path, json=body)
    assert reply.status_code == status, reply.text
    if field is not None:
        assert reply.json()["errors"][0]["field"] == field
