"""Limits of a loop as a worker applies them: decisions that are made again, and looks at budgets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
from redis.asyncio import Redis

from service.decide.active import ActiveLoop
from service.decide.decision import seed_of
from service.errors import NoCandidates, StoreUnavailable
from service.limits import Budget
from service.records import Decision, Removed
from service.serve import budgets as budgets_module
from service.serve.budgets import BudgetKeeper, _Known
from service.serve.limits import Limiter
from service.serve.misfit_counter import MisfitCounter
from service.serve.recommend import Recommender
from service.serve.release_counter import ReleaseCounter
from service.settings import Settings
from service.store import limits
from service.store.decisions import Overtaken, PendingDecision
from service.store.group_commit import GroupCommit
from service.store.keys import Keys
from service.store.limits import AT_ONCE, used_of
from tests.decide.builders import active_of
from tests.serve.stand_ins import Follows, NoActivity, Writes

pytestmark = pytest.mark.anyio


class Refuses(Writes):
    """Keeps decisions in memory, but those that meet a limit."""

    def __init__(self, met: Callable[[PendingDecision], Overtaken | None]) -> None:
        super().__init__()
        self._met = met
        self.tried: list[Decision] = []

    async def append(self, pending: PendingDecision) -> tuple[Decision, bool]:
        self.tried.append(pending.decision)
        if (met := self._met(pending)) is not None:
            raise met
        return await super().append(pending)


def recommender(redis: Redis, active: ActiveLoop, writes: Writes) -> Recommender:
    follower, commit = Follows(active), GroupCommit(redis)
    limiter = Limiter(commit, BudgetKeeper(follower, redis))
    return Recommender(follower, writes, MisfitCounter(redis), NoActivity(), limiter, ReleaseCounter(redis), Settings())


async def test_a_decision_that_meets_a_limit_is_made_again_until_it_meets_none(redis: Redis) -> None:
    active = active_of(5, budgets={f"p{i}": {"impressions": 1} for i in range(5)})
    writes = Refuses(
        lambda one: Overtaken((), [i.id for i in one.decision.items if i.id != "p3"]) if _met(one) else None
    )
    decision, degraded = await recommender(redis, active, writes).recommend("shop", user_id="u", decision_id="d")
    assert ([item.id for item in decision.items], decision.decision_id, degraded) == (["p3"], "d", False)
    assert [one.attempt for one in writes.tried] == list(range(len(writes.tried)))
    assert [one.n for one in writes.tried] == [5 - number for number in range(len(writes.tried))]
    tried = sorted(one.items[0].id for one in writes.tried[:-1])
    assert decision.removed == (Removed(spent=tuple(tried)) if tried else None)
    assert decision.seed == seed_of("shop", "d", decision.attempt)
    assert writes.pending["d"].limits is not None
    assert writes.pending["d"].limits.budgets == {"p3": "total"}


def _met(pending: PendingDecision) -> bool:
    return pending.decision.items[0].id != "p3"


async def test_where_all_meet_a_limit_it_is_named(redis: Redis) -> None:
    active = active_of(3, budgets={f"p{i}": {"impressions": 1} for i in range(3)})
    writes = Refuses(lambda one: Overtaken((), [item.id for item in one.decision.items]))
    with pytest.raises(NoCandidates, match="3 have no budget left"):
        await recommender(redis, active, writes).recommend("shop")
    assert len(writes.tried) == 3


@pytest.mark.parametrize("own", [None, "mine"])
async def test_while_redis_is_away_no_budget_is_spent(redis: Redis, own: str | None) -> None:
    def away(pending: PendingDecision) -> Overtaken | None:
        spends = pending.limits.budgets if pending.limits is not None else {}
        return Overtaken((), spends, alone=True) if spends else None

    active, writes = active_of(3, budgets={"p0": {"impressions": 9}, "p1": {"impressions": 9}}), Refuses(away)
    asks = recommender(redis, active, writes)
    for _ in range(8):
        decision, _ = await asks.recommend("shop", decision_id=own)
        assert decision.items[0].id == "p2"
    ids = {one.decision_id for one in writes.tried}
    assert len(ids) == (len(writes.tried) if own is None else 1), "the one before may be stored all the same"
    with pytest.raises(StoreUnavailable):
        await asks.recommend("shop", candidates=[("p0", None), ("p1", None)])


async def test_a_loop_without_limits_asks_nothing(redis: Redis) -> None:
    writes = Writes()
    decision, _ = await recommender(redis, active_of(3), writes).recommend("shop", user_id="u", decision_id="d")
    assert (decision.removed, decision.attempt, writes.pending["d"].limits) == (None, 0, None)


# ---- looks at budgets


def test_all_budgets_have_their_turn_and_those_that_were_met_come_first() -> None:
    items = [f"i{number}" for number in range(2 * AT_ONCE + 50)]
    known = _Known(met={"i7", "i200", "gone"})
    first = known.next(items)
    assert first[:2] == ["i7", "i200"]
    assert len(first) <= AT_ONCE
    assert not known.met
    assert {item for _ in range(3) for item in known.next(items)} | set(first) == set(items)
    assert known.next(["a", "b"]) in (["a", "b"], ["b", "a"])


async def test_portions_are_fetched_while_a_loop_is_asked_and_given_back_when_it_is_not(
    redis: Redis, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    active = active_of(3, name=keys.loop, budgets={"p0": {"impressions": 8}})
    object.__setattr__(active, "id", keys.id)
    keeper, looks = BudgetKeeper(Follows(active), redis), 0

    async def counting(*args: Any, **more: Any) -> Any:
        nonlocal looks
        looks += 1
        return await limits.hold_budgets(*args, **more)

    monkeypatch.setattr(budgets_module, "hold_budgets", counting)
    assert list(keeper.spent(active)) == [], "nobody knows yet"
    keeper.met(active, ["p0"])
    assert list(keeper.spent(active)) == ["p0"]
    await keeper.look()
    assert (list(keeper.spent(active)), looks) == ([], 2)
    budgets: Mapping[str, Budget] = active.settings.budgets
    assert await used_of(redis, keys, budgets) == {"p0": 0}
    monkeypatch.setattr(limits, "UNUSED_MS", -1)
    await keeper.look()
    await keeper.look()
    assert list(keeper._known[keys.id].left.values()) == [0], "it went back"
    looked = looks
    await keeper.look()
    assert looks == looked, "a loop that is not asked costs nothing"
