"""`GET /loops/{loop}/history` and `POST /loops/{loop}/marks`, on a live service."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from tests.waiting import until

Make = Callable[..., str]


def decide(client: httpx.Client, loop: str, count: int, *, reward: float | None = None, **body: Any) -> None:
    for number in range(count):
        decision = client.post("/recommend", json={"loop": loop, "user_id": f"u{number}", **body}).json()
        if reward is not None:
            report = {"decision_id": decision["decision_id"], "reward": reward}
            client.post("/feedback", json=report).raise_for_status()


def history_of(client: httpx.Client, loop: str, **query: Any) -> Any:
    return client.get(f"/loops/{loop}/history", params=query).raise_for_status().json()


def sums(found: Any, *names: str) -> tuple[float, ...]:
    return tuple(sum(bin[name] for bin in found["bins"]) for name in names)


def test_decisions_count_from_the_first_moment_and_are_provisional(client: httpx.Client, make_loop: Make) -> None:
    loop = make_loop(wait_time=600)
    decide(client, loop, 6, reward=1.0)
    decide(client, loop, 4)
    until(lambda: sums(history_of(client, loop), "settled") == (6,), "what was rewarded is counted")
    found = history_of(client, loop)
    assert sums(found, "decisions", "settled", "items", "reward_sum") == (10, 6, 6, 6.0)
    assert all(bin["provisional"] and bin["reward"] is None for bin in found["bins"])
    assert found["total"]["decisions"] == 0, "those who click are settled first: nothing is said yet"
    assert found["known_to"] == found["now"]
    assert found["step"] == 60
    fine = history_of(client, loop, step=1, **{"from": found["now"] - 60})
    assert sums(fine, "decisions", "reward_sum") == (10, 6.0)
    assert {rung for bin in fine["bins"] for rung in bin["rungs"]} == {"ok"}
    status = client.get("/status").json()["loops"][loop]
    assert status["history_bins"] >= 3
    assert status["history_bytes"] > 0


def test_after_the_wait_all_is_said(client: httpx.Client, make_loop: Make) -> None:
    loop = make_loop(wait_time=0.3, policy=None)
    client.post("/policies", params={"loop": loop}, json={"name": "chance", "kind": "random"}).raise_for_status()
    client.post("/policies/chance/activate", params={"loop": loop}).raise_for_status()
    decide(client, loop, 40, reward=1.0)
    decide(client, loop, 40, k=2)

    def last() -> Any:
        return history_of(client, loop, step=1, **{"from": time.time() - 60})

    until(lambda: sums(last(), "settled") == (80,) and not any(b["provisional"] for b in last()["bins"]), "all settle")
    found = last()
    assert sums(found, "decisions", "items", "reward_sum") == (80, 120, 40.0)
    assert found["total"]["reward"]["estimate"] == pytest.approx(1 / 3)
    assert found["total"]["uniform"]["estimate"] == pytest.approx(1 / 3), "this policy is the uniform one"
    assert found["total"]["lift"]["low"] < 0 < found["total"]["lift"]["high"]
    assert found["policies"]["chance"] == found["total"]
    first = next(bin for bin in found["bins"] if bin["reward_sum"])
    assert first["reward"]["low"] < first["reward"]["estimate"] <= first["reward"]["high"]
    wide = history_of(client, loop, step=3600, **{"from": time.time() - 60})
    assert sums(wide, "decisions", "items", "reward_sum") == (80, 120, 40.0)


def test_what_happened_stands_beside_it(client: httpx.Client, make_loop: Make) -> None:
    loop = make_loop()
    path, now = f"/loops/{loop}/marks", time.time()
    assert client.post(path, json={"text": "campaign <b>1</b>", "at": now - 100}).json() == {
        "at": pytest.approx(now - 100),
        "kind": "note",
        "text": "campaign <b>1</b>",
    }
    made = client.post(path, json={"text": "deploy"})
    assert (made.status_code, made.json()["at"]) == (201, pytest.approx(now, abs=30))
    marks = history_of(client, loop)["marks"]
    assert [mark["at"] for mark in marks] == sorted(mark["at"] for mark in marks)
    said = {(mark["kind"], mark["text"]) for mark in marks}
    assert {
        ("note", "campaign <b>1</b>"),
        ("note", "deploy"),
        ("change", "make policy: linucb"),
        ("change", "activate policy: linucb 100%"),
    } <= said
    assert not history_of(client, loop, to=now - 200)["marks"]
    for wrong in ({"text": ""}, {"text": "x" * 201}, {"at": now}, {"text": "x", "at": now * 2}, {"text": "x", "by": 1}):
        assert client.post(path, json=wrong).status_code == 422, wrong
    assert client.post("/loops/none/marks", json={"text": "x"}).status_code == 404


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"step": 7}, "step"),
        ({"step": 1, "from": 0}, "step"),
        ({"step": 60, "from": 1e9, "to": 1e9 + 600}, "step"),
        ({"from": 10, "to": 10}, "from"),
        ({"from": 0}, "from"),
        ({"from": "nan"}, "from"),
        ({"to": "inf"}, "to"),
        ({"to": -1}, "to"),
        ({"bin": 60}, "bin"),
    ],
)
def test_a_span_that_cannot_be_told_is_refused(client: httpx.Client, query: dict[str, Any], field: str) -> None:
    reply = client.get("/loops/default/history", params=query)
    assert (reply.status_code, field in reply.text) == (422, True), reply.text


def test_the_step_is_chosen_so_that_there_are_few_bins(client: httpx.Client) -> None:
    now = time.time()
    day = 86_400
    for ago, step in (
        (60, 1),
        (500, 5),
        (3600, 60),
        (day, 600),
        (7 * day, 3600),
        (40 * day, day // 4),
        (300 * day, day),
    ):
        found = history_of(client, "default", **{"from": now - ago, "to": now})
        assert found["step"] == step, ago
        assert found["from"] <= now - ago < now <= found["to"]
    assert client.get("/loops/none/history").status_code == 404
