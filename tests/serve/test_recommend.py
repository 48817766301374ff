"""The use case of `/recommend`, without HTTP and without Redis."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast
from uuid import uuid4

import pytest
from redis.asyncio import Redis

from service.errors import InvalidRequest, NoCandidates, NotFound, StoreUnavailable
from service.records import Decision
from service.serve.activity import ActivityKeeper
from service.serve.misfit_counter import MisfitCounter
from service.serve.recommend import Recommender
from service.serve.release_counter import ReleaseCounter
from service.settings import Settings
from service.store import release_store
from service.store.group_commit import GroupCommit
from service.store.keys import Keys
from tests.decide.builders import active_of
from tests.serve.stand_ins import Follows, NoActivity, NoLimits, NoRedis, Writes

pytestmark = pytest.mark.anyio
SMALL = Settings(max_candidates=3, max_k=2)


def recommender(redis: Redis, writes: Writes, **settings: Any) -> Recommender:
    active = active_of(5, name="shop", **settings)
    return Recommender(
        Follows(active), writes, MisfitCounter(redis), NoActivity(), NoLimits(), ReleaseCounter(redis), SMALL
    )


async def test_a_decision_is_stored_before_it_is_answered(redis: Redis) -> None:
    writes = Writes()
    decision, degraded = await recommender(redis, writes, wait_time=7).recommend(
        "shop", user_id="u", context={"a": 1}, exclude=["p0"], k=2
    )
    [pending] = writes.pending.values()
    assert pending.decision is decision
    assert (pending.keys.loop, pending.keys.id, pending.wait_ms) == ("shop", "1", 7000)
    assert pending.rows.shape[0] == len(decision.items) == 2
    assert (decision.user_id, decision.context, decision.exclude, degraded) == ("u", {"a": 1}, ["p0"], False)
    assert decision.decision_id.endswith(".0.shop")


async def test_a_repeated_id_gets_the_stored_decision_back(redis: Redis) -> None:
    writes = Writes()
    asks = recommender(redis, writes)
    first, _ = await asks.recommend("shop", decision_id="mine", context={"a": 1})
    again, _ = await asks.recommend("shop", decision_id="mine", context={"b": 2}, k=2)
    assert again is first
    assert len(writes.pending) == 1


async def test_it_says_when_the_store_does_not_answer(redis: Redis) -> None:
    decision, degraded = await recommender(redis, Writes(degraded=True)).recommend("shop")
    assert isinstance(decision, Decision)
    assert degraded


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({"candidates": [("a", None)] * 2}, "candidates"),
        ({"candidates": [("a", None), ("a", {"x": 1})]}, "candidates"),
        ({"candidates": [(f"c{i}", None) for i in range(4)]}, "candidates"),
        ({"candidates": []}, "candidates"),
        ({"exclude": [f"p{i}" for i in range(5)]}, "candidates"),
        ({"k": 3}, "k"),
        ({"decision_id": "01JBX8E9Z3T4V5W6X7Y8Z9A0B1.0.home"}, "decision_id"),
    ],
)
async def test_what_is_refused_is_not_stored(redis: Redis, asked: dict[str, Any], field: str) -> None:
    writes = Writes()
    with pytest.raises(InvalidRequest) as refused:
        await recommender(redis, writes).recommend("shop", **asked)
    assert refused.value.extra["errors"][0]["field"] == field
    assert isinstance(refused.value, NoCandidates) == (asked.get("candidates") == [] or "exclude" in asked)
    assert writes.pending == {}


async def test_an_unknown_loop_is_not_found(redis: Redis) -> None:
    with pytest.raises(NotFound):
        await recommender(redis, Writes()).recommend("home")


@pytest.mark.parametrize("what", ["activity", "edges"])
async def test_without_redis_it_decides_without_what_is_known_of_the_user(redis: Redis, what: str) -> None:
    active = replace(active_of(5, name="shop"), activity=what == "activity", edges=what == "edges")
    keeper = ActivityKeeper(Follows(active), redis, cast(GroupCommit, NoRedis()))
    asks = Recommender(
        Follows(active), Writes(), MisfitCounter(redis), keeper, NoLimits(), ReleaseCounter(redis), SMALL
    )
    decision, degraded = await asks.recommend("shop", user_id="u", context={"a": 1})
    assert (decision.context, degraded) == ({"a": 1}, True)
    _, degraded = await asks.recommend("shop", context={"a": 1})  # nobody's state is asked for
    assert not degraded


@pytest.mark.parametrize("name", ["@user", "@user.last", "@graph", "@graph.took"])
async def test_a_name_of_what_is_known_is_not_for_clients(redis: Redis, name: str) -> None:
    with pytest.raises(InvalidRequest, match=f"^context.{name}: "):
        await recommender(redis, Writes()).recommend("shop", context={"@users": 1, "@graphs": 1, name: 1})


async def test_misfits_are_counted_in_the_loop(redis: Redis) -> None:
    counter = MisfitCounter(redis)
    asks = Recommender(
        Follows(active_of(5, name="shop")), Writes(), counter, NoActivity(), NoLimits(), ReleaseCounter(redis), SMALL
    )
    for _ in range(2):
        await asks.recommend("shop", context={"a": "x" * 300})
    assert dict(counter.of(Keys("shop", "1")).counts) == {("context", "a", "overlong"): 2}


async def test_decisions_of_a_policy_that_is_released_are_counted_and_wait_for_redis(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    counter = ReleaseCounter(redis)
    of_loop = active_of(5, name="shop")
    release: dict[str, Any] = {"policy": of_loop.policy_for("u").policy, "id": uuid4().hex, "latency_ms": 0.0}
    active, keys = replace(of_loop, release=release), Keys(of_loop.name, of_loop.id)
    asks = Recommender(
        Follows(active), Writes(degraded=True), MisfitCounter(redis), NoActivity(), NoLimits(), counter, SMALL
    )
    await asks.recommend("shop")
    with monkeypatch.context() as gone:
        gone.setattr(release_store, "count_served", NoRedis().run)
        with pytest.raises(StoreUnavailable):
            await counter.flush()
    await asks.recommend("shop")
    await counter.flush()
    served = await release_store.read_served(redis, keys, release["policy"], release["id"])
    assert served == {"decisions": 2, "slow": 2, "degraded": 2}
    await release_store.forget_served(redis, keys, release["policy"])
