"""`/experiments` over HTTP: users fall into arms for good, the results can be looked at any time, and it can end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from service.api.schemas import Changed
from tests.waiting import until

Reply = dict[str, Any]
ARMS = {"control": {"policy": "linucb", "share": 0.5}, "chance": {"policy": "random", "share": 0.5}}


@pytest.fixture
def shop(client: httpx.Client, make_loop: Callable[..., str]) -> str:
    """A loop that linucb serves, with a second policy."""
    name = make_loop(items=2, fit_schema=False, ledger_time=3600)
    client.post("/policies", params={"loop": name}, json={"kind": "random"}).raise_for_status()
    return name


def visit(client: httpx.Client, loop: str, user: str) -> Reply:
    """Decide for a user, report a click, and return where the decision fell."""
    said = client.post("/recommend", json={"loop": loop, "user_id": user}).raise_for_status().json()
    client.post("/feedback", json={"decision_id": said["decision_id"], "reward": 1.0}).raise_for_status()
    record = client.get(f"/decisions/{said['decision_id']}").json()["decision"]
    assert record["policy"] == said["policy"]
    found: Reply = record
    return found


def test_an_experiment_from_its_beginning_to_its_end(client: httpx.Client, shop: str) -> None:
    params = {"loop": shop}
    for number in range(4):  # before it: what is known of these users
        visit(client, shop, f"u{number}")
    body = {"arms": ARMS, "minimum_effect": 0.1, "guardrails": {"reported": 0.05}, "holdout": 0.25}
    made = client.put("/experiments/first", params=params, json=body)
    assert made.status_code == 200
    assert Changed.model_validate(made.json()).adopted
    assert client.get("/status").json()["loops"][shop]["experiment"] == "first"

    fell: dict[str, str] = {}
    for number in range(24):
        record = visit(client, shop, f"u{number % 12}")
        arm = record["experiment"]["arm"]
        assert fell.setdefault(f"u{number % 12}", arm) == arm
        assert record["experiment"]["share"] == pytest.approx(0.25 if arm == "" else 0.375)
        assert record["policy"] == ("linucb" if arm == "" else ARMS[arm]["policy"])
    found: Reply = {}

    def counted() -> bool:
        found.update(client.get("/experiments/first", params=params).json())
        return bool(found["events"] == 24)

    until(counted, "all events are counted")
    users = Counter(fell.values())
    assert {one["arm"]: one["units"] for one in found["arms"]} == {arm: users[arm] for arm in ("control", "chance", "")}
    assert all(one["mean"] == 1.0 for one in found["arms"] if one["units"])
    assert (found["status"], found["code"], found["whole"]) == ("running", "open", False)
    assert found["says"].startswith("chance: nothing can be said yet")
    assert client.get("/experiments", params=params).json()["experiments"] == [found]

    refused = client.post("/policies/random/activate", params=params)
    assert (refused.status_code, refused.json()["code"]) == (409, "experiment_runs")
    refused = client.delete("/policies/random", params=params)
    assert (refused.status_code, refused.json()["code"]) == (409, "experiment_runs")
    other = client.put("/experiments/second", params=params, json=body)
    assert (other.status_code, other.json()["code"]) == (409, "experiment_runs")
    again = client.put("/experiments/first", params=params, json=body | {"minimum_effect": 0.2})
    assert (again.status_code, again.json()["code"]) == (409, "experiment_begun")

    wider = client.put("/experiments/first", params=params, json=body | {"holdout": 0.0})
    assert wider.status_code == 200, "nobody moves between arms"
    assert all(visit(client, shop, user)["experiment"]["arm"] == arm for user, arm in fell.items() if arm)
    shares = {"control": {"policy": "linucb", "share": 0.9}, "chance": {"policy": "random", "share": 0.1}}
    client.put("/experiments/first", params=params, json={**body, "arms": shares}).raise_for_status()
    found = client.get("/experiments/first", params=params).json()
    assert (found["version"], found["arms"][0]["share"]) == (2, 0.9)

    assert client.post("/experiments/first/end", params=params).status_code == 200
    record = visit(client, shop, "u1")
    assert (record["policy"], record["experiment"]) == ("linucb", None)
    assert client.get("/experiments/first", params=params).json()["status"] == "ended"
    assert client.get("/status").json()["loops"][shop]["experiment"] is None
    again = client.post("/experiments/first/end", params=params)
    assert (again.status_code, again.json()["code"]) == (409, "experiment_ended")

    assert client.delete("/experiments/first", params=params).status_code == 204
    assert client.get("/experiments/first", params=params).json()["code"] == "unknown_experiment"
    said = [one["what"] for one in client.get("/changes", params=params).json()["changes"]][:5]
    assert said == [f"{what} experiment" for what in ("delete", "end", "change", "change", "make")]


def test_arms_that_learn_apart_learn_from_their_own_users(client: httpx.Client, shop: str) -> None:
    params = {"loop": shop}
    body = {"arms": ARMS, "learning": "disjoint"}
    client.put("/experiments/apart", params=params, json=body).raise_for_status()
    assert client.get("/experiments/apart", params=params).json()["learning"] == "disjoint"
    again = client.put("/experiments/apart", params=params, json=body | {"learning": "shared"})
    assert again.json()["code"] == "experiment_begun"
    fell = Counter(visit(client, shop, f"u{number}")["experiment"]["arm"] for number in range(30))

    def policies() -> Reply:
        found: Reply = client.get("/status").json()["loops"][shop]["policies"]
        return found

    until(lambda: all((one["events"], one["lag"]) == (30, 0) for one in policies().values()), "all is behind both")
    assert policies()["linucb"]["apart"] == fell["chance"]
    assert policies()["random"]["apart"] == fell["control"]
    assert client.get("/policies/linucb", params=params).json()["summary"]["pulls"] == fell["control"]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"arms": {"control": {"policy": "adaptive", "share": 0.5}}}, "arms"),
        ({"arms": {"a": {"policy": "adaptive", "share": 0.5}, "b": {"policy": "adaptive", "share": 0.5}}}, "arms"),
        (
            {"arms": {"control": {"policy": "adaptive", "share": 0.5}, "b": {"policy": "x", "share": 0.5}}},
            "arms.b.policy",
        ),
        ({"arms": {"control": {"policy": "adaptive", "share": 0.5}, "B": {"policy": "x", "share": 0.5}}}, "arms.B"),
        ({"arms": {"control": {"policy": "adaptive", "share": 0.5}, "b": {"policy": "x", "share": 0.4}}}, "arms"),
        ({"metric": "joy"}, "metric"),
        ({"guardrails": {"joy": 0.1}}, "guardrails.joy"),
        ({"guardrails": {"reward": 0}}, "guardrails.reward"),
        ({"unit": "household"}, "unit"),
        ({"unit": "session", "session": ""}, "session"),
        ({"learning": "disjoint"}, "learning"),
        ({"minimum_effect": 0}, "minimum_effect"),
        ({"holdout": 1}, "holdout"),
        ({"starts": 1_000_000_000}, "starts"),
        ({"ends": 1_000_000_000}, "ends"),
        ({"starts": "2100-01-02T00:00:00Z", "ends": "2100-01-01T00:00:00Z"}, "ends"),
    ],
)
def test_what_is_wrong_is_refused_by_its_field(client: httpx.Client, changes: Reply, named: str) -> None:
    policy = {"policy": "adaptive", "share": 0.5}
    reply = client.put("/experiments/wrong", json={"arms": {"control": policy, "same": policy}, **changes})
    assert reply.status_code == 422
    assert [error["field"] for error in reply.json()["errors"]] == [named]
    assert client.get("/experiments/wrong").json()["code"] == "unknown_experiment"


def test_a_name_of_another_form_is_refused(client: httpx.Client) -> None:
    reply = client.put("/experiments/Wrong", json={"arms": ARMS})
    assert [error["field"] for error in reply.json()["errors"]] == ["name"]
