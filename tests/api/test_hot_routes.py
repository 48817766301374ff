"""/recommend and /feedback over HTTP."""

from collections.abc import Callable

import httpx
import pytest

from tests.waiting import until

Make = Callable[..., str]


def recommend(client: httpx.Client, loop: str, **body: object) -> dict:
    reply = client.post("/recommend", json={"loop": loop, **body})
    assert reply.status_code == 200, reply.text
    return reply.json()


def test_a_decision_and_its_reward(client: httpx.Client, make_loop: Make) -> None:
    loop = make_loop()
    decision = recommend(client, loop, user_id="u1", context={"persona": "x"})
    assert decision["policy"] == "linucb"
    assert decision["degraded"] is False
    assert 0 < decision["items"][0]["propensity"] <= 1
    sent = {"loop": loop, "decision_id": decision["decision_id"], "reward": 1.0}
    assert client.post("/feedback", json=sent).status_code == 202
    again = client.post("/feedback", json=sent)
    assert (again.status_code, again.json()) == (200, {"status": "duplicate"})
    ledger = client.get(f"/decisions/{decision['decision_id']}", params={"loop": loop}).json()
    assert ledger["status"] == "rewarded"
    assert [seen["reward"] for seen in ledger["feedback"]] == [1.0]


def test_the_reply_learns(client: httpx.Client, make_loop: Make) -> None:
    """Reward one item a few times: soon it is what linucb serves."""
    loop = make_loop(params={"alpha": 0.1})
    for _ in range(20):
        decision = recommend(client, loop, candidates=["p003"])
        sent = {"loop": loop, "decision_id": decision["decision_id"], "reward": 1.0}
        assert client.post("/feedback", json=sent).status_code == 202

    def learned() -> bool:
        decision = recommend(client, loop)
        return decision["items"][0]["id"] == "p003" and decision["items"][0]["propensity"] > 0.9

    until(learned, "linucb prefers the rewarded item")


def test_a_repeated_decision_id_returns_the_stored_decision(client: httpx.Client, make_loop: Make) -> None:
    loop = make_loop(policy=None)
    first = recommend(client, loop, decision_id="mine", context={"a": 1}, k=3)
    assert recommend(client, loop, decision_id="mine", context={"b": 2}, k=1) == first
    assert len(first["items"]) == 3


def test_equal_ids_draw_equal_items(client: httpx.Client, make_loop: Make) -> None:
    """The draw is seeded by loop and decision id, so two deployments agree."""
    loop = make_loop(policy=None)
    first = recommend(client, loop, decision_id="seeded")
    client.delete(f"/loops/{loop}").raise_for_status()
    client.put(f"/loops/{loop}", json={}).raise_for_status()
    client.post(
        "/items",
        params={"loop": loop},
        json={"items": [{"id": f"p{i:03}", "features": {"category": "ab"[i % 2], "price": i}} for i in range(10)]},
    ).raise_for_status()
    assert recommend(client, loop, decision_id="seeded")["items"] == first["items"]


def test_candidates_and_exclusions(client: httpx.Client, make_loop: Make) -> None:
    loop = make_loop(policy=None)
    slate = recommend(client, loop, candidates=["p001", {"id": "new", "features": {"category": "c"}}], k=5)["items"]
    assert {item["id"] for item in slate} == {"p001", "new"}
    slate = recommend(client, loop, exclude=[f"p{i:03}" for i in range(9)], k=5)["items"]
    assert [item["id"] for item in slate] == ["p009"]
    assert slate[0]["propensity"] == 1.0


def test_a_slate_is_the_policys_ranking(client: httpx.Client, make_loop: Make) -> None:
    """Without a floor, every place of the slate is the best of what is left, not a uniform rest."""
    loop = make_loop(policy="popularity", params={"epsilon": 0.0}, exploration_floor=0.0)
    for item, reward in (("p001", 1.0), ("p002", 0.6), ("p003", 0.3)):
        for _ in range(30):
            decision = recommend(client, loop, candidates=[item])
            client.post("/feedback", json={"loop": loop, "decision_id": decision["decision_id"], "reward": reward})
    three = ["p001", "p002", "p003"]

    def ranked() -> bool:
        return [item["id"] for item in recommend(client, loop, candidates=three, k=3)["items"]] == three

    until(ranked, "the slate is in the order of the rewards")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"k": 0}, "k"),
        ({"k": 101}, "k"),
        ({"k": "many"}, "k"),
        ({"candidates": []}, "candidates"),
        ({"candidates": ["a", "a"]}, "candidates"),
        ({"candidates": [{"id": ""}]}, "candidates.0"),
        (
            {"candidates": [{"id": "a", "features": {"x": {"y": {"z": {"w": {"v": {"u": 1}}}}}}}]},
            "candidates.0.features",
        ),
        ({"context": [1]}, "context"),
        ({"user_id": 7}, "user_id"),
        ({"decision_id": "x" * 129}, "decision_id"),
        ({"kandidates": ["a"]}, "kandidates"),
    ],
)
def test_bad_requests_name_the_field(client: httpx.Client, make_loop: Make, body: dict, field: str) -> None:
    reply = client.post("/recommend", json={"loop": make_loop(policy=None), **body})
    assert reply.status_code == 422
    assert reply.headers["content-type"] == "application/problem+json"
    assert reply.json()["errors"][0]["field"].startswith(field)


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, "malformed_json"),
        (b"{", 400, "malformed_json"),
        (b'{"context": {"x": NaN}}', 400, "malformed_json"),
        (b'{"context": {"x": "\\ud800"}}', 400, "malformed_json"),
        (b'{"user_id": "\xff"}', 400, "malformed_json"),
        (b"[" * 100_000, 400, "malformed_json"),
        (b'{"context": {"x": 1e999}}', 400, "malformed_json"),
        (b"[]", 422, "invalid_request"),
        (b"null", 422, "invalid_request"),
        (b'{"loop": "nowhere"}', 404, "unknown_loop"),
        (b'"' + b"x" * 9_000_000 + b'"', 413, "payload_too_large"),
    ],
)
@pytest.mark.parametrize("path", ["/recommend", "/feedback"])
def test_no_body_gets_a_500(client: httpx.Client, path: str, body: bytes, status: int, code: str) -> None:
    reply = client.post(path, content=body)
    if path == "/feedback" and code in ("unknown_loop",):
        status, code = 422, "invalid_request"
    assert (reply.status_code, reply.json()["code"]) == (status, code)


