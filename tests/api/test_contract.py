"""/recommend and /feedback: every case against the hot path and against FastAPI's ordinary routes.

The first part runs each test against either. The second part sends each of a table of requests to both, and compares
the replies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import httpx
import pytest

from tests.waiting import until

EXPIRED = "01JBX8E9Z3T4V5W6X7Y8Z9A0B1"  # begins decision ids of 2024
Make = Callable[..., str]
Reply = dict[str, Any]


@pytest.fixture(params=["hot path", "ordinary routes"])
def client(request: pytest.FixtureRequest, service: str, ordinary: str) -> Iterator[httpx.Client]:
    """One client of either worker; overrides that of the session, for `make_loop`, too."""
    url = service if request.param == "hot path" else ordinary
    with httpx.Client(base_url=url, timeout=30, verify=False) as client:
        yield client


def recommend(client: httpx.Client, loop: str, **body: object) -> Reply:
    reply = client.post("/recommend", json={"loop": loop, **body})
    assert reply.status_code == 200, reply.text
    found: Reply = reply.json()
    return found


def report(client: httpx.Client, decision: Reply, reward: float, **body: object) -> str:
    reply = client.post("/feedback", json={"decision_id": decision["decision_id"], "reward": reward, **body})
    assert reply.status_code in (200, 202), reply.text
    return str(reply.json()["status"])


# ---- one by one, against either


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
        assert report(client, recommend(client, loop, candidates=["p003"]), 1.0) == "accepted"

    def learned() -> bool:
        [item] = recommend(client, loop)["items"]
        return bool(item["id"] == "p003" and item["propensity"] > 0.9)

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
            report(client, recommend(client, loop, candidates=[item]), reward)
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
        ({"k": True}, "k"),
        ({"candidates": []}, "candidates"),
        ({"candidates": ["a", "a"]}, "candidates"),
        ({"candidates": [7, "7"]}, "candidates"),
        ({"candidates": [None]}, "candidates.0"),
        ({"candidates": [{"id": ""}]}, "candidates.0.id"),
        ({"candidates": ["a", {"features": {}}]}, "candidates.1.id"),
        ({"candidates": ["a", {"id": "b", "features": [1]}]}, "candidates.1.features"),
        ({"candidates": ["a", {"id": "b", "feature": {}}]}, "candidates.1.feature"),
        ({"exclude": ["a", ""]}, "exclude.1"),
        ({"context": [1]}, "context"),
        ({"user_id": 7.5}, "user_id"),
        ({"user_id": True}, "user_id"),
        ({"decision_id": "x" * 129}, "decision_id"),
        ({"kandidates": ["a"]}, "kandidates"),
    ],
)
def test_bad_requests_name_the_field(client: httpx.Client, make_loop: Make, body: Reply, field: str) -> None:
    reply = client.post("/recommend", json={"loop": make_loop(policy=None, items=2), **body})
    assert reply.status_code == 422
    assert reply.headers["content-type"] == "application/problem+json"
    assert [error["field"] for error in reply.json()["errors"]] == [field]


def test_integers_are_ids(client: httpx.Client, make_loop: Make) -> None:
    loop = make_loop(policy=None, items=0)
    decision = recommend(client, loop, user_id=196, candidates=[242, {"id": -1}, 0], exclude=[0], k=3, decision_id=5)
    assert decision["decision_id"] == "5"
    assert {item["id"] for item in decision["items"]} == {"242", "-1"}
    assert report(client, decision, 1, loop=loop, item_id=-1, feedback_id=9) == "accepted"
    ledger = client.get("/decisions/5", params={"loop": loop}).json()
    assert (ledger["decision"]["user_id"], ledger["feedback"][0]["item_id"]) == ("196", "-1")


def test_null_means_not_given(client: httpx.Client, make_loop: Make) -> None:
    loop = make_loop(policy=None)
    nothing = dict.fromkeys(["user_id", "context", "candidates", "exclude", "k", "decision_id"])
    decision = recommend(client, loop, **nothing)
    assert len(decision["items"]) == 1
    nothing = dict.fromkeys(["item_id", "feedback_id", "loop"])
    assert report(client, decision, 1, **nothing) == "accepted"
    decision = recommend(client, loop, candidates=[{"id": "p001", "features": None}])
    batch = {"loop": None, "feedback": [{"decision_id": decision["decision_id"], "reward": 1, **nothing}]}
    assert client.post("/feedback", json=batch).json() == {"results": [{"status": "accepted"}]}


def test_the_query_names_the_loop(client: httpx.Client, make_loop: Make) -> None:
    loop = make_loop(policy=None)
    decision = client.post("/recommend", params={"loop": loop}, json={"decision_id": "mine"}).json()
    assert decision["loop"] == loop
    sent = {"decision_id": "mine", "reward": 1}
    assert client.post("/feedback", json=sent).json() == {"status": "early"}, "there is none of this name in `default`"
    assert client.post("/feedback", params={"loop": loop}, json=sent).json() == {"status": "accepted"}
    both = client.post("/recommend", params={"loop": loop}, json={"loop": loop})
    assert both.json()["loop"] == loop


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
        (b'"' + b"x" * 9_000_000 + b'"', 413, "payload_too_large"),
    ],
)
@pytest.mark.parametrize("path", ["/recommend", "/feedback"])
def test_no_body_gets_a_500(client: httpx.Client, path: str, body: bytes, status: int, code: str) -> None:
    reply = client.post(path, content=body)
    assert (reply.status_code, reply.json()["code"]) == (status, code)


def test_huge_numbers_are_finite_features(client: httpx.Client, make_loop: Make) -> None:
    loop = make_loop()
    context = {"a": 10**30, "b": -1e308, "c": 1e-308, "d": 2**63}
    assert recommend(client, loop, context=context)["items"]


def test_the_request_id_comes_back(client: httpx.Client) -> None:
    assert client.get("/healthz", headers={"X-Request-ID": "abc"}).headers["x-request-id"] == "abc"
    reply = client.post("/recommend", content=b"{")
    assert reply.headers["x-request-id"] == reply.json()["request_id"]
    reply = client.post("/recommend", content=b"{", headers={"X-Request-ID": "mine"})
    assert reply.json()["request_id"] == "mine"


def test_feedback_is_refused_for_what_was_not_decided(client: httpx.Client, make_loop: Make) -> None:
    loop = make_loop(policy=None)
    decision = recommend(client, loop, candidates=["p001", "p002"])["decision_id"]
    good = {"loop": loop, "decision_id": decision, "reward": 1}

    def answer(**changed: object) -> tuple[int, str | None]:
        reply = client.post("/feedback", json={**good, **changed})
        return reply.status_code, reply.json().get("code")

    assert answer(decision_id=f"{EXPIRED}.0.{good['loop']}") == (404, "unknown_decision")
    assert answer(decision_id="not there yet") == (202, None)
    assert answer(item_id="p009") == (422, "invalid_request")
    for reward in (1.5, -0.1, None, True, "1"):
        assert answer(reward=reward) == (422, "invalid_request"), reward
    assert answer() == (202, None)


def test_feedback_finds_the_loop_of_an_id_that_the_service_made(client: httpx.Client, make_loop: Make) -> None:
    loop = make_loop(policy=None)
    decision = recommend(client, loop)
    assert decision["decision_id"].endswith(f".0.{loop}")
    assert report(client, decision, 1) == "accepted"
    assert client.get(f"/decisions/{decision['decision_id']}").json()["status"] == "rewarded"
    batch = [{"decision_id": recommend(client, make_loop(policy=None))["decision_id"], "reward": 0} for _ in range(2)]
    assert client.post("/feedback", json={"feedback": batch}).json() == {"results": [{"status": "accepted"}] * 2}


def test_feedback_of_a_deleted_loop_is_not_found(client: httpx.Client, make_loop: Make) -> None:
    loop = make_loop(policy=None)
    sent = {"decision_id": recommend(client, loop)["decision_id"], "reward": 1}
    client.delete(f"/loops/{loop}").raise_for_status()
    gone = client.post("/feedback", json=sent)
    assert (gone.status_code, gone.json()["code"]) == (404, "unknown_loop")
    client.put(f"/loops/{loop}", json={}).raise_for_status()
    kept = client.post("/feedback", json=sent)
    assert (kept.status_code, kept.json()) == (202, {"status": "early"}), "it is as young as one that is still to come"
    gone = client.get(f"/decisions/{sent['decision_id']}")
    assert (gone.status_code, gone.json()["code"]) == (404, "unknown_decision")


def test_an_own_id_may_not_name_another_loop(client: httpx.Client, make_loop: Make) -> None:
    """Else its feedback would be looked for where its decision is not."""
    shop, home = make_loop(policy=None), make_loop(policy=None)
    made = recommend(client, shop)["decision_id"]
    reply = client.post("/recommend", json={"loop": home, "decision_id": made})
    assert (reply.status_code, reply.json()["errors"][0]["field"]) == (422, "decision_id")
    assert recommend(client, shop, decision_id=made)["decision_id"] == made
    for own in (made.lower(), f"x{made}", made.replace(".0.", ".00."), f"{made}/", made.removesuffix(shop)):
        assert report(client, recommend(client, home, decision_id=own), 1, loop=home) == "accepted"


def test_a_batch_answers_per_element(client: httpx.Client, make_loop: Make) -> None:
    loop = make_loop(policy=None)
    ids = [recommend(client, loop)["decision_id"] for _ in range(3)]
    batch = [
        {"decision_id": ids[0], "reward": 1},
        {"decision_id": f"{EXPIRED}.0.{loop}", "reward": 1},
        "no object",
        None,
        {"decision_id": ids[1], "reward": 7},
        {"decision_id": ids[0], "reward": 1},
        {"decision_id": ids[2], "reward": 0},
    ]
    reply = client.post("/feedback", json={"loop": loop, "feedback": batch})
    assert reply.status_code == 200
    results = reply.json()["results"]
    rejected = "rejected"
    assert [r["status"] for r in results] == ["accepted", *[rejected] * 4, "duplicate", "accepted"]
    assert [r.get("code") for r in results if r["status"] == rejected] == [
        "unknown_decision",
        "invalid_request",
        "invalid_request",
        "invalid_request",
    ]


def test_after_the_wait_the_default_counts_and_feedback_is_late(client: httpx.Client, make_loop: Make) -> None:
    loop = make_loop(policy="popularity", wait_time=0.2)
    decision = recommend(client, loop)
    path = f"/decisions/{decision['decision_id']}"
    until(lambda: client.get(path).json()["status"] == "defaulted", "the default is taken")
    late = client.post("/feedback", json={"decision_id": decision["decision_id"], "reward": 1})
    assert (late.status_code, late.json()["status"]) == (200, "late")
    ledger = client.get(path).json()
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
    decision = recommend(client, loop)
    rewards = [0.9, 0.9] if aggregation == "sum-clipped" else [0.25, 0.5]
    for number, reward in enumerate(rewards):
        report(client, decision, reward, feedback_id=f"f{number}")
        assert report(client, decision, reward, feedback_id=f"f{number}") == "duplicate"

    def rewards_learned() -> list[float]:
        summary = client.get("/policies/popularity", params={"loop": loop}).json()["summary"]
        return [item["clicks"] for item in summary.get("items", {}).values()]

    until(lambda: rewards_learned() == [learned], f"the reward learned is {learned}")


# ---- the same request to both: the same reply


@dataclass(frozen=True)
class Case:
    """A request, and the status and code of its reply. In the body, LOOP and DECISION stand for fresh ones."""

    path: str
    body: Any = field(default_factory=dict)
    status: int = 422
    code: str | None = "invalid_request"
    query: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    method: str = "POST"

    def __str__(self) -> str:
        return f"{self.method} {self.path}{self.query} {str(self.body)[:60]} {dict(self.headers) or ''}"


LOOP, DECISION = "<loop>", "<decision>"
ASK, TELL = "/recommend", "/feedback"
GOOD = {"decision_id": DECISION, "reward": 1}


def ask(body: Any, status: int = 200, code: str | None = None, **more: Any) -> Case:
    return Case(ASK, body, status, code, **more)


def tell(body: Any, status: int = 202, code: str | None = None, **more: Any) -> Case:
    return Case(TELL, body, status, code, **more)


def wrong(path: str, *bodies: Any) -> list[Case]:
    return [Case(path, body) for body in bodies]


NO_JSON = (
    *(b"", b" ", b"{", b"{'a': 1}", b"{}{}", b"k=1", b"[" * 100_000, b"\xef\xbb\xbf{}", '{"k": 1}'.encode("utf-16")),
    *(
        b'{"k": NaN}',
        b'{"k": Infinity}',
        b'{"k": 1e999}',
        b'{"k": 01}',
        b'{"user_id": "\\ud800"}',
        b'{"user_id": "\xff"}',
    ),
)
NO_OBJECT = (b"[]", b"null", b"1", b'"{}"', b"true", b'[{"k": 1}]')
QUERIES = (
    *("?explain=true", "?Loop=default", "?loop=default&k=1", "?x", "?="),
    *("?loop=default&loop=default", "?loop=a&loop=b", f"?loop={'x' * 65}"),
)
MANY = {"candidates": [f"{i}" for i in range(10_001)]}
CASES = [
    # what is right
    ask({"loop": LOOP}),
    ask({"loop": LOOP, "user_id": "u1", "context": {"a": [1, {"b": None}]}, "k": 3, "exclude": ["p001", "p002"]}),
    ask({"loop": LOOP, "candidates": ["a", {"id": "b"}, {"id": "c", "features": {"x": 1}}, 4], "k": 9}),
    ask({"loop": LOOP, "user_id": 1, "candidates": [2], "exclude": [3], "decision_id": 4}),
    ask(dict.fromkeys(["user_id", "context", "candidates", "exclude", "k", "decision_id"]) | {"loop": LOOP}),
    ask({"loop": LOOP, "context": {"long": "x" * 300, "x" * 300: 1, **{f"f{i}": i for i in range(120)}}}),
    ask({"candidates": ["a"]}, query=f"?loop={LOOP}"),
    ask({"loop": LOOP}, query=f"?loop={LOOP}"),
    ask({"loop": LOOP}, headers={"Content-Type": "text/plain"}),
    ask({"loop": LOOP}, headers={"Content-Type": "application/x-www-form-urlencoded"}),
    ask({"loop": LOOP}, headers={"Content-Type": "application/json; charset=utf-16"}),
    ask({"loop": LOOP}, headers={"Content-Type": ""}),
    ask({"loop": LOOP}, headers={"Content-Encoding": "identity"}),
    tell(GOOD),
    tell({**GOOD, "loop": LOOP, "item_id": None, "feedback_id": 7}),
    tell({**GOOD, "reward": 0.25}, query=f"?loop={LOOP}"),
    tell({"feedback": [GOOD, GOOD, {**GOOD, "reward": 2}, {}, [], None, {**GOOD, "loop": "nowhere"}]}, 200),
    tell({"loop": LOOP, "feedback": [{"decision_id": "x", "reward": 1}]}, 200),
    tell({"decision_id": "x", "reward": 1, "loop": LOOP}),
    ask({"loop": LOOP, "displayed": False}),
    # what is not JSON, and what is JSON and wrong
    *(Case(path, body, 400, "malformed_json") for path in (ASK, TELL) for body in NO_JSON),
    *(Case(path, body) for path in (ASK, TELL) for body in NO_OBJECT),
    *wrong(ASK, {"k": 0}, {"k": -1}, {"k": 101}, {"k": 1.5}, {"k": 1.0}, {"k": True}, {"k": "1"}, {"k": [1]}),
    *wrong(ASK, {"k": 10**30}, {"loop": 1}, {"loop": "x" * 65}, {"loop": ["a"]}, {"loop": True}),
    *wrong(ASK, {"user_id": ""}, {"user_id": "x" * 129}, {"user_id": 1.5}, {"user_id": 10**30}, {"user_id": False}),
    *wrong(ASK, {"context": []}, {"context": "x"}, {"context": 1}, {"context": True}),
    *wrong(ASK, {"candidates": {}}, {"candidates": "a"}, {"candidates": [""]}, {"candidates": [None]}),
    *wrong(ASK, {"candidates": ["a", "a"]}, {"candidates": [1, "1"]}, {"candidates": ["a", {"id": "a"}]}),
    *wrong(ASK, {"candidates": [["a"]]}, {"candidates": [{}]}, {"candidates": [{"id": None}]}, MANY),
    *wrong(ASK, {"candidates": [{"id": "a", "x": 1}]}, {"candidates": [1.5, True]}, {"candidates": ["x" * 129]}),
    *wrong(ASK, {"candidates": [{"id": "a", "features": []}]}, {"candidates": [{"id": "a", "features": 1}]}),
    *wrong(ASK, {"exclude": "a"}, {"exclude": [None]}, {"exclude": [""]}, {"exclude": [{"id": "a"}]}),
    *wrong(ASK, {"decision_id": ""}, {"decision_id": "x" * 129}, {"decision_id": {}}, {"decision_id": DECISION}),
    *wrong(ASK, {"displayed": 0}, {"displayed": "false"}, {"displayed": []}),
    *wrong(ASK, {"kandidates": ["a"]}, {"k": 0, "loop": 1, "user_id": "", "candidates": ["", {"id": ""}, {"x": 1}]}),
    Case(ASK, {"loop": LOOP, "candidates": []}, code="no_candidates"),
    Case(ASK, {"loop": LOOP, "candidates": ["a"], "exclude": ["a"]}, code="no_candidates"),
    *wrong(TELL, {}, {"decision_id": DECISION}, {"reward": 1}, {**GOOD, "reward": None}, {**GOOD, "decision_id": None}),
    *wrong(TELL, {**GOOD, "reward": 1.5}, {**GOOD, "reward": -1}, {**GOOD, "reward": True}, {**GOOD, "reward": "1"}),
    *wrong(TELL, {**GOOD, "reward": [1]}, {**GOOD, "reward": 10**30}, {**GOOD, "item_id": "not in the slate"}),
    *wrong(TELL, {**GOOD, "item_id": ""}, {**GOOD, "item_id": True}, {**GOOD, "feedback_id": ""}, {**GOOD, "loop": 1}),
    *wrong(TELL, {**GOOD, "replaces": "a"}, {**GOOD, "replaces": "", "feedback_id": "b"}),
    *wrong(TELL, {**GOOD, "replaces": "a", "feedback_id": "a"}, {**GOOD, "replaces": 1.5, "feedback_id": "b"}),
    Case(TELL, {**GOOD, "replaces": "a", "feedback_id": "b"}, 409, "already_learned"),
    *wrong(TELL, {**GOOD, "k": 1}, {"feedback": []}, {"feedback": {}}, {"feedback": "x"}, {"feedback": [GOOD] * 1001}),
    *wrong(TELL, {"feedback": [GOOD], "reward": 1}, {"feedback": [GOOD], "loop": "x" * 65}, {"feedback": None}),
    # what is not there
    Case(ASK, {"loop": "nowhere"}, 404, "unknown_loop"),
    Case(ASK, {"loop": ""}, 404, "unknown_loop"),
    Case(ASK, {"loop": "NOWHERE"}, 404, "unknown_loop"),
    Case(ASK, {}, 404, "unknown_loop", query="?loop=nowhere"),
    Case(ASK, {}, 404, "unknown_loop", query="?loop="),
    Case(ASK, {}, 404, "unknown_loop", query="?loop=%FF"),
    Case(TELL, {**GOOD, "loop": "nowhere"}, 404, "unknown_loop"),
    Case(TELL, {**GOOD, "loop": "default"}, 404, "unknown_decision"),
    Case(TELL, {"decision_id": f"{EXPIRED}.0.default", "reward": 1}, 404, "unknown_decision"),
    Case(TELL, {"decision_id": f"{EXPIRED}.0.nowhere", "reward": 1}, 404, "unknown_loop"),
    # queries, paths, methods, encodings, sizes
    *(Case(path, {}, query=query) for path in (ASK, TELL) for query in QUERIES),
    Case(ASK, {"loop": LOOP}, query="?loop=default"),
    Case(TELL, {**GOOD, "loop": LOOP}, query="?loop=default"),
    *(Case(path, {}, 404, "not_found") for path in ("/recommend/", "/feedback/", "/Recommend", "//recommend")),
    *(Case(ASK, None, 405, "method_not_allowed", method=m) for m in ("GET", "PUT", "DELETE", "OPTIONS", "PATCH")),
    Case(TELL, None, 405, "method_not_allowed", method="GET"),
    *(
        Case(path, GOOD, 415, "unsupported_encoding", headers={"Content-Encoding": encoding})
        for path in (ASK, TELL)
        for encoding in ("gzip", "GZIP", "br", "gzip, identity")
    ),
    Case(ASK, b'"' + b"x" * 9_000_000 + b'"', 413, "payload_too_large"),
]


@pytest.fixture(scope="module")
def both(service: str, ordinary: str) -> Iterator[tuple[httpx.Client, httpx.Client]]:
    """A client of the hot path, and one of the ordinary routes."""
    with httpx.Client(base_url=service, timeout=30) as hot, httpx.Client(base_url=ordinary, timeout=30) as plain:
        yield hot, plain


@pytest.fixture(scope="module")
def prepared(both: tuple[httpx.Client, httpx.Client]) -> str:
    """A loop with 10 items."""
    loop = f"t-{uuid4().hex[:12]}"
    both[0].put(f"/loops/{loop}", json={}).raise_for_status()
    items = [{"id": f"p{i:03}", "features": {"price": i}} for i in range(10)]
    both[0].post("/items", params={"loop": loop}, json={"items": items}).raise_for_status()
    return loop


def filled_in(value: Any, loop: str, decision: str) -> Any:
    """Put the loop and the decision where a case has their places."""
    if isinstance(value, dict):
        return {name: filled_in(part, loop, decision) for name, part in value.items()}
    if isinstance(value, list):
        return [filled_in(part, loop, decision) for part in value]
    return {LOOP: loop, DECISION: decision}.get(value, value) if isinstance(value, str) else value


def shape(value: Any) -> Any:
    """Names and types of a reply."""
    if isinstance(value, dict):
        return {name: shape(part) for name, part in value.items()}
    return [shape(part) for part in value] if isinstance(value, list) else type(value).__name__


@pytest.mark.parametrize("case", CASES, ids=str)
def test_both_ways_answer_alike(both: tuple[httpx.Client, httpx.Client], prepared: str, case: Case) -> None:
    answers = []
    for client in both:
        decision = recommend(client, prepared)["decision_id"] if DECISION in str(case.body) else DECISION
        body = filled_in(case.body, prepared, decision)
        sent = {"content": body} if isinstance(body, bytes) else {} if body is None else {"json": body}
        path = case.path + case.query.replace(LOOP, prepared)
        reply = client.request(case.method, path, headers=dict(case.headers), **sent)
        found = reply.json()
        assert (reply.status_code, found.get("code")) == (case.status, case.code), reply.text
        headers = {name: reply.headers.get(name) for name in ("content-type", "allow", "accept-encoding")}
        if reply.status_code >= 400:
            assert found.pop("request_id") == reply.headers["x-request-id"]
        exact = reply.status_code >= 400 or "results" in found
        answers.append((headers, str(found).replace(decision, DECISION) if exact else shape(found)))
    assert answers[0] == answers[1]
