"""Loops, items, policies, traffic, status, over HTTP."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from service.settings import Settings
from tests.conftest import Worker
from tests.waiting import until

Make = Callable[..., str]


def test_a_loops_life(client: httpx.Client) -> None:
    assert client.get("/loops/life").status_code == 404
    made = client.put("/loops/life", json={"wait_time": 5, "schema": {"hash_dims": 7}})
    assert (made.status_code, made.json()["features"]) == (201, 8)
    changed = client.put("/loops/life", json={"exploration_floor": 0.2})
    assert (changed.status_code, changed.json()["settings"]["wait_time"]) == (200, 5.0)
    assert changed.json()["settings"]["exploration_floor"] == 0.2
    assert client.put("/loops/life", json={"schema": {"hash_dims": 9}}).json()["features"] == 10
    client.post("/policies", params={"loop": "life"}, json={"name": "p", "kind": "random"}).raise_for_status()
    in_use = client.put("/loops/life", json={"schema": {"hash_dims": 8}})
    assert (in_use.status_code, in_use.json()["features"]) == (200, 9)
    other_range = client.put("/loops/life", json={"reward_range": [0, 2]})
    assert (other_range.status_code, other_range.json()["code"]) == (409, "reward_range_in_use")
    assert "life" in client.get("/loops").json()["loops"]
    assert client.delete("/loops/life").status_code == 204
    assert client.post("/recommend", json={"loop": "life", "candidates": ["a"]}).status_code == 404


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"reward_range": [1, 0]}, "reward_range"),
        ({"default_reward": 3}, "default_reward"),
        ({"wait_time": 0}, "wait_time"),
        ({"aggregation": "median"}, "aggregation"),
        ({"exploration_floor": 2}, "exploration_floor"),
        ({"colour": 1}, "colour"),
        ({"schema": {"context": {"x": {"type": "numeric", "min": 1, "max": 0}}}}, "schema.context.x"),
    ],
)
def test_wrong_settings_name_the_field(client: httpx.Client, body: dict[str, Any], field: str) -> None:
    reply = client.put("/loops/wrong", json=body)
    assert reply.status_code == 422, reply.text
    assert reply.json()["errors"][0]["field"].startswith(field)
    assert client.get("/loops/wrong").status_code == 404


def test_a_schema_that_is_too_large_changes_nothing(client: httpx.Client, make_loop: Make) -> None:
    loop = make_loop(wait_time=5)
    client.post("/policies", params={"loop": loop}, json={"name": "p", "kind": "random"}).raise_for_status()
    axes = [[0.123456789] * 4096] * 32
    vector = {"type": "components", "path": "embedding", "mean": [0.0] * 4096, "axes": axes}
    schema = {"item": {"e": vector}, "blocks": [{"context": None, "item": "e", "variance": 1.0}]}
    reply = client.put(f"/loops/{loop}", json={"wait_time": 7, "schema": schema})
    assert (reply.status_code, reply.json()["errors"][0]["field"]) == (422, "schema"), reply.text
    assert client.get(f"/loops/{loop}").json()["settings"]["wait_time"] == 5
    assert client.put("/loops/too-large", json={"schema": schema}).status_code == 422
    assert client.get("/loops/too-large").status_code == 404


def test_a_loops_name_is_checked(client: httpx.Client) -> None:
    assert client.put("/loops/UPPER", json={}).status_code == 422
    assert client.put("/loops/a{b}", json={}).status_code == 422


def test_items_are_all_or_nothing(client: httpx.Client, make_loop: Make) -> None:
    params = {"loop": make_loop(policy=None, items=0)}
    bad = [{"id": "a", "features": {"price": 1}}, {"id": "b", "features": "free"}]
    reply = client.post("/items", params=params, json={"items": bad})
    assert (reply.status_code, reply.json()["errors"][0]["field"]) == (422, "items.1.features")
    assert client.get("/items", params=params).json()["items"] == []
    twice = client.post("/items", params=params, json={"items": [{"id": "a"}, {"id": "a"}]})
    assert twice.status_code == 422
    assert client.put("/items/a", params=params, json={"features": {"price": 2}}).json()["adopted"]
    assert client.get("/items/a", params=params).json()["features"] == {"price": 2}
    assert client.delete("/items/a", params=params).status_code == 204
    assert client.delete("/items/a", params=params).status_code == 404


def test_items_come_in_pages(client: httpx.Client, make_loop: Make) -> None:
    loop = make_loop(policy=None, items=7)
    seen: list[str] = []
    after = ""
    while after is not None:
        page = client.get("/items", params={"loop": loop, "limit": 3, "after": after}).json()
        seen += [item["id"] for item in page["items"]]
        after = page["next"]
    assert seen == [f"p{i:03}" for i in range(7)]


def test_an_import_is_all_or_nothing(client: httpx.Client, make_loop: Make) -> None:
    loop = make_loop(policy=None)
    events = [{"event_id": f"e{i}", "item_id": "p001", "reward": 1} for i in range(3)]
    events[1]["reward"] = 2
    reply = client.post("/events", params={"loop": loop}, json={"events": events})
    assert (reply.status_code, reply.json()["errors"][0]["field"]) == (422, "events.1.reward")
    assert client.get("/status").json()["loops"][loop]["events"] == 0
    assert (
        client.post("/events", params={"loop": loop}, json={"events": [{"item_id": "a", "reward": 1}]}).status_code
        == 422
    )


def test_an_event_of_the_far_future_is_refused_and_does_not_block_later_ones(
    client: httpx.Client, make_loop: Make
) -> None:
    loop = make_loop()
    event = {"event_id": "1", "item_id": "p000", "reward": 1, "at": "2999-01-01T00:00:00Z"}
    refused = client.post("/events", params={"loop": loop}, json={"events": [event]})
    assert (refused.status_code, refused.json()["errors"][0]["field"]) == (422, "events.0.at"), refused.text
    client.post("/events", params={"loop": loop}, json={"events": [{**event, "at": 1_700_000_000}]}).raise_for_status()


def test_policies_are_checked(client: httpx.Client, make_loop: Make) -> None:
    params = {"loop": make_loop()}

    def post(**body: object) -> tuple[int, str]:
        reply = client.post("/policies", params=params, json=body).json()
        return reply["status"], reply["errors"][0]["field"] if reply.get("errors") else reply["code"]

    assert post(name="x", kind="magic") == (422, "kind")
    assert post(name="x", kind="linucb", params={"alpha": -1}) == (422, "params.alpha")
    assert post(name="x", kind="linucb", params={"beta": 1}) == (422, "params.beta")
    assert post(name="Not A Name", kind="linucb") == (422, "name")
    assert post(name="linucb", kind="linucb") == (409, "policy_exists")
    serving = client.delete("/policies/linucb", params=params)
    assert (serving.status_code, serving.json()["code"]) == (409, "policy_serves")
    assert client.post("/policies/linucb/train", params=params).json()["code"] == "not_trained"
    assert client.get("/policies/none", params=params).status_code == 404
    assert client.post("/policies/linucb/rollback", params=params, json={"version": 999}).status_code == 404


def test_a_shadow_learns_before_it_serves(client: httpx.Client, make_loop: Make) -> None:
    loop = make_loop()
    for _ in range(20):
        decision = client.post("/recommend", json={"loop": loop}).json()
        client.post("/feedback", json={"loop": loop, "decision_id": decision["decision_id"], "reward": 1})
    client.post("/policies", params={"loop": loop}, json={"name": "pop", "kind": "popularity"}).raise_for_status()

    def warm() -> bool:
        return bool(client.get("/policies/pop", params={"loop": loop}).json()["events"] == 20)

    until(warm, "the new policy has learned the log")
    assert client.get("/policies/pop", params={"loop": loop}).json()["share"] == 0.0
    assert client.post("/recommend", json={"loop": loop}).json()["policy"] == "linucb"


def test_traffic_is_split_and_sticky(client: httpx.Client, make_loop: Make) -> None:
    loop = make_loop()
    client.post("/policies", params={"loop": loop}, json={"name": "pop", "kind": "popularity"}).raise_for_status()
    put = client.put("/traffic", params={"loop": loop}, json={"linucb": 0.75, "pop": 0.25})
    assert put.json()["adopted"]
    assert client.get("/traffic", params={"loop": loop}).json() == {"linucb": 0.75, "pop": 0.25}
    first = {u: client.post("/recommend", json={"loop": loop, "user_id": f"u{u}"}).json()["policy"] for u in range(400)}
    again = {u: client.post("/recommend", json={"loop": loop, "user_id": f"u{u}"}).json()["policy"] for u in range(400)}
    assert first == again
    assert 60 <= Counter(first.values())["pop"] <= 140  # 100 expected, sd 8.7: 4.6 sd either way
    assert client.put("/traffic", params={"loop": loop}, json={"linucb": 0.5}).status_code == 422
    assert client.put("/traffic", params={"loop": loop}, json={"linucb": 0.5, "none": 0.5}).status_code == 422


def test_status_tells_whether_it_learns(client: httpx.Client, make_loop: Make) -> None:
    loop = make_loop()
    assert client.get("/status").json()["loops"][loop]["learning"] is False
    decision = client.post("/recommend", json={"loop": loop}).json()
    client.post("/feedback", json={"loop": loop, "decision_id": decision["decision_id"], "reward": 1})
    until(lambda: client.get("/status").json()["loops"][loop]["learning"], "it is learning")
    status = client.get("/status").json()
    assert (status["rung"], status["learner"]) == ("ok", True)
    assert status["workers"] >= 1
    assert status["loops"][loop]["joined"] == 1


def test_metrics_are_exposed(client: httpx.Client, make_loop: Make) -> None:
    loop = make_loop()
    client.post("/recommend", json={"loop": loop}).raise_for_status()
    text = client.get("/metrics").text
    assert f'rebound_decisions_total{{loop="{loop}",policy="linucb"}} 1.0' in text
    assert f'rebound_policy_version{{loop="{loop}",policy="linucb"}}' in text
    assert 'rebound_request_seconds_count{route="/recommend",status="200"}' in text


def test_keys_and_roles(settings: Settings) -> None:
    with Worker(settings.model_copy(update=keys("client-secret", "admin-secret")), learner=False) as url:
        ask = {"candidates": ["a", "b"]}
        assert httpx.post(f"{url}/recommend", json=ask).status_code == 401
        assert httpx.post(f"{url}/recommend", json=ask, headers={"X-API-Key": "wrong"}).status_code == 401
        assert httpx.post(f"{url}/recommend", json=ask, headers={"X-API-Key": "client-secret"}).status_code == 200
        assert httpx.get(f"{url}/policies", headers={"X-API-Key": "client-secret"}).status_code == 403
        assert httpx.get(f"{url}/policies", headers={"X-API-Key": "admin-secret"}).status_code == 200
        assert httpx.get(f"{url}/policies", headers={"Authorization": "Bearer admin-secret"}).status_code == 200
        assert httpx.get(f"{url}/healthz").status_code == 200


def keys(client: str, admin: str) -> dict[str, Any]:
    made = Settings(client_keys=client, admin_keys=admin)
    assert "secret" not in repr(made)
    return {"client_keys": made.client_keys, "admin_keys": made.admin_keys}
