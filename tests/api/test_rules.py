"""Rules over HTTP: of a loop and of a request, refused with the field's name, explained, and audited."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from service.admin.audit import audit_decisions

Make = Callable[..., str]
ITEMS = [{"id": f"p{i}", "features": {"category": "ab"[i % 2], "price": float(i)}} for i in range(6)]


@pytest.fixture
def shop(client: httpx.Client, make_loop: Make) -> str:
    loop = make_loop(items=0, policy="linucb", exploration_floor=0.5)
    client.post("/items", params={"loop": loop}, json={"items": ITEMS}).raise_for_status()
    return loop


@pytest.mark.parametrize(
    ("rules", "field"),
    [
        ({"filter": [{"field": "category"}]}, "rules.filter.0"),
        ({"filter": [{"field": "price", "min": "low"}]}, "rules.filter.0.min"),
        ({"boost": [{"field": "category", "in": ["a"], "times": 1000}]}, "rules.boost.0.times"),
        ({"pin": [{"item": "p0"}]}, "rules.pin.0.place"),
        ({"at_most": [{"field": "category", "items": 0}]}, "rules.at_most.0.items"),
        ({"bury": []}, "rules.bury"),
    ],
)
def test_a_bad_rule_is_named(
    client: httpx.Client, other_client: httpx.Client, shop: str, rules: dict[str, Any], field: str
) -> None:
    for one in (client, other_client):
        refused = one.post("/recommend", json={"loop": shop, "rules": rules})
        assert (refused.status_code, refused.json()["errors"][0]["field"]) == (422, field), refused.text
    refused = client.put(f"/loops/{shop}", json={"rules": rules})
    assert (refused.status_code, refused.json()["errors"][0]["field"]) == (422, field), refused.text


def test_a_filter_that_leaves_nothing_is_named(client: httpx.Client, shop: str) -> None:
    asked = {"loop": shop, "rules": {"filter": [{"field": "price", "min": 100}]}}
    refused = client.post("/recommend", json=asked)
    assert (refused.status_code, refused.json()["code"]) == (422, "no_candidates")
    assert "`price` from 100" in refused.text


@pytest.mark.anyio
async def test_rules_of_the_loop_hold_beside_those_of_a_request(client: httpx.Client, shop: str, redis: Redis) -> None:
    rules = {"filter": [{"field": "category", "in": ["a"]}], "pin": [{"item": "p4", "place": 2}]}
    put = client.put(f"/loops/{shop}", json={"rules": rules})
    assert put.status_code == 200, put.text
    assert client.get(f"/loops/{shop}").json()["settings"]["rules"]["filter"][0]["in"] == ["a"]
    for number in range(20):
        asked = {"loop": shop, "k": 2, "user_id": f"u{number}", "decision_id": f"{shop}-{number}"}
        asked["rules"] = {"boost": [{"field": "price", "max": 1, "times": 5.0}]}
        found = client.post("/recommend", json=asked).json()
        assert found["items"][0]["id"] in ("p0", "p2")
        assert (found["items"][1]["id"], found["items"][1]["propensity"]) == ("p4", 1.0)
        for item in found["items"]:
            report = {"loop": shop, "decision_id": asked["decision_id"], "item_id": item["id"], "reward": 1}
            client.post("/feedback", json=report).raise_for_status()
    record = client.get(f"/decisions/{shop}-0", params={"loop": shop}).json()["decision"]
    assert record["rules"]["boost"] == [{"field": "price", "max": 1.0, "times": 5.0}]
    assert (record["n"], record["left"]) == (3, [2, 1])
    audited = await audit_decisions(redis, shop)
    assert (audited.same, audited.different) == (20, [])
    assert client.put(f"/loops/{shop}", json={"rules": {}}).status_code == 200
    assert client.get(f"/loops/{shop}").json()["settings"]["rules"]["filter"] == []


def test_an_explanation_holds_every_candidates_chance(client: httpx.Client, shop: str) -> None:
    asked = {"loop": shop, "explain": True, "rules": {"pin": [{"item": "p3", "place": 2}]}}
    found = client.post("/recommend", json=asked).json()
    chances = {chance["id"]: chance for chance in found["explanation"]}
    assert set(chances) == {f"p{i}" for i in range(6)}
    assert sum(chance["propensity"] for chance in chances.values()) == pytest.approx(1.0)
    assert chances["p3"]["propensity"] == 0.0
    assert chances["p3"]["rules"] == ["pin: place 2"]
    [item] = found["items"]
    assert chances[item["id"]]["propensity"] == item["propensity"]
    assert "explanation" not in client.post("/recommend", json={"loop": shop}).json()
