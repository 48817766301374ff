"""The keeper of shadow estimates on a real Redis: what is judged counts once, and not before its time."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import orjson
import pytest
from redis.asyncio import Redis

from service.learn.log_fold import CountedElsewhere
from service.learn.shadows import ShadowKeeper, drawn, regime_of, shadows_of
from service.loop import LoopSettings
from service.settings import Settings
from service.store import policy_store, shadow_store
from service.store.decisions import join_feedback
from service.store.group_commit import GroupCommit
from service.store.keys import Keys
from service.store.loop_rows import read_rows, write_rows
from service.store.shadow_store import LEASE
from tests.builders import decision_of, experiment_of, loop_of, policy_of, store_decisions, store_loop
from tests.learn.running import opened as runner_of

pytestmark = pytest.mark.anyio

SETTINGS = LoopSettings(wait_time=60)
CANDIDATES: list[tuple[str, dict[str, int]]] = [("a", {}), ("b", {})]


class Shop:
    """A loop that `old` serves, with `new` in the shadow."""

    def __init__(self, redis: Redis, keys: Keys) -> None:
        self.redis, self.keys = redis, keys
        self.commit = GroupCommit(redis)

    async def show(self, *names: str, items: str = "a") -> None:
        decisions = [
            decision_of(
                name,
                items,
                loop=self.keys.loop,
                at=time.time() + 0.005,  # events say it in whole milliseconds
                catalogue=0,
                n=2,
                candidates=CANDIDATES,
                exploration_floor=0.1,
            )
            for name in names
        ]
        await store_decisions(self.redis, self.keys, *decisions)

    async def reward(self, *names: str, reward: float = 1.0) -> None:
        for name in names:
            await join_feedback(
                self.commit, self.keys, SETTINGS, decision_id=name, item="a", reward=reward, feedback_id=""
            )

    async def keeper(self) -> ShadowKeeper:
        """Open one, as if the one before had died."""
        await self.redis.delete(self.keys.lease(LEASE))
        found = ShadowKeeper(self.redis, self.keys)
        assert await found.open()
        await found._at_rest()
        return found

    async def judged(self, keeper: ShadowKeeper) -> int:
        """Let it read all; return how many decisions were counted."""
        for _ in range(2):  # what is settled is seen at the end of one pass, and counted in the next
            await keeper.drain()
        found = await shadow_store.read_estimates(self.redis, self.keys)
        return int(found["new"]["decisions"])


@pytest.fixture
async def shop(quiet_redis: Redis) -> Shop:
    keys = await store_loop(quiet_redis, replace(loop_of("shop", wait_time=60), traffic={"old": 1.0}))
    settings = Settings(redis_url="redis://unused", publish_period_ms=20)
    for name in ("old", "new"):
        await policy_store.create_policy(quiet_redis, keys, policy_of("random", name=name))
    found = Shop(quiet_redis, keys)
    await found.show("first")
    await found.reward("first")
    await (await runner_of(quiet_redis, keys, settings, "new")).drain()
    return found


async def test_a_reward_waits_for_the_decisions_before_it(shop: Shop) -> None:
    keeper = await shop.keeper()
    await shop.show("d1", "d2")
    await shop.reward("d2")
    assert await shop.judged(keeper) == 0, "d1 may get nothing yet, and it was made before"
    await shop.reward("d1", reward=0.0)
    assert await shop.judged(keeper) == 2
    [row] = (await shadow_store.read_state(shop.redis, shop.keys))[1]["new"]["rows"]
    assert row["sums"][:3] == [1.0, 2.0, 1.0], "rewards, weights (random would have drawn it as often), their products"


async def test_who_dies_leaves_out_what_waited_and_counts_nothing_twice(shop: Shop) -> None:
    keeper = await shop.keeper()
    await shop.show("d1", "d2")
    await shop.reward("d1", "d2")
    assert await shop.judged(keeper) == 2
    await shop.show("d3", "d4")
    await shop.reward("d4")
    await keeper.drain()
    second = await shop.keeper()
    await shop.reward("d3")
    assert await shop.judged(second) == 2, "d4 was judged in memory; to count d3 alone would favour what came late"
    await shop.show("d5")
    await shop.reward("d5")
    assert await shop.judged(second) == 3
    await shop.show("d6")
    await shop.reward("d6")
    with pytest.raises(CountedElsewhere):
        await keeper.drain()
    assert await shop.judged(second) == 4


async def test_what_was_decided_before_its_version_was_known_is_not_judged(shop: Shop) -> None:
    await shop.show("d1")
    await asyncio.sleep(0.01)
    keeper = await shop.keeper()
    await shop.reward("d1")
    assert await shop.judged(keeper) == 0


async def test_slates_and_what_the_ledger_lost_are_counted_as_left_out(shop: Shop) -> None:
    keeper = await shop.keeper()
    await shop.show("d1", items="ab")
    await shop.show("d2")
    await shop.reward("d1", "d2")
    await shop.redis.delete(shop.keys.partition().decision("d2"))
    assert await shop.judged(keeper) == 0
    assert (await shadow_store.read_estimates(shop.redis, shop.keys))["new"]["left_out"] == {"slates": 1, "gone": 1}


async def test_other_traffic_begins_anew_and_who_serves_is_no_shadow(shop: Shop) -> None:
    keeper = await shop.keeper()
    await shop.show("d1")
    await shop.reward("d1")
    assert await shop.judged(keeper) == 1
    await shop.redis.hset(shop.keys.record, "traffic", orjson.dumps({}))
    await keeper._anchor()
    assert await shop.judged(keeper) == 0
    found = await shadow_store.read_estimates(shop.redis, shop.keys)
    assert found["new"]["why"] == "it, or what serves beside it, was changed"
    assert set(found) == {"new", "old"}
    await shop.redis.hset(shop.keys.record, "traffic", orjson.dumps({"new": 1.0}))
    await keeper._anchor()
    await keeper.drain()
    assert set(await shadow_store.read_estimates(shop.redis, shop.keys)) == {"old"}


async def test_it_goes_with_the_loop_s_backup(shop: Shop) -> None:
    keeper = await shop.keeper()
    await shop.show("d1")
    await shop.reward("d1")
    assert await shop.judged(keeper) == 1
    copy = Keys("copy", "copy-id")
    async for row in read_rows(shop.redis, shop.keys):
        await write_rows(shop.redis, copy, [row], later_ms=0)
    assert await shadow_store.read_state(shop.redis, copy) == await shadow_store.read_state(shop.redis, shop.keys)


def test_arms_of_an_experiment_serve() -> None:
    running = replace(loop_of(), traffic={"a": 1.0}, experiments={"x": experiment_of({"control": 0.5, "b": 0.5})})
    assert shadows_of(running, ["a", "b", "c"], at=5_000.0) == ["c"]


def test_an_alarm_begins_anew_and_a_version_does_not() -> None:
    loop, policy = loop_of(), policy_of()
    before = regime_of(loop, policy)
    assert regime_of(loop, replace(policy, version=7, events=99)) == before
    alarm = {"number": 1, "reaction": "reset"}
    assert regime_of(loop, replace(policy, alarms=[alarm])) != before
    assert regime_of(loop, replace(policy, alarms=[alarm | {"reaction": "none"}])) == before
    assert regime_of(replace(loop, pins={policy.name: 3}), policy) != before


def test_one_in_so_many_is_drawn() -> None:
    assert 180 < sum(drawn(f"d{number}", 5) for number in range(1000)) < 220
    assert all(drawn(f"d{number}", 1) for number in range(10))
