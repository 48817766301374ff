"""Limits in Redis: what is counted, and that no budget is overspent, whoever dies between two steps."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import pytest
from redis.asyncio import Redis

from service.limits import Budget, Caps
from service.records import LoopRecord
from service.store import limits, loop_rows
from service.store.activity import Sent, take_activity
from service.store.connection import script
from service.store.decisions import DecisionWriter, Overtaken, PendingDecision, join_feedback
from service.store.group_commit import GroupCommit
from service.store.keys import Keys
from service.store.limits import Counted, Held, Limits, bytes_at_most, count_capped_users, counted_of, read_counted
from service.store.users import erase_activity
from tests.builders import D, decision_of
from tests.serve.stand_ins import NoRedis

pytestmark = pytest.mark.anyio
ONCE = Caps.model_validate({"impressions": [{"most": 1, "within": 3600.0}]})


class Shop:
    """Stores decisions of one user."""

    def __init__(self, redis: Redis, keys: Keys, caps: Caps | None = None, budgets: Mapping[str, str] | None = None):
        self.commit, self.keys, self.caps, self.budgets = GroupCommit(redis), keys, caps, budgets or {}
        self.writer = DecisionWriter(self.commit, buffer=10)

    async def show(
        self, name: str, items: Collection[str] = "a", *, user: str | None = "u", **more: Any
    ) -> Overtaken | None:
        """Store a decision; return what it met."""
        made = decision_of(name, [*items], user_id=user)
        spends = {item: self.budgets[item] for item in items if item in self.budgets}
        counted = Limits(self.caps, user or "", spends, **more)
        rows = np.zeros((len(items), D), np.float32)
        try:
            await self.writer.append(PendingDecision(self.keys, made, rows, [{}] * len(items), 60_000, limits=counted))
        except Overtaken as met:
            return met
        return None


async def test_impressions_are_counted_when_a_decision_is_stored(redis: Redis, keys: Keys) -> None:
    caps = Caps.model_validate({"impressions": [{"most": 2, "within": 3600.0}, {"most": 1, "within": 1.0}]})
    shop = Shop(redis, keys, caps)
    assert await shop.show("1", ["a", "b ö"]) is None
    assert await shop.show("1", ["a", "b ö"]) is None, "a repeated id counts once"
    met = await shop.show("2", ["c", "a"])
    assert met is not None
    assert (met.shown, met.spent, met.alone) == (["a"], [], False)
    found = await read_counted(shop.commit, keys, "u", caps)
    assert {item.decode(): len(times.split()) for item, times in found.shown.items()} == {"a": 1, "b ö": 1}
    assert sorted(found.is_capped(caps)) == ["a", "b ö"]
    assert found._replace(at=found.at + 1000).is_capped(caps) == [], "a second later"
    assert await shop.show("3", user="v") is None, "another user"


def test_impressions_of_before_count_no_more() -> None:
    caps = Caps.model_validate({"impressions": [{"most": 2, "within": 10.0}]})
    counted = Counted(20_000, {b"a": b"10000 15000", b"b": b"1 10001 20000", b"c": b"20000"}, [])
    assert counted.is_capped(caps) == ["b"]


async def test_of_many_at_once_one_is_shown_the_last_impression(redis: Redis, keys: Keys) -> None:
    shops = [Shop(redis, keys, ONCE) for _ in range(4)]
    met = await asyncio.gather(*(shops[number % 4].show(f"{number}") for number in range(40)))
    assert met.count(None) == 1


async def test_counters_are_bounded_and_have_an_end(redis: Redis, keys: Keys, loop: LoopRecord) -> None:
    taken = {"activity": ["buy"], "within": 60.0}
    caps = Caps.model_validate({"impressions": [{"most": 1, "within": 30.0}], "taken": taken, "kept": 5})
    shop, long = Shop(redis, keys, caps), "\U0001f600" * 127
    for number in range(10):
        assert await shop.show(f"{number}", [f"{number}{long}"]) is None
    settings = loop.settings.model_copy(update={"caps": caps})
    bought = [Sent("u", f"{number}{long}", "buy" if number else "view", 1000 + number) for number in range(10)]
    await take_activity(shop.commit, keys, settings, {"u": bought})
    shown, took = await counted_of(redis, keys, "u")
    assert [item[0] for _, item in shown] == list("6789"), "a quarter of them went when there were too many"
    assert [(at, item[0]) for at, item in took] == [(1000 + number, f"{number}") for number in range(5, 10)]
    part = keys.partition()
    kept = sum(len(item) + len(times) for item, times in (await redis.hgetall(part.shown("u"))).items())
    kept += sum(8 + len(item) for item in await redis.zrange(part.taken("u"), 0, -1))
    assert kept <= bytes_at_most(caps)
    for key in (part.shown("u"), part.taken("u")):
        assert 30_000 < await redis.pttl(key) <= 60_000
    assert await count_capped_users(redis, keys) == 1
    assert (await read_counted(shop.commit, keys, "u", caps)).taken == [], "that was long ago"
    await erase_activity(redis, keys, "e", "u")
    assert await counted_of(redis, keys, "u") == ([], [])
    assert await count_capped_users(redis, keys) == 0


async def test_what_a_report_takes(redis: Redis, keys: Keys, loop: LoopRecord) -> None:
    caps = Caps.model_validate({"taken": {"reward_above": 0.5, "within": 60.0}})
    shop = Shop(redis, keys, caps)

    async def report(name: str, reward: float, item: str = "") -> str:
        told = {"decision_id": name, "item": item, "reward": reward, "feedback_id": ""}
        return await join_feedback(shop.commit, keys, loop.settings, early_ms=1000, **told)  # type: ignore[arg-type]

    assert [await report("1", 1.0, "b"), await report("2", 0.5), await report("2", 1.0, "z")] == ["early"] * 3
    await shop.show("1", "ab")
    await shop.show("2", "cd")
    assert (await read_counted(shop.commit, keys, "u", caps)).taken == ["b"], "by a report that came before"
    assert await limits.read_owner(shop.commit, keys, "2") == ("u", "c")
    await limits.mark_taken(shop.commit, keys, "u", "c", caps)
    assert sorted((await read_counted(shop.commit, keys, "u", caps)).taken) == ["b", "c"]
    assert await limits.read_owner(shop.commit, keys, "nothing") is None


async def test_a_backup_holds_what_is_counted(redis: Redis, keys: Keys) -> None:
    shop, other = Shop(redis, keys, ONCE), Keys(keys.loop, keys.id + "-restored")
    await shop.show("1")
    await loop_rows.write_rows(redis, other, [row async for row in loop_rows.read_rows(redis, keys)], later_ms=0)
    assert await counted_of(redis, other, "u") == await counted_of(redis, keys, "u") != ([], [])
    for key in [key async for key in redis.scan_iter(match=other.partition().prefix + "*")]:
        await redis.delete(key)


async def test_without_redis_caps_wait_and_budgets_are_not_spent(redis: Redis, keys: Keys) -> None:
    twice = Caps.model_validate({"impressions": [{"most": 2, "within": 3600.0}]})
    shop = Shop(redis, keys, twice, {"b": "total"})
    assert await shop.show("1") is None
    shop.writer._commit = NoRedis()  # type: ignore[assignment]
    assert await shop.show("2") is None, "answered from memory"
    met = await shop.show("3", "b")
    assert met is not None
    assert ([*met.spent], met.alone) == (["b"], True), "nobody knows what is left"
    shop.writer._commit = shop.commit
    await shop.writer.close()
    assert [item for _, item in (await counted_of(redis, keys, "u"))[0]] == ["a", "a"], "it was shown, so it counts"


# ---- budgets


async def fetch(redis: Redis, keys: Keys, budgets: Mapping[str, Budget], *, wanted: bool = True) -> dict[str, Held]:
    """Do what a worker does in one look."""
    held = await limits.hold_budgets(redis, keys, budgets)
    grants = await limits.grant_budgets(redis, keys, budgets, held, wanted=wanted)
    return await limits.hold_budgets(redis, keys, budgets, grants)


@pytest.mark.parametrize("per", ["total", "day"])
async def test_portions_shrink_and_nothing_stays_unused(redis: Redis, keys: Keys, per: str) -> None:
    budgets = {"a": Budget.model_validate({"impressions": 20, "per": per})}
    shop = Shop(redis, keys, None, {"a": per})
    met = await shop.show("first", user=None)
    assert met is not None
    assert met.spent == ["a"], "the partition has no portion"
    portions, shown = [], 0
    while (left := (await fetch(redis, keys, budgets))["a"].left) > 0:
        portions.append(left)
        while await shop.show(f"{shown}", user=None) is None:
            shown += 1
    assert portions == [10, 5, 3, 1, 1]
    assert (shown, await limits.used_of(redis, keys, budgets)) == (20, {"a": 20})


async def test_what_is_not_used_goes_back(redis: Redis, keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    budgets = {"a": Budget(impressions=100)}
    assert (await fetch(redis, keys, budgets))["a"].left == 50
    assert (await fetch(redis, keys, budgets))["a"].left == 50, "it is fresh"
    monkeypatch.setattr(limits, "UNUSED_MS", -1)
    assert await limits.hold_budgets(redis, keys, budgets) == {"a": Held(0, 50, 50, 0)}
    assert (await fetch(redis, keys, budgets, wanted=False))["a"].left == 0, "nobody asks"
    assert (await fetch(redis, keys, budgets))["a"].left == 50


async def test_a_budget_that_shrinks_is_called_back_and_one_that_grows_goes_on(redis: Redis, keys: Keys) -> None:
    shop = Shop(redis, keys, None, {"a": "total"})
    await fetch(redis, keys, {"a": Budget(impressions=100)})
    assert await shop.show("1", user=None) is None
    assert (await fetch(redis, keys, {"a": Budget(impressions=3)}))["a"].left == 2
    assert (await fetch(redis, keys, {"a": Budget(impressions=1)}))["a"].left == 0
    assert (await fetch(redis, keys, {"a": Budget(impressions=11)}))["a"].left == 5
    assert await limits.used_of(redis, keys, {"a": Budget(impressions=11)}) == {"a": 1}


async def test_a_new_day_begins_anew_and_what_is_late_of_the_old_one_counts_for_nothing(
    redis: Redis, keys: Keys
) -> None:
    budgets = {"a": Budget(impressions=10, per="day")}
    today = (await limits.hold_budgets(redis, keys, budgets))["a"].period
    await redis.hset(keys.partition().budgets, "day/a", f"{today - 1} 10 0 10 1")
    await redis.hset(keys.granted, "0/day/a", f"{today - 1} 10 0 0 1")
    assert await limits.used_of(redis, keys, budgets) == {"a": 0}
    assert (await fetch(redis, keys, budgets))["a"] == Held(today, 5, 0, 0)
    late = {"a": limits.Grant(today - 1, 10, 0)}
    assert (await limits.hold_budgets(redis, keys, budgets, late))["a"] == Held(today, 5, 0, 0)


async def test_the_counts_of_a_budget_that_was_taken_away_go_after_a_day(
    redis: Redis, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = {name: Budget(impressions=10) for name in "ab"}
    await fetch(redis, keys, both)
    one = {"a": both["a"]}
    await limits.forget_budgets(redis, keys, one)
    assert await redis.hlen(keys.partition().budgets) == await redis.hlen(keys.granted) == 2
    monkeypatch.setattr(limits, "FORGOTTEN_MS", -1)
    await limits.forget_budgets(redis, keys, one)
    assert [await redis.hkeys(key) for key in (keys.partition().budgets, keys.granted)] == [
        [b"total/a"],
        [b"0/total/a"],
    ]


async def test_no_budget_is_overspent_and_none_strands_whoever_dies(redis: Redis, keys: Keys) -> None:
    """Workers take their steps in any order, with what they knew, and die between any two of them."""
    chance, most = random.Random(7), {"a": 40, "b": 23, "c": 1}
    budgets = {item: Budget(impressions=n) for item, n in most.items()}
    shop = Shop(redis, keys, None, dict.fromkeys(budgets, "total"))
    workers: list[dict[str, Any]] = [{} for _ in range(4)]
    shown: dict[str, int] = dict.fromkeys(budgets, 0)
    number = 0
    while sum(shown.values()) < sum(most.values()):
        number += 1
        assert number < 3000, f"some strands: {shown}"
        worker = chance.choice(workers)
        match chance.choice(["hold", "grant", "credit", "show", "show", "die"]):
            case "hold":
                worker["held"] = await limits.hold_budgets(redis, keys, budgets)
            case "grant" if "held" in worker:
                worker["told"] = await limits.grant_budgets(redis, keys, budgets, worker["held"], wanted=True)
            case "credit" if "told" in worker:
                await limits.hold_budgets(redis, keys, budgets, worker["told"])
            case "show":
                item = chance.choice(list(budgets))
                shown[item] += await shop.show(f"{number}", item, user=None) is None
            case "die":
                worker.clear()
        assert all(shown[item] <= most[item] for item in budgets)
    assert shown == most


async def test_partitions_share_a_budget(redis: Redis, keys: Keys) -> None:
    """The home grants to each of two partitions; what one used or holds is nothing for the other."""

    async def grant(partition: int, granted: int, returned: int, used: int) -> int:
        args = (partition, 2, 1, "total", "a", 20, 0, granted, returned, used)
        _, told, _ = await script("grant_budgets")(redis, (keys.granted,), args)
        return int(told)

    assert await grant(0, 0, 0, 0) == 5
    assert await grant(0, 0, 0, 0) == 5, "that portion is still on its way"
    assert await grant(1, 0, 0, 0) == 4
    assert await grant(0, 5, 0, 5) == 8
    assert await grant(1, 4, 4, 0) == 7, "it had given all back"
    granted = {0: 8, 1: 7}
    for _ in range(20):
        for partition in granted:
            back = 4 * partition
            granted[partition] = await grant(partition, granted[partition], back, granted[partition] - back)
    assert granted[0] + granted[1] - 4 == 20
