"""Why did it show that, and what would it show if: over HTTP, from kept versions, without a trace in Redis."""

from __future__ import annotations

import asyncio
import json
import re
import threading
import time
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import httpx
import pytest
from redis.asyncio import Redis
from typer.testing import CliRunner, Result

from service import cli
from service.errors import ExplainerBusy
from service.serve import explainer as module
from service.settings import Settings
from service.store import loop_store
from service.store.keys import Keys
from tests.conftest import Worker
from tests.waiting import until

Make = Callable[..., str]
MARKUP = "<img src=x onerror=alert(1)>"


def teach(client: httpx.Client, loop: str, policy: str, *, events: int = 60) -> None:
    """Import a log in which category a is clicked where the taste is a, and wait until the policy knows it."""
    rows = [
        {
            **{
                "event_id": f"{loop}-{number}",
                "user_id": f"u{number % 5}",
                "context": {"taste": "ab"[number // 2 % 2]},
            },
            **{"item_id": f"p{number % 2:03}", "reward": float(number // 2 % 2 == number % 2), "propensity": 0.5},
        }
        for number in range(events)
    ]
    client.post("/events", params={"loop": loop}, json={"events": rows}).raise_for_status()
    learned(client, loop, policy, events)


def learned(client: httpx.Client, loop: str, policy: str, events: int) -> None:
    def there() -> bool:
        found = client.get(f"/policies/{policy}", params={"loop": loop}).json()
        return bool(found["events"] >= events and found["version"] > 0)

    until(there, "the policy learns")


def added_up(candidate: dict[str, Any]) -> float:
    return float(
        candidate["bias"] + sum(part["value"] for part in candidate["parts"]) + candidate["item"] + candidate["user"]
    )


def patiently(ask: Callable[[], httpx.Response]) -> httpx.Response:
    """Ask again where the machine was too busy, as the reply says."""
    for _ in range(10):
        reply = ask()
        if reply.status_code != 503:
            break
        time.sleep(int(reply.headers["retry-after"]))
    return reply


def explanation(client: httpx.Client, decision_id: str, **params: Any) -> dict[str, Any]:
    reply = patiently(lambda: client.get(f"/decisions/{decision_id}", params={"explain": True, **params}))
    assert reply.status_code == 200, reply.text
    found: dict[str, Any] = reply.json()["explanation"]
    return found


def tried(client: httpx.Client, **body: Any) -> dict[str, Any]:
    reply = patiently(lambda: client.post("/try", json=body))
    assert reply.status_code == 200, reply.text
    found: dict[str, Any] = reply.json()
    return found


async def dump(redis: Redis, keys: Keys) -> dict[bytes, Any]:
    """Return all that Redis holds of a loop; leases are renewed all the time."""
    reads: dict[bytes, Callable[[bytes], Any]] = {
        b"hash": redis.hgetall,
        b"list": lambda name: redis.lrange(name, 0, -1),
        b"set": redis.smembers,
        b"stream": redis.xrange,
        b"string": redis.get,
        b"zset": lambda name: redis.zrange(name, 0, -1, withscores=True),
    }
    found = {}
    for name in sorted([name async for name in redis.scan_iter(match=f"*{keys.loop}*", count=10_000)]):
        if b":lease:" not in name and b":fence:" not in name:
            found[name] = await reads[await redis.type(name)](name)
    return found


def test_a_decision_is_explained_from_the_version_that_made_it(
    client: httpx.Client, service: str, make_loop: Make
) -> None:
    loop = make_loop(policy="linucb", fit_schema=False, reward_range=[0, 2])
    teach(client, loop, "linucb")
    asked = {"loop": loop, "user_id": "u1", "context": {"taste": "a"}, "candidates": ["p000", "p001", "p002"], "k": 2}
    until(lambda: client.post("/recommend", json=asked).json()["version"] > 0, "the version serves")
    decision = client.post("/recommend", json=asked).json()
    found = explanation(client, decision["decision_id"])
    assert found["refusal"] is None
    assert (found["n"], found["scale"], found["exact"], found["background"]) == (3, "reward", True, [])
    shown, second, _ = found["candidates"]
    assert [shown["id"], second["id"]] == [item["id"] for item in decision["items"]]
    assert shown["propensity"] == pytest.approx(decision["items"][0]["propensity"])
    assert shown["reply_score"] == pytest.approx(decision["items"][0]["score"])
    assert shown["score"] + found["width"] * shown["sd"] == pytest.approx(shown["reply_score"])
    for one in found["candidates"]:
        assert added_up(one) == pytest.approx(one["score"], abs=1e-9)
    pair = next(part for part in shown["parts"] if part["fields"] == ["taste", "category"])
    assert (pair["context"], pair["item"], pair["error"]) == ("taste", "category", None)

    def told(*words: str) -> Result:
        return CliRunner().invoke(cli.app, ["explain", decision["decision_id"], "--url", service, *words])

    table = told().stdout
    assert f"chose {shown['id']}, {second['id']} for user u1" in table
    line = rf"taste \(request\) × category \(item\) *│ {re.escape(format(pair['value'], '+.4f'))}"
    assert re.search(line, table), table
    assert json.loads(told("--json").stdout) == found

    items = [{"id": f"p{number:03}", "features": {"category": "c", "price": 1}} for number in range(3)]
    client.post("/items", params={"loop": loop}, json={"items": items}).raise_for_status()
    client.post(
        "/events",
        params={"loop": loop},
        json={
            "events": [
                {"event_id": f"{loop}-later", "item_id": "p000", "reward": 2.0, "context": {}, "propensity": 0.5}
            ]
        },
    ).raise_for_status()
    learned(client, loop, "linucb", 61)
    assert explanation(client, decision["decision_id"]) == found, "version and catalogue are those of then"
    assert "explanation" not in client.get(f"/decisions/{decision['decision_id']}").json()
    assert "explanation" not in client.get(f"/decisions/{decision['decision_id']}?explain=false").json()


@pytest.mark.anyio
async def test_what_is_no_longer_kept_is_a_reason(client: httpx.Client, make_loop: Make, redis: Redis) -> None:
    loop = make_loop(policy="adaptive", fit_schema=False)
    teach(client, loop, "adaptive")
    keys = Keys(loop, (await loop_store.read_loop(redis, loop)).id)

    def decide() -> dict[str, Any]:
        found: dict[str, Any] = client.post("/recommend", json={"loop": loop, "context": {"taste": "a"}}).json()
        return found

    until(lambda: decide()["version"] > 0, "the version serves")
    decision = decide()
    served = explanation(client, decision["decision_id"])
    assert served["scale"] == "logit"
    assert explanation(client, decision["decision_id"]) == served
    client.post(
        "/events",
        params={"loop": loop},
        json={
            "events": [
                {"event_id": f"{loop}-later", "item_id": "p000", "reward": 1.0, "context": {}, "propensity": 0.5}
            ]
        },
    ).raise_for_status()
    learned(client, loop, "adaptive", 61)
    until(lambda: decide()["version"] > decision["version"], "the next version serves")
    snapshot = await redis.hget(keys.snapshots("adaptive"), str(decision["version"]))
    await redis.hdel(keys.snapshots("adaptive"), str(decision["version"]))
    refusal = explanation(client, decision["decision_id"])
    assert (refusal["refusal"]["code"], refusal["candidates"]) == ("version_not_kept", [])
    await redis.hset(keys.snapshots("adaptive"), str(decision["version"]), snapshot)
    assert explanation(client, decision["decision_id"]) == served

    client.put("/items/new", params={"loop": loop}, json={"features": {"category": "a"}}).raise_for_status()
    await redis.delete(keys.item_log)
    assert explanation(client, decision["decision_id"])["refusal"]["code"] == "catalogue_not_kept"
    client.post("/policies", params={"loop": loop}, json={"kind": "random"}).raise_for_status()
    client.post("/policies/random/activate", params={"loop": loop}).raise_for_status()
    client.delete(f"/policies/adaptive?loop={loop}").raise_for_status()
    assert explanation(client, decision["decision_id"])["refusal"]["code"] == "policy_gone"


@pytest.mark.anyio
async def test_trying_a_request_tells_of_shadows_and_changes_nothing(
    client: httpx.Client, make_loop: Make, redis: Redis
) -> None:
    loop = make_loop(policy="linucb", fit_schema=False)
    for kind in ("lin_ts", "neural_ucb", "random"):
        client.post("/policies", params={"loop": loop}, json={"kind": kind}).raise_for_status()
    teach(client, loop, "linucb")
    for kind in ("lin_ts", "neural_ucb"):
        learned(client, loop, kind, 60)
    until(lambda: tried(client, loop=loop)["policies"][1]["version"] > 0, "the version serves")
    keys = Keys(loop, (await loop_store.read_loop(redis, loop)).id)
    asked = {
        "loop": loop,
        "user_id": "u1",
        "context": {"taste": "a", MARKUP: MARKUP},
        "candidates": ["p000", "p001", "new"],
    }
    tried(client, **asked)
    before: dict[bytes, Any] = {}
    while before != (now := await dump(redis, keys)):  # the learner has written what it had to write
        before = now
        await asyncio.sleep(0.3)
    assert len(before) > 20
    found = tried(client, **asked)
    for _ in range(3):
        assert tried(client, **asked) == found
    assert await dump(redis, keys) == before
    assert found["serves"] == "linucb"
    assert found["context"] == asked["context"]
    assert [(one["policy"], one["share"]) for one in found["policies"]] == [
        *(("lin_ts", 0), ("linucb", 1)),
        *(("neural_ucb", 0), ("random", 0)),
    ]
    answers = {one["policy"]: one["explanation"] for one in found["policies"]}
    for answer in answers.values():
        assert (answer["refusal"], answer["n"]) == (None, 3)
        if answer["exact"]:
            assert sum(one["propensity"] for one in answer["candidates"]) == pytest.approx(1)
        for one in answer["candidates"]:
            assert added_up(one) == pytest.approx(one["score"], abs=1e-9)
    assert not answers["neural_ucb"]["exact"]
    assert [len(answer["candidates"]) for answer in answers.values()] == [3, 3, 1, 3]
    assert len(set(answers["neural_ucb"]["background"])) == 60
    errors = [part["error"] for part in answers["neural_ucb"]["candidates"][0]["parts"]]
    assert all(error >= 0 for error in errors)
    assert answers["linucb"]["candidates"][0]["id"] == "p000"

    other = tried(client, **{**asked, "context": {"taste": "b"}, "policies": ["linucb"]})
    assert [one["policy"] for one in other["policies"]] == ["linucb"]
    assert other["policies"][0]["explanation"]["candidates"][0]["id"] != "p000", "what it shows moves with the field"


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        ({"policies": ["nobody"]}, 404, "there is no policy 'nobody'"),
        ({"policies": ["a"] * 11}, 422, "policies: at most 10"),
        ({"candidates": ["a", "a"]}, 422, "an item stands twice"),
        ({"candidates": []}, 422, "none is left"),
        ({"context": {"@user": 1}}, 422, "context.@user"),
        ({"user": "u1"}, 422, "user: "),
        ({"k": 1}, 422, "k: "),
        ({"loop": "no-such-loop"}, 404, "there is no loop"),
    ],
)
def test_a_bad_request_is_refused(
    client: httpx.Client, make_loop: Make, body: dict[str, Any], status: int, says: str
) -> None:
    reply = client.post("/try", json={"loop": make_loop(items=2, policy="random"), **body})
    assert reply.status_code == status, reply.text
    assert says in reply.json()["detail"]


def test_a_loop_without_policies_tries_the_random_choice(client: httpx.Client, make_loop: Make) -> None:
    loop = make_loop(items=4, policy=None)
    found = tried(client, loop=loop)
    assert (found["serves"], [one["policy"] for one in found["policies"]]) == ("random", ["random"])
    assert [one["propensity"] for one in found["policies"][0]["explanation"]["candidates"]] == [0.25] * 4


def test_a_policy_is_explained_by_what_permuting_its_fields_costs(client: httpx.Client, make_loop: Make) -> None:
    loop = make_loop(policy="lin_ts", fit_schema=False)
    params = {"loop": loop}
    path = "/policies/lin_ts/explanation"
    assert client.post(path, params=params).json()["code"] == "not_learned_yet"
    assert client.get(path, params=params).json()["code"] == "unknown_explanation"
    teach(client, loop, "lin_ts", events=400)
    made = client.post(path, params=params)
    assert made.status_code == 202, made.text
    assert (made.json()["policy"], made.json()["status"]) == ("lin_ts", "waiting")

    def ended() -> bool:
        return bool(client.get(path, params=params).json()["status"] not in ("waiting", "running"))

    until(ended, "a process finds it", within_s=90)
    found = client.get(path, params=params).json()
    assert (found["status"], found["done"], found["total"]) == ("done", 400, 400), found
    result = found["result"]
    assert (result["events"], result["held_out"], result["kind"]) == (400, 300, "lin_ts")
    pair = next(one for one in result["importance"] if len(one["fields"]) == 2)
    assert (pair["fields"], pair["context"]) == (["taste", pair["item"]], "taste")
    assert pair["loss"]["low"] > 0
    assert client.get("/evaluations", params=params).json() == {"evaluations": []}
    for method, where in (("GET", ""), ("POST", "/cancel")):
        assert client.request(method, f"/evaluations/{found['id']}{where}", params=params).status_code == 404
    client.post("/policies", params=params, json={"kind": "embedding_mlp"}).raise_for_status()
    refused = client.post("/policies/embedding_mlp/explanation", params=params)
    assert (refused.status_code, refused.json()["code"]) == (409, "learns_in_batches")
    assert client.post("/policies/nobody/explanation", params=params).json()["code"] == "unknown_policy"


def test_a_client_may_not_read_explanations(settings: Settings) -> None:
    keyed = Settings(redis_url=settings.redis_url, admin_keys="the-admin", client_keys="a-client")
    decision = f"d-{uuid4().hex}"
    with Worker(keyed, learner=False) as url, httpx.Client(base_url=url, verify=False) as client:
        client.headers["X-API-Key"] = "a-client"
        asked = {"decision_id": decision, "candidates": ["a", "b"]}
        client.post("/recommend", json=asked).raise_for_status()
        assert client.get(f"/decisions/{decision}").status_code == 200
        refused = [client.get(f"/decisions/{decision}?explain=true"), client.post("/try", json={})]
        assert [reply.status_code for reply in refused] == [403, 403]
        client.headers["X-API-Key"] = "the-admin"
        assert explanation(client, decision)["n"] == 2
        assert tried(client, candidates=["a"])["policies"]


@pytest.mark.anyio
async def test_one_explanation_is_made_at_a_time_and_a_long_one_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    none: Any = None  # nothing of these is asked
    explainer = module.Explainer(none, none, none, none, Settings())
    release = threading.Event()
    given_up: list[threading.Event] = []
    running: list[str] = []

    async def long(stop: threading.Event) -> None:
        given_up.append(stop)
        running.append("long")
        await asyncio.to_thread(release.wait, 60)
        running.remove("long")

    async def quick(_: threading.Event) -> list[str]:
        return [*running]

    monkeypatch.setattr(module, "WITHIN_S", 0.05)
    with pytest.raises(ExplainerBusy, match="not made within") as refused:
        await explainer._alone(long)
    assert refused.value.retry_after == 2
    assert given_up[0].is_set(), "its thread is told"
    with pytest.raises(ExplainerBusy):
        await explainer._alone(quick)
    monkeypatch.setattr(module, "WITHIN_S", 60)
    release.set()
    assert await explainer._alone(quick) == [], "it began when the other had ended"
    assert explainer._tasks == set()
    await explainer.close()
