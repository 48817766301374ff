"""Redis loses its data under a worker that serves: nothing is acknowledged, and everybody is told."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest
from redis import Redis

from service.run.embedded import EmbeddedRedis
from service.settings import Settings
from service.store.keys import STORE
from tests.conftest import Worker
from tests.waiting import until


class Served(NamedTuple):
    """A worker on a Redis of its own, with its default loop used once."""

    client: httpx.Client
    redis: Redis
    decision: str
    settings: Settings


@pytest.fixture
def served(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Served]:
    with EmbeddedRedis(tmp_path / "redis") as embedded:
        settings = Settings(redis_url=embedded.url)
        with (
            Worker(settings, learner=False, hot_path=request.param) as url,
            httpx.Client(base_url=url, timeout=30) as client,
            Redis.from_url(embedded.url) as redis,
        ):
            decision = client.post("/recommend", json={"candidates": ["a", "b"]}).json()
            assert decision["degraded"] is False
            assert client.get("/readyz").status_code == 200
            yield Served(client, redis, decision["decision_id"], settings)


def flush(served: Served) -> None:
    served.redis.flushall()


def lose_the_identity(served: Served) -> None:
    served.redis.delete(STORE)


def replace_by_other_data(served: Served) -> None:
    """As a restart on another volume does, where another worker starts first."""
    served.redis.flushall()
    with Worker(served.settings, learner=False) as url:
        assert httpx.post(f"{url}/recommend", json={"candidates": ["a"]}).json()["degraded"] is False


@pytest.mark.parametrize(
    ("served", "lose"),
    [(True, flush), (False, flush), (True, lose_the_identity), (True, replace_by_other_data)],
    indirect=["served"],
    ids=["flushed", "flushed, ordinary routes", "without its identity", "replaced"],
)
def test_a_store_that_lost_its_data_is_told_and_takes_nothing(served: Served, lose: Callable[[Served], None]) -> None:
    client, decision = served.client, served.decision
    lose(served)
    until(lambda: client.get("/readyz").status_code == 503, "it is no longer ready")
    assert client.get("/readyz").json()["code"] == "store_unavailable"
    assert client.head("/readyz").status_code == 503
    assert client.get("/healthz").status_code == 200
    assert client.get("/status").json()["rung"] == "store_lost"
    asked = client.post("/recommend", json={"candidates": ["a", "b"], "decision_id": "mine"})
    assert (asked.status_code, asked.json()["degraded"]) == (200, True)
    sent = {"decision_id": decision, "reward": 1}
    for body in (sent, {"feedback": [sent]}, {**sent, "decision_id": "mine"}):
        reply = client.post("/feedback", json=body)
        assert (reply.status_code, reply.json()["code"], reply.headers["retry-after"]) == (
            503,
            "store_unavailable",
            "1",
        )
    assert not list(served.redis.scan_iter("*decision:mine"))
    assert client.get("/status").json()["this_worker"]["degraded"] >= 1
