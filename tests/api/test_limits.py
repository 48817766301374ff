"""Caps and budgets over HTTP: what a user is not shown again, what nobody is, and what is told of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from service.admin.audit import audit_decisions
from tests.waiting import until

Make = Callable[..., str]
ONCE = {"impressions": [{"most": 1, "within": 3600.0}]}


def ask(client: httpx.Client, loop: str, user: str | None = "u", **asked: Any) -> httpx.Response:
    return client.post("/recommend", json={"loop": loop, "user_id": user, **asked})


def items_of(reply: httpx.Response) -> list[str]:
    assert reply.status_code == 200, reply.text
    return [item["id"] for item in reply.json()["items"]]


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"caps": {"impressions": [{"most": 0, "within": 60.0}]}}, "caps.impressions.0.most"),
        ({"caps": {"taken": {"within": 60.0, "reward_above": "1"}}}, "caps.taken.reward_above"),
        ({"budgets": {"p000": {"impressions": 1.5}}}, "budgets.p000.impressions"),
    ],
)
def test_a_bad_limit_is_named(client: httpx.Client, make_loop: Make, given: dict[str, Any], field: str) -> None:
    refused = client.put(f"/loops/{make_loop(items=0, policy=None)}", json=given)
    assert (refused.status_code, refused.json()["errors"][0]["field"]) == (422, field), refused.text


@pytest.mark.anyio
async def test_caps_hold_whichever_worker_is_asked_and_every_decision_is_made_again(
    client: httpx.Client, other_client: httpx.Client, make_loop: Make, redis: Redis
) -> None:
    """One user, twelve requests at once to two workers, six items: each item once, and six are told why not."""
    loop = make_loop(items=6, policy="linucb", caps=ONCE, wait_time=0.2)
    with ThreadPoolExecutor(12) as pool:
        asked = [pool.submit(ask, (client, other_client)[number % 2], loop) for number in range(12)]
    replies = [one.result() for one in asked]
    shown = Counter(item for reply in replies if reply.status_code == 200 for item in items_of(reply))
    assert shown == {f"p{i:03}": 1 for i in range(6)}
    for reply in replies:
        if reply.status_code != 200:
            assert (reply.status_code, reply.json()["code"]) == (422, "no_candidates")
            assert reply.json()["errors"][0]["field"] == "caps.impressions"
    assert items_of(ask(client, loop, None)), "nobody's caps"
    told = client.get("/status").json()["loops"][loop]
    assert (told["capped_users"], told["decisions"]) == (1, 7)
    assert told["capped_user_bytes"] > 0
    user = client.get("/users/u", params={"loop": loop}).json()
    assert sorted(one["item_id"] for one in user["shown"]) == sorted(shown)
    records = [one["decision"] for one in user["decisions"]]
    assert all(record["n"] == 6 - len((record["removed"] or {"shown": []})["shown"]) for record in records)
    assert any(record["removed"] for record in records)
    until(lambda: client.get("/status").json()["loops"][loop]["events"] == 7, "all have their events")
    audited = await audit_decisions(redis, loop)
    assert (audited.same, audited.different) == (7, [])


def test_a_repeated_id_gets_its_decision_back_though_the_cap_is_reached(client: httpx.Client, make_loop: Make) -> None:
    loop = make_loop(items=2, policy=None, caps=ONCE)
    asked: dict[str, Any] = {"candidates": ["p000"], "decision_id": f"{loop}-mine"}
    first, again = ask(client, loop, **asked), ask(client, loop, **asked)
    assert items_of(again) == items_of(first) == ["p000"]
    assert ask(client, loop, candidates=["p000"], decision_id=f"{loop}-other").status_code == 422


def test_what_a_user_took_is_not_shown_again(client: httpx.Client, make_loop: Make) -> None:
    taken = {"activity": ["buy"], "reward_above": 0.5, "within": 3600.0}
    loop = make_loop(items=4, policy="linucb", caps={"taken": taken})
    first = ask(client, loop, candidates=["p000"])
    for reward in (0.5, 1):  # the second is a duplicate; it may be the repetition of one that failed
        report = {"decision_id": first.json()["decision_id"], "reward": reward}
        client.post("/feedback", json=report).raise_for_status()
        if reward == 0.5:
            assert items_of(ask(client, loop, candidates=["p000"])) == ["p000"]
    sent = [{"user_id": "u", "item_id": item, "type": type_} for item, type_ in (("p001", "buy"), ("p002", "view"))]
    client.post("/activity", json={"loop": loop, "activity": sent}).raise_for_status()
    refused = ask(client, loop, candidates=["p000", "p001"])
    assert (refused.status_code, refused.json()["errors"][0]["field"]) == (422, "caps.taken")
    assert sorted(items_of(ask(client, loop, k=4))) == ["p002", "p003"]
    assert len(items_of(ask(client, loop, "v", k=4))) == 4
    explained = ask(client, loop, explain=True).json()["explanation"]
    assert sorted(chance["id"] for chance in explained) == ["p002", "p003"]
    assert [one["item_id"] for one in client.get("/users/u", params={"loop": loop}).json()["taken"]] == ["p000", "p001"]


def test_a_budget_is_spent_to_the_last_impression_by_all_workers_and_never_more(
    client: httpx.Client, other_client: httpx.Client, make_loop: Make
) -> None:
    loop = make_loop(items=3, policy="linucb", exploration_floor=1.0, budgets={"p000": {"impressions": 25}})

    def item(name: str = "p000") -> Any:
        return client.get(f"/items/{name}", params={"loop": loop}).json().get("budget")

    assert (item(), item("p001")) == ({"impressions": 25, "per": "total", "used": 0, "left": 25}, None)
    shown: Counter[str] = Counter()

    def spend(number: int) -> None:
        reply = ask((client, other_client)[number % 2], loop, None)
        shown.update(items_of(reply))

    def all_spent() -> bool:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(spend, range(24)))
        assert shown["p000"] <= 25
        return shown["p000"] == 25

    until(all_spent, "the budget is spent to its end")
    all_spent()
    assert item() == {"impressions": 25, "per": "total", "used": 25, "left": 0}
    refused = ask(client, loop, candidates=["p000"])
    assert (refused.status_code, refused.json()["errors"][0]["field"]) == (422, "budgets")
    decided = client.get(f"/decisions/{ask(client, loop).json()['decision_id']}").json()["decision"]
    assert (decided["removed"], decided["n"]) == ({"spent": ["p000"]}, 2)
    told = client.get("/status").json()["loops"][loop]
    assert (told["budgets"], told["budgets_spent"]) == (1, 1)
    assert told["overtaken"] > 0
    more = {"p000": {"impressions": 30}}
    client.put(f"/loops/{loop}", json={"budgets": more}).raise_for_status()
    until(lambda: ask(client, loop, candidates=["p000"]).status_code == 200, "a larger budget goes on")
    assert item()["used"] == 26


def test_who_tries_a_request_sees_what_limits_leave(client: httpx.Client, make_loop: Make) -> None:
    spent = {"p001": {"impressions": 1, "per": "total"}}
    loop = make_loop(items=4, policy="random", caps=ONCE, budgets=spent, wait_time=0.2)
    asked = {"loop": loop, "user_id": "u"}

    def offered() -> set[str]:
        [tried] = client.post("/try", json=asked).json()["policies"]
        return {one["id"] for one in tried["explanation"]["candidates"]}

    assert offered() == {"p000", "p001", "p002", "p003"}
    until(
        lambda: ask(client, loop, "another", candidates=["p001"]).status_code == 200, "its portion is there, and spent"
    )
    assert items_of(ask(client, loop, candidates=["p002"])) == ["p002"]
    until(lambda: offered() == {"p000", "p003"}, "neither what is spent nor what he was shown is offered")
