"""Records of a newer version, and garbled ones: serving goes on, and whoever asks is told, never by a 500."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import orjson
import pytest
from redis import Redis

from service.settings import Settings
from service.store import codec
from service.store.codec import FORMAT, pack, unpack
from tests.conftest import Worker
from tests.waiting import until

NEWER = FORMAT + 1


@pytest.fixture
def redis(quiet_redis_url: str) -> Iterator[Redis]:
    with Redis.from_url(quiet_redis_url) as redis:
        redis.flushall()
        yield redis


@pytest.fixture
def client(redis: Redis, quiet_redis_url: str) -> Iterator[httpx.Client]:
    """A service whose policy `adaptive` has published at least one version."""
    with (
        Worker(Settings(redis_url=quiet_redis_url, publish_period_ms=20), learner=True) as url,
        httpx.Client(base_url=url, timeout=30) as client,
    ):
        decision = recommend(client)
        assert client.post("/feedback", json={"decision_id": decision["decision_id"], "reward": 1}).status_code == 202
        until(lambda: recommend(client)["version"] == 1, "version 1 serves")
        yield client


def recommend(client: httpx.Client, **body: Any) -> Any:
    reply = client.post("/recommend", json={"candidates": ["a", "b"], **body})
    assert reply.status_code == 200, reply.text
    return reply.json()


def key(redis: Redis, pattern: str) -> str:
    [found] = redis.keys(pattern)
    return str(found.decode())


def told(reply: httpx.Response, code: str, what: str) -> None:
    """Assert that a reply is a problem that says what is wrong."""
    assert reply.headers["content-type"] == "application/problem+json"
    assert (reply.status_code, reply.json()["code"]) == (409, code), reply.text
    assert what in reply.json()["detail"]


def test_a_snapshot_of_a_newer_version_is_refused_and_the_old_one_stays(
    client: httpx.Client, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshots = key(redis, "rebound:{default}:*:snapshots:adaptive")
    arrays = unpack(redis.hget(snapshots, "1"))
    with monkeypatch.context() as patch:
        patch.setattr(codec, "FORMAT", NEWER)
        newer = pack(arrays)
    redis.hset(snapshots, "99", newer)
    redis.hset(key(redis, "rebound:{default}:*:policy:adaptive"), "version", 99)
    redis.publish("rebound:changes", "default")
    until(lambda: client.get("/status").json()["this_worker"]["refused_snapshots"], "it is refused and counted")
    assert recommend(client)["version"] == 1
    told(client.post("/policies/adaptive/rollback", json={"version": 99}), "bad_snapshot", "start the newer version")
    assert redis.hget(snapshots, "99") == newer, "it is for the newer version to serve"


def test_a_decision_of_a_newer_version_is_told_and_its_feedback_taken(client: httpx.Client, redis: Redis) -> None:
    recommend(client, decision_id="d")
    stored = key(redis, "rebound:{default:0}:*:decision:d")
    record = orjson.loads(redis.hget(stored, "record"))
    redis.hset(stored, "record", orjson.dumps({**record, "v": NEWER}))
    again = client.post("/recommend", json={"decision_id": "d", "candidates": ["a", "b"]})
    told(again, "newer_format", "decision 'd' has format 3")
    assert client.post("/feedback", json={"decision_id": "d", "reward": 1}).status_code == 202


@pytest.mark.parametrize(
    ("change", "code", "what"),
    [
        ({"v": NEWER}, "newer_format", "policy 'adaptive' has format 3"),
        ({"params": "{"}, "unreadable", "DELETE /policies"),
    ],
)
def test_a_policy_that_cannot_be_read_serves_on(
    client: httpx.Client, redis: Redis, change: dict[str, Any], code: str, what: str
) -> None:
    redis.hset(key(redis, "rebound:{default}:*:policy:adaptive"), mapping=change)
    redis.publish("rebound:changes", "default")
    for reply in (
        client.get("/policies"),
        client.get("/policies/adaptive"),
        client.post("/policies/adaptive/activate"),
        client.post("/policies/adaptive/rollback", json={"version": 1}),
        client.post("/policies/adaptive/train"),
    ):
        told(reply, code, what)
    assert recommend(client)["version"] >= 1
    assert what in client.get("/status").json()["loops"]["default"]["problem"]
    made = client.post("/policies", json={"name": "other", "kind": "random"})
    assert made.status_code == 201
    assert client.put("/traffic", json={"other": 1}).status_code == 200
    assert client.delete("/policies/adaptive").status_code == 204
    assert client.get("/policies").status_code == 200


@pytest.mark.parametrize(
    ("change", "code", "what"),
    [
        ({"v": NEWER}, "newer_format", "loop 'default' has format 3"),
        ({"settings": '{"reward_range":[1,5],"default_reward":0}'}, "unreadable", "DELETE /loops/default"),
        ({"d": "many"}, "unreadable", "DELETE /loops/default"),
    ],
)
def test_a_loop_that_cannot_be_read_serves_on_and_can_be_deleted(
    client: httpx.Client, redis: Redis, change: dict[str, Any], code: str, what: str
) -> None:
    redis.hset("rebound:{default}:loop", mapping=change)
    redis.publish("rebound:changes", "default")
    for reply in (
        client.get("/loops/default"),
        client.put("/loops/default", json={"wait_time": 3}),
        client.get("/policies"),
        client.post("/policies", json={"name": "other", "kind": "random"}),
        client.get("/traffic"),
        client.put("/traffic", json={"adaptive": 1}),
        client.delete("/items/a"),
        client.get("/decisions/d"),
    ):
        told(reply, code, what)
    assert recommend(client)["version"] == 1
    assert what in client.get("/status").json()["loops"]["default"]["problem"]
    assert client.get("/loops").json()["loops"] == ["default"]
    assert client.delete("/loops/default").status_code == 204
    assert client.post("/recommend", json={"candidates": ["a"]}).status_code == 404
    assert client.put("/loops/default", json={}).status_code == 201
    assert recommend(client)["version"] == 0
