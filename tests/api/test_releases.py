"""Releases over HTTP: a harmful policy goes back, a good one gets all of the traffic."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from functools import partial
from typing import Any

import httpx
import pytest

from tests.waiting import until

Reply = dict[str, Any]


@pytest.fixture
def shop(client: httpx.Client, make_loop: Callable[..., str]) -> str:
    """A loop that `old` serves, with `good` and `harmful` in the shadow."""
    loop = make_loop(policy=None, items=2, fit_schema=False)
    for name in ("old", "good", "harmful"):
        made = {"name": name, "kind": "random"}
        client.post("/policies", params={"loop": loop}, json=made).raise_for_status()
    client.post("/policies/old/activate", params={"loop": loop}).raise_for_status()
    return loop


RATES = {"old": 0.5, "good": 0.95, "harmful": 0.05}


def release(client: httpx.Client, loop: str, name: str, **body: Any) -> httpx.Response:
    return client.post(f"/policies/{name}/release", params={"loop": loop}, json=body)


def play(client: httpx.Client, loop: str, name: str) -> tuple[Reply, set[str]]:
    """Let users decide and click until the release has ended; return it, and the users whom its policy served."""
    rng, served, users = random.Random(0), set[str](), itertools.count()

    def look() -> Reply:
        found: Reply = client.get(f"/policies/{name}/release", params={"loop": loop}).json()
        return found

    while True:
        until(lambda: look()["counting"] or look()["ended"], "decisions count")
        before, reports = look(), []
        if before["ended"]:
            return before, served
        for user in itertools.islice(users, 160):
            said = client.post("/recommend", json={"loop": loop, "user_id": f"u{user}"}).json()
            if said["policy"] == name:
                served.add(f"u{user}")
            reward = float(rng.random() < RATES[said["policy"]])
            reports.append({"loop": loop, "decision_id": said["decision_id"], "reward": reward})
        client.post("/feedback", json={"feedback": reports}).raise_for_status()
        until(partial(_looked, look, before["looks"]), "somebody looks")


def _looked(look: Callable[[], Reply], before: list[Reply]) -> bool:
    return bool(look()["looks"] != before)


def test_a_harmful_policy_goes_back_and_a_good_one_gets_all_of_the_traffic(client: httpx.Client, shop: str) -> None:
    of_shop = {"loop": shop}
    guard = {"reward_drop": 0.2, "latency_ms": 10_000, "degraded": 0.5}
    made = release(client, shop, "harmful", steps=[0.25, 0.6, 1], guard=guard)
    assert made.status_code == 202
    assert made.json()["state"] == "running"
    assert client.get("/traffic", params=of_shop).json() == {"old": 0.75, "harmful": 0.25}
    assert release(client, shop, "good").json()["code"] == "release_runs"

    back, hurt = play(client, shop, "harmful")
    assert (back["state"], back["share"], back["before"]) == ("rolled_back", 0.0, {"old": 1.0})
    assert "worse than the others" in back["why"]
    assert back["looks"][-1]["course"] == "go back"
    assert back["looks"][-1]["difference"]["high"] < 0
    assert client.get("/traffic", params=of_shop).json() == {"old": 1.0}

    assert release(client, shop, "good", steps=[0.25, 0.6, 1], guard=guard).status_code == 202
    done, served = play(client, shop, "good")
    assert (done["state"], done["share"]) == ("done", 1.0)
    assert [taken["share"] for taken in done["taken"]] == [0.25, 0.6, 1.0]
    assert client.get("/traffic", params=of_shop).json() == {"good": 1.0}
    assert len(hurt) < len(served)

    changes = client.get("/changes", params=of_shop).json()["changes"]
    assert [one["what"] for one in changes if one["by"] == "release of good"] == ["end release", "take step of release"]
    status = client.get("/status").json()["loops"][shop]["policies"]
    assert [status[name]["release"]["state"] for name in ("good", "harmful")] == ["done", "rolled_back"]
    assert status["old"]["release"] is None
    listed = client.get("/policies", params=of_shop).json()["policies"]
    assert [one["release"] and one["release"]["state"] for one in listed] == ["done", "rolled_back", None]
    text = client.get("/metrics").text
    assert f'rebound_policy_release{{loop="{shop}",policy="harmful",state="rolled_back"}} 1.0' in text


def test_a_release_that_is_cancelled_is_undone(client: httpx.Client, shop: str) -> None:
    of_shop = {"loop": shop}
    assert client.get("/policies/good/release", params=of_shop).json()["code"] == "unknown_release"
    made = release(client, shop, "good", guard=None, steps=None).json()
    assert made["steps"] == [0.01, 0.1, 0.5, 1.0]
    assert made["guard"] == {"reward_drop": 0.02, "lag": 10_000, "latency_ms": None, "degraded": None}
    ended = client.delete("/policies/good/release", params=of_shop).json()
    assert (ended["state"], ended["share"], ended["id"]) == ("cancelled", 0.0, made["id"])
    assert client.get("/traffic", params=of_shop).json() == {"old": 1.0}


def test_what_cannot_be_released_names_its_field(client: httpx.Client, shop: str) -> None:
    for body, named in (
        ({"steps": [0.5, 0.2]}, "steps"),
        ({"steps": [1]}, "steps"),
        ({"steps": []}, "steps"),
        ({"steps": [0]}, "steps.0"),
        ({"steps": [1.5]}, "steps.0"),
        ({"guard": {"reward_drop": 0}}, "guard.reward_drop"),
        ({"guard": {"degraded": 2}}, "guard.degraded"),
        ({"guard": {"latency": 2}}, "guard.latency"),
        ({"confidence": 1}, "confidence"),
        ({"policy": "good"}, "policy"),
    ):
        refused = release(client, shop, "good", **body)
        assert refused.status_code == 422
        assert refused.json()["errors"][0]["field"] == named
    assert client.get("/traffic", params={"loop": shop}).json() == {"old": 1.0}