def test_huge_numbers_are_finite_features(client: httpx.Client, make_loop: Make) -> None:
    loop = make_loop()
    context = {"a": 10**30, "b": -1e308, "c": 1e-308, "d": 2**63}
    assert recommend(client, loop, context=context)["items"]


def test_the_request_id_comes_back(client: httpx.Client) -> None:
    assert client.get("/healthz", headers={"X-Request-ID": "abc"}).headers["x-request-id"] == "abc"
    assert client.post("/recommend", content=b"{").headers["x-request-id"]


def test_feedback_is_refused_for_what_was_not_decided(client: httpx.Client, make_loop: Make) -> None:
    loop = make_loop(policy=None)
    decision = recommend(client, loop, candidates=["p001", "p002"])["decision_id"]
    good = {"loop": loop, "decision_id": decision, "reward": 1}

    def answer(**changed: object) -> tuple[int, str]:
        reply = client.post("/feedback", json={**good, **changed})
        return reply.status_code, reply.json().get("code")

    assert answer(decision_id="unknown") == (404, "unknown_decision")
    assert answer(item_id="p009") == (422, "invalid_request")
    assert answer(reward=1.5) == (422, "invalid_request")
    assert answer(reward=-0.1) == (422, "invalid_request")
    assert answer(reward=None) == (422, "invalid_request")
    assert answer() == (202, None)


def test_a_batch_answers_per_element(client: httpx.Client, make_loop: Make) -> None:
    loop = make_loop(policy=None)
    ids = [recommend(client, loop)["decision_id"] for _ in range(3)]
    batch = [
        {"decision_id": ids[0], "reward": 1},
        {"decision_id": "unknown", "reward": 1},
        "no object",
        {"decision_id": ids[1], "reward": 7},
        {"decision_id": ids[0], "reward": 1},
        {"decision_id": ids[2], "reward": 0},
    ]
    reply = client.post("/feedback", json={"loop": loop, "feedback": batch})
    assert reply.status_code == 200
    results = reply.json()["results"]
    assert [r["status"] for r in results] == ["accepted", "rejected", "rejected", "rejected", "duplicate", "accepted"]
    assert [r.get("code") for r in results if r["status"] == "rejected"] == [
        "unknown_decision",
        "invalid_request",
        "invalid_request",
    ]


def test_after_the_wait_the_default_counts_and_feedback_is_late(client: httpx.Client, make_loop: Make) -> None:
    loop = make_loop(policy="popularity", wait_time=0.2)
    decision = recommend(client, loop)["decision_id"]
    path = f"/decisions/{decision}"
    until(lambda: client.get(path, params={"loop": loop}).json()["status"] == "defaulted", "the default is taken")
    late = client.post("/feedback", json={"loop": loop, "decision_id": decision, "reward": 1})
    assert (late.status_code, late.json()["status"]) == (200, "late")
    ledger = client.get(path, params={"loop": loop}).json()
    assert (ledger["status"], ledger["feedback"][0]["status"]) == ("late", "late")
    status = client.get("/status").json()["loops"][loop]
    assert (status["defaulted"], status["late"], status["events"]) == (1, 1, 1)
    until(lambda: client.get("/status").json()["loops"][loop]["policies"]["popularity"]["events"] == 1, "it is learned")
    summary = client.get("/policies/popularity", params={"loop": loop}).json()["summary"]
    (counts,) = summary["items"].values()
    assert (counts["impressions"], counts["clicks"]) == (1, 0.0)


@pytest.mark.parametrize(
    ("aggregation", "learned"), [("first", 0.25), ("sum", 0.75), ("max", 0.5), ("last", 0.5), ("sum-clipped", 1.0)]
)
def test_several_rewards_become_one(client: httpx.Client, make_loop: Make, aggregation: str, learned: float) -> None:
    loop = make_loop(policy="popularity", wait_time=1.0, aggregation=aggregation.split("-")[0])
    decision = recommend(client, loop)["decision_id"]
    rewards = [0.9, 0.9] if aggregation == "sum-clipped" else [0.25, 0.5]
    for number, reward in enumerate(rewards):
        sent = {"loop": loop, "decision_id": decision, "reward": reward, "feedback_id": f"f{number}"}
        client.post("/feedback", json=sent)
        repeat = client.post("/feedback", json=sent)
        assert repeat.json() == {"status": "duplicate"}

    def rewards_learned() -> list[float]:
        summary = client.get("/policies/popularity", params={"loop": loop}).json()["summary"]
        return [item["clicks"] for item in summary.get("items", {}).values()]

    until(lambda: rewards_learned() == [learned], f"the reward learned is {learned}")
