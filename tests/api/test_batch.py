"""`POST /recommend/batch`: each request is answered as `/recommend` would answer it, whatever becomes of the others."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, cast

import httpx
import orjson
import pytest
from redis.asyncio import Redis

from service.api.keys import ANYBODY, Key
from service.api.metrics import Metrics
from service.api.replies import HotRoutes
from service.api.schemas import RecommendBatch
from service.api.token_bucket import TokenBucket
from service.serve import turns
from service.serve.edges import EdgeKeeper
from service.serve.feedback import FeedbackJoiner
from service.serve.misfit_counter import MisfitCounter
from service.serve.recommend import Recommender
from service.serve.release_counter import ReleaseCounter
from service.settings import Settings
from service.store.connection import script
from service.store.decisions import DecisionWriter
from service.store.group_commit import Call, GroupCommit
from tests.decide.builders import active_of
from tests.serve.stand_ins import Follows, NoActivity, NoLimits

Make = Callable[..., str]


class Spied(GroupCommit):
    """Notes what is sent at once."""

    def __init__(self, redis: Redis) -> None:
        super().__init__(redis)
        self.sent: list[list[Any]] = []

    async def _send(self, batch: Sequence[Call], *, known: bool) -> list[Any]:
        self.sent.append([call.script for call in batch])
        return await super()._send(batch, known=known)


def routes_of(redis: Redis, commit: GroupCommit) -> HotRoutes:
    follower, keeper = Follows(active_of(5, name="shop")), NoActivity()
    writer = DecisionWriter(commit, buffer=10)
    asks = Recommender(follower, writer, MisfitCounter(redis), keeper, NoLimits(), ReleaseCounter(redis), Settings())
    return HotRoutes(asks, cast(FeedbackJoiner, None), keeper, cast(EdgeKeeper, None), Metrics())


def ask(client: httpx.Client, *requests: Any, **more: Any) -> list[dict[str, Any]]:
    reply = client.post("/recommend/batch", json={"requests": requests, **more})
    assert reply.status_code == 200, reply.text
    results: list[dict[str, Any]] = reply.json()["results"]
    assert len(results) == len(requests)
    return results


@pytest.mark.anyio
async def test_a_batch_is_stored_in_one_flush_and_counts_as_its_requests(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "LONGEST_S", 60.0)  # however slow this machine is
    commit = Spied(redis)
    routes = routes_of(redis, commit)
    batch = RecommendBatch(requests=[{"user_id": f"u{n}", "k": 2} for n in range(100)], loop="shop")
    async with asyncio.timeout(30):
        await routes.recommend_batch(batch, loop=None, key=ANYBODY, request_id="r")  # the server learns the script
        commit.sent = []
        limited = Key("slow", "client", bucket=TokenBucket(10.0, 100))
        assert limited.bucket is not None
        assert limited.bucket.take(0.0) == 0  # as the guard does
        _, body = await routes.recommend_batch(batch, loop=None, key=limited, request_id="r")
        assert commit.sent == [[script("store_decision")] * 100]
        results = orjson.loads(body)["results"]
        assert len({one["decision_id"] for one in results}) == 100
        assert limited.bucket.take(0.0) == pytest.approx(0.1)
        await routes.recommend_batch(batch, loop=None, key=limited, request_id="r")
        assert limited.bucket.take(0.0) == pytest.approx(10.0), "what it owes is paid back first"


def test_each_is_answered_by_itself(client: httpx.Client, make_loop: Make) -> None:
    loop = make_loop(items=10)
    good: dict[str, Any] = {"user_id": "u", "k": 3, "exclude": ["p001"], "decision_id": f"{loop}-mine"}
    bad: list[tuple[Any, str, str]] = [
        ({"k": 0}, "invalid_request", "k"),
        ({"candidates": []}, "no_candidates", "candidates"),
        ({"loop": "nowhere"}, "unknown_loop", ""),
        ([], "invalid_request", "requests"),
        (None, "invalid_request", "requests"),
        ({"candidates": ["a", "a"]}, "invalid_request", "candidates"),
    ]
    results = ask(client, good, *(one for one, _, _ in bad), good, {}, loop=loop)
    first, last = results[0], results[-2]
    assert first == last == client.post("/recommend", json={**good, "loop": loop}).json()
    assert len(first["items"]) == 3
    assert client.get(f"/decisions/{loop}-mine", params={"loop": loop}).json()["status"] == "pending"
    assert results[-1]["loop"] == loop
    assert results[-1]["decision_id"] != first["decision_id"]
    for (sent, code, field), found in zip(bad, results[1:-2], strict=True):
        assert found["code"] == code
        assert not field or found["errors"][0]["field"] == field
        if isinstance(sent, dict):
            alone = client.post("/recommend", json={"loop": loop, **sent}, headers={"X-Request-ID": "same"}).json()
            assert {**found, "request_id": "same"} == alone


@pytest.mark.parametrize("requests", [[], [{}] * 101, {}, None, "x"])
def test_a_batch_holds_1_to_100_requests(client: httpx.Client, requests: Any) -> None:
    refused = client.post("/recommend/batch", json={"requests": requests})
    assert (refused.status_code, refused.json()["errors"][0]["field"]) == (422, "requests")


def test_a_defect_of_one_is_not_that_of_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    async def play() -> list[dict[str, Any]]:
        async def decide(asked: Any, loop: str | None, key: Key) -> bytes:
            if asked.user_id == "broken":
                raise RuntimeError("a defect")
            return b'{"decision_id":"d"}'

        none: Any = None
        routes = HotRoutes(none, none, NoActivity(), none, Metrics())
        monkeypatch.setattr(routes, "_decide", decide)
        batch = RecommendBatch(requests=[{"user_id": "broken"}, {}])
        _, body = await routes.recommend_batch(batch, loop=None, key=ANYBODY, request_id="r")
        results: list[dict[str, Any]] = orjson.loads(body)["results"]
        return results

    broken, good = asyncio.run(play())
    assert (broken["code"], broken["status"], broken["request_id"]) == ("internal", 500, "r")
    assert good == {"decision_id": "d"}
