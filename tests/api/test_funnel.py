"""A funnel over HTTP: set, refused with the field's name, served, explained, audited, switched off."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from service.admin.audit import audit_decisions, audit_propensities
from tests.waiting import until

Make = Callable[..., str]
CUT, ITEMS = 15, 60
SOURCES = [
    {"source": "popular", "quota": 5},
    {"source": "fresh", "quota": 4},
    {"source": "random", "quota": 3},
    {"source": "ann", "quota": 5, "item_field": "vector", "context_field": "taste"},
]


@pytest.fixture
def shop(client: httpx.Client, make_loop: Make) -> str:
    loop = make_loop(items=0, policy="linucb", exploration_floor=0.3, funnel={"sources": SOURCES, "cut": CUT})
    items = [{"id": f"p{n:02}", "features": {"half": "ab"[n % 2], "vector": [ITEMS - n, n]}} for n in range(ITEMS)]
    client.post("/items", params={"loop": loop}, json={"items": items}).raise_for_status()
    return loop


@pytest.mark.parametrize(
    ("funnel", "field"),
    [
        ({"sources": [{"source": "best", "quota": 5}]}, "funnel.sources.0.source"),
        ({"sources": [{"source": "popular", "quota": -1}]}, "funnel.sources.0.quota"),
        ({"sources": [{"source": "ann", "quota": 5}]}, "funnel.sources.0.item_field"),
        ({"cut": 0}, "funnel.cut"),
        ({"sources": [{"source": "fresh", "quota": 5}] * 2}, "funnel"),
    ],
)
def test_a_bad_funnel_is_named(client: httpx.Client, make_loop: Make, funnel: dict[str, Any], field: str) -> None:
    refused = client.put(f"/loops/{make_loop(items=0, policy=None)}", json={"funnel": funnel})
    assert (refused.status_code, refused.json()["errors"][0]["field"]) == (422, field), refused.text


@pytest.mark.anyio
async def test_a_funnel_decides_learns_and_is_made_again(client: httpx.Client, shop: str, redis: Redis) -> None:
    history = [
        {"event_id": f"e{n}", "item_id": f"p{40 + n % 10}", "reward": int(n % 10 == 7), "context": {}}
        for n in range(300)
    ]
    client.post("/events", params={"loop": shop}, json={"events": history}).raise_for_status()

    def retrieval() -> Any:
        return client.get("/status").json()["loops"][shop]["retrieval"]

    def counted() -> bool:
        return retrieval() is not None and (retrieval()["events"], retrieval()["items"]) == (300, ITEMS)

    until(counted, "the history is counted, and the catalogue is followed")
    assert retrieval()["bytes"] > 0
    assert retrieval()["age_s"] >= 0
    asked = {"loop": shop, "user_id": "u", "context": {"taste": [1, 0]}, "exclude": ["p01"], "explain": True}

    def explained() -> dict[str, Any]:
        found = client.post("/recommend", json=asked)
        assert found.status_code == 200, found.text
        return {chance["id"]: chance["sources"] for chance in found.json()["explanation"]}

    def ranks(item: str) -> dict[str, int]:
        return {source["source"]: source["rank"] for source in explained().get(item, [])}

    until(lambda: ranks("p47").get("popular") == 1, "the worker serves from the counts")
    origins = explained()
    assert len(origins) <= CUT
    assert ranks("p00")["ann"] == 1
    assert "p01" not in origins

    for number in range(20):
        found = client.post("/recommend", json={**asked, "k": 3, "decision_id": f"{shop}-{number}"}).json()
        for item in found["items"]:
            report = {"loop": shop, "decision_id": found["decision_id"], "item_id": item["id"], "reward": 1}
            client.post("/feedback", json=report).raise_for_status()
    record = client.get(f"/decisions/{shop}-0", params={"loop": shop}).json()["decision"]
    assert record["retrieved"]["version"] >= 1
    assert record["n"] == len(record["retrieved"]["rows"]) <= CUT
    assert {item["id"] for item in record["items"]} <= {f"p{row:02}" for row in record["retrieved"]["rows"]}
    audited = await audit_decisions(redis, shop)
    assert (audited.same, audited.different, audited.gone) == (20, [], 0)
    assert all(check.mean for check in (await audit_propensities(redis, shop)).values())
    until(lambda: retrieval()["events"] == 360, "decisions are counted, too")


@pytest.mark.anyio
async def test_what_is_taken_together_is_found_and_decisions_are_made_again(
    client: httpx.Client, make_loop: Make, redis: Redis
) -> None:
    sources = [{"source": "covisited", "quota": 3}, {"source": "random", "quota": 2}]
    shop = make_loop(items=20, policy="linucb", funnel={"sources": sources, "cut": 5})
    acts = [{"user_id": f"u{n}", "item_id": item, "type": "view"} for n in range(9) for item in ("p003", "p007")]
    client.post("/activity", json={"loop": shop, "activity": acts}).raise_for_status()

    def sources_of(user: str) -> dict[str, list[str]]:
        found = client.post("/recommend", json={"loop": shop, "user_id": user, "explain": True}).raise_for_status()
        explained = found.json()["explanation"]
        return {one["id"]: [source["source"] for source in one["sources"] or ()] for one in explained}

    client.post("/activity", json={"loop": shop, "activity": [{**acts[0], "user_id": "new"}]}).raise_for_status()
    until(lambda: "covisited" in sources_of("new").get("p007", []), "the neighbour of his last item is found")
    assert not any("covisited" in sources for sources in sources_of("cold").values())
    status = client.get("/status").json()["loops"][shop]["retrieval"]
    assert status["together"] == 2
    for number in range(10):
        asked = {"loop": shop, "user_id": "new", "decision_id": f"{shop}-{number}"}
        client.post("/recommend", json=asked).raise_for_status()
        report = {"loop": shop, "decision_id": f"{shop}-{number}", "reward": 1}
        client.post("/feedback", json=report).raise_for_status()
    record = client.get(f"/decisions/{shop}-0", params={"loop": shop}).json()["decision"]
    assert record["seen"][1:] == ["p003"]
    assert 7 in record["retrieved"]["rows"]
    audited = await audit_decisions(redis, shop)
    assert (audited.same, audited.different, audited.gone) == (10, [], 0)


def test_a_new_item_is_found_at_once_and_a_deleted_one_never(client: httpx.Client, shop: str) -> None:
    until(lambda: client.get("/status").json()["loops"][shop]["retrieval"], "the catalogue is followed")
    client.put("/items/brand-new", params={"loop": shop}, json={"features": {"half": "a"}}).raise_for_status()
    client.delete("/items/p00", params={"loop": shop}).raise_for_status()
    for number in range(10):
        asked = {"loop": shop, "context": {"taste": [1, 0]}, "explain": True, "user_id": f"u{number}"}
        found = {one["id"] for one in client.post("/recommend", json=asked).json()["explanation"]}
        assert "brand-new" in found
        assert "p00" not in found


def test_a_small_catalogue_and_sent_candidates_are_not_narrowed(client: httpx.Client, shop: str) -> None:
    def record(**asked: Any) -> Any:
        decided = client.post("/recommend", json={"loop": shop, **asked}).json()
        return client.get(f"/decisions/{decided['decision_id']}").json()["decision"]

    sent = record(candidates=["p01", "p02"])
    assert (sent["n"], sent["retrieved"]) == (2, None)
    assert record()["retrieved"] is not None
    client.put(f"/loops/{shop}", json={"funnel": {"sources": SOURCES, "cut": ITEMS}}).raise_for_status()
    assert (record()["n"], record()["retrieved"]) == (ITEMS, None)
    client.put(f"/loops/{shop}", json={"funnel": {}}).raise_for_status()
    assert client.get(f"/loops/{shop}").json()["settings"]["funnel"] == {"sources": [], "cut": 200}
    assert (record()["n"], record()["retrieved"]) == (ITEMS, None)
    assert client.get("/status").json()["loops"][shop]["retrieval"] is None


@pytest.mark.anyio
async def test_a_filter_that_few_items_meet_leaves_these(client: httpx.Client, shop: str, redis: Redis) -> None:
    until(lambda: client.get("/status").json()["loops"][shop]["retrieval"], "the catalogue is followed")
    for item in ("p30", "p31"):
        client.put(f"/items/{item}", params={"loop": shop}, json={"features": {"deal": True}}).raise_for_status()
    deals = {"filter": [{"field": "deal", "in": [True]}]}
    asked = {"loop": shop, "user_id": "u", "context": {"taste": [1, 0]}, "explain": True}
    first = client.post("/recommend", json={**asked, "rules": deals}).json()
    assert {chance["id"] for chance in first["explanation"]} == {"p30", "p31"}
    client.put(f"/loops/{shop}", json={"rules": deals}).raise_for_status()
    second = client.post("/recommend", json={**asked, "exclude": ["p31"]}).json()
    assert [chance["id"] for chance in second["explanation"]] == ["p30"]
    for reply in (first, second):
        client.post("/feedback", json={"decision_id": reply["decision_id"], "reward": 1}).raise_for_status()
    audited = await audit_decisions(redis, shop)
    assert (audited.same, audited.different, audited.gone) == (2, [], 0)


@pytest.mark.slow
def test_embeddings_are_learned_from_the_log(client: httpx.Client, make_loop: Make) -> None:
    funnel = {"sources": [{"source": "learned", "quota": 10}], "cut": CUT}
    loop = make_loop(items=0, policy="linucb", funnel=funnel)
    items = [{"id": f"p{n:02}", "features": {"kind": "abc"[n % 3]}} for n in range(ITEMS)]
    client.post("/items", params={"loop": loop}, json={"items": items}).raise_for_status()
    history = [
        {"event_id": f"e{n}", "user_id": f"u{n % 9}", "item_id": f"p{n * 3 % 20 * 3 + n % 3:02}", "reward": 1}
        for n in range(600)
    ]
    body = {"events": [{"context": {}, **event} for event in history]}
    client.post("/events", params={"loop": loop}, json=body).raise_for_status()

    def embedding() -> Any:
        return client.get("/status").json()["loops"][loop]["embedding"]

    until(embedding, "the embeddings are trained, in a process of their own", within_s=120)
    assert (embedding()["version"], embedding()["events"], embedding()["rewarded"]) == (1, 600, 600)

    def kinds(user: str) -> list[str]:
        asked = {"loop": loop, "user_id": user, "context": {}, "explain": True}
        found = client.post("/recommend", json=asked)
        if found.status_code == 422:  # nothing is found yet
            return []
        assert all(one["sources"][0]["source"] == "learned" for one in found.json()["explanation"])
        return ["abc"[int(one["id"][1:]) % 3] for one in found.json()["explanation"]]

    for user in ("u0", "u1", "u5"):
        until(lambda user=user: kinds(user).count("abc"[int(user[1]) % 3]) >= 8, "users see what they like")  # type: ignore[misc]  # mypy knows no defaults of lambdas
