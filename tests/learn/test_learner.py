"""The learner's parts on a real Redis: lease, fencing, checkpoints, replay."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from uuid import uuid4

import numpy as np
import pytest
from redis.asyncio import Redis

from service import events
from service.audit import audit_learning
from service.learn import learner
from service.learn.learner import LeaseLost, PolicyLearner
from service.learn.sweeper import Sweeper
from service.loop import LoopSettings
from service.settings import Settings
from service.store import log, loops, policies
from service.store.codec import pack, unpack
from service.store.connection import connect
from service.store.keys import Keys
from service.store.loops import LoopRecord
from service.store.policies import PolicyRecord

pytestmark = pytest.mark.anyio
D = 4


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    connection = connect(redis_url, name="test", timeout_s=5)
    yield connection
    await connection.aclose()


@pytest.fixture
async def loop(redis: Redis) -> AsyncIterator[str]:
    """A loop that no running learner knows: it is not listed."""
    name = f"learn-{uuid4().hex[:10]}"
    record = LoopRecord(name, LoopSettings(retention=1000), {}, D, "test", 1, 0, {}, {})
    await loops.create_loop(redis, record)
    await redis.srem("rebound:loops", name)
    yield name
    await loops.delete_loop(redis, name)


async def append(redis: Redis, loop: str, n: int, *, first: int = 0) -> None:
    rng = np.random.default_rng(first)
    rows = []
    for number in range(first, first + n):
        e = events.body(
            decision_id=f"d{number}",
            item=f"p{number % 3}",
            user=None,
            context={},
            n=3,
            propensity=0.5,
            policy=None,
            version=0,
        )
        rows.append((f"d{number}", e, rng.normal(size=D).astype("<f4").tobytes(), float(number % 2)))
    await log.append_imported(redis, loop, rows)


async def policy(redis: Redis, loop: str, kind: str = "linucb") -> None:
    await policies.create_policy(redis, loop, PolicyRecord(kind, kind, {}, seed=0))


async def test_a_learner_goes_on_from_the_checkpoint(redis: Redis, loop: str, settings: Settings) -> None:
    await policy(redis, loop)
    await append(redis, loop, 30)
    first = PolicyLearner(redis, loop, "linucb", settings)
    assert await first.open()
    assert await first.drain() == 30
    await append(redis, loop, 7, first=30)  # learned by nobody: the first one "crashes" here
    await redis.delete(Keys(loop).lease("linucb"))
    second = PolicyLearner(redis, loop, "linucb", settings)
    assert await second.open()
    assert await second.drain() == 7
    record = await policies.read_policy(redis, loop, "linucb")
    assert (record.events, record.version) == (37, 2)
    assert await audit_learning(redis, loop) == {"linucb": True}


async def test_a_checkpoint_of_another_version_is_refused_with_what_to_do(
    redis: Redis, loop: str, settings: Settings
) -> None:
    await policy(redis, loop, "adaptive")
    await append(redis, loop, 30)
    first = PolicyLearner(redis, loop, "adaptive", settings)
    assert await first.open()
    await first.drain()
    arrays = unpack(await policies.read_state(redis, loop, "adaptive") or b"")
    await redis.set(Keys(loop).state("adaptive"), pack({k: v for k, v in arrays.items() if k != "matrices"}))
    await redis.delete(Keys(loop).lease("adaptive"))
    with pytest.raises(ValueError, match=r"no 'matrices'.*Make the policy again"):
        await PolicyLearner(redis, loop, "adaptive", settings).open()


async def test_what_cannot_be_opened_is_tried_less_and_less_often(
    redis: Redis, loop: str, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[float] = []
    stop = asyncio.Event()

    async def fail(self: PolicyLearner) -> bool:
        tried.append(asyncio.get_running_loop().time())
        if len(tried) == 5:
            stop.set()
        raise ValueError("an extra is missing")

    monkeypatch.setattr(PolicyLearner, "open", fail)
    monkeypatch.setattr(learner, "RETRY_S", 0.01)
    monkeypatch.setattr(learner, "MOST_RETRY_S", 0.04)
    await asyncio.wait_for(PolicyLearner(redis, loop, "linucb", settings).run(stop), 30)
    waits = np.diff(tried)
    assert (waits >= 0.99 * np.array([0.02, 0.04, 0.04, 0.04])).all()


async def test_how_the_log_is_cut_does_not_show(redis: Redis, loop: str, settings: Settings) -> None:
    """One learner reads all at once, the other in three bites: the states are the same bytes."""
    for kind in ("linucb", "popularity"):
        await policy(redis, loop, kind)
    await append(redis, loop, 10)
    bites = PolicyLearner(redis, loop, "linucb", settings)
    assert await bites.open()
    await bites.drain()
    for first in (10, 25):
        await append(redis, loop, 15, first=first)
        await bites.drain()
    assert await audit_learning(redis, loop) == {"linucb": True, "popularity": False}  # popularity never learned
    state = unpack(await policies.read_state(redis, loop, "linucb") or b"")
    assert all(np.isfinite(array).all() for array in state.values())


async def test_only_the_holder_of_the_lease_writes(redis: Redis, loop: str, settings: Settings) -> None:
    await policy(redis, loop)
    await append(redis, loop, 5)
    old = PolicyLearner(redis, loop, "linucb", settings)
    assert await old.open()
    assert not await PolicyLearner(redis, loop, "linucb", settings).open(), "two hold one lease"
    await redis.delete(Keys(loop).lease("linucb"))  # it ran out while `old` was stopped
    new = PolicyLearner(redis, loop, "linucb", settings)
    assert await new.open()
    with pytest.raises(LeaseLost):
        await old.drain()
    record = await policies.read_policy(redis, loop, "linucb")
    assert (record.events, record.version) == (0, 0), "a fenced learner wrote"
    assert await new.drain() == 5


async def test_poison_is_set_aside_once_however_many_read_it(redis: Redis, loop: str, settings: Settings) -> None:
    await append(redis, loop, 2)
    good = (await redis.xrange(Keys(loop).events))[0][1]
    for wrong in ({b"x": b"short"}, {b"r": b"nan"}, {b"e": b"{}"}, {b"x": np.full(D, np.inf, "<f4").tobytes()}):
        await redis.xadd(Keys(loop).events, {**good, **wrong})
    await append(redis, loop, 1, first=2)
    for kind in ("linucb", "popularity"):
        await policy(redis, loop, kind)
        learner = PolicyLearner(redis, loop, kind, settings)
        assert await learner.open()
        assert await learner.drain() == 7
        assert (await policies.read_policy(redis, loop, kind)).events == 7
    assert (await log.read_stats(redis, loop))["dead_letters"] == 4
    assert await redis.hlen(Keys(loop).dead) == 4


async def test_old_versions_go_by_bytes_and_the_pinned_one_stays(redis: Redis, loop: str, settings: Settings) -> None:
    await policy(redis, loop)
    await loops.change_loop(redis, loop, {"pins": b'{"linucb":2}'})
    learner = PolicyLearner(redis, loop, "linucb", settings.model_copy(update={"snapshot_budget_mb": 0}))
    assert await learner.open()
    for number in range(5):
        await append(redis, loop, 1, first=number)
        await learner.drain()
    assert await policies.kept_versions(redis, loop, "linucb") == [2, 5]
    assert await policies.read_snapshot(redis, loop, "linucb", 4) is None
    assert await policies.version_position(redis, loop, "linucb", 4), "it could not be rebuilt"


async def test_the_log_keeps_to_its_length_but_nothing_unread_goes(redis: Redis, loop: str, settings: Settings) -> None:
    await policy(redis, loop)
    await append(redis, loop, 1500)
    sweeper = Sweeper(redis, loop)
    await sweeper.step()
    assert await redis.xlen(Keys(loop).events) == 1500, "unread events were dropped"
    learner = PolicyLearner(redis, loop, "linucb", settings)
    assert await learner.open()
    await learner.drain()
    await sweeper.step()
    assert await redis.xlen(Keys(loop).events) == 1000
    assert (await log.read_stats(redis, loop))["trimmed"] == 500
    await policies.create_policy(redis, loop, PolicyRecord("late", "popularity", {}, seed=0))
    assert (await policies.read_policy(redis, loop, "late")).skipped == 500


async def test_an_alarm_stands_in_the_log_once_and_is_not_learned(redis: Redis, loop: str, settings: Settings) -> None:
    await policies.create_policy(redis, loop, PolicyRecord("p", "popularity", {"detect_change": True}, seed=0))
    await append(redis, loop, 2000)
    learner = PolicyLearner(redis, loop, "p", settings)
    assert await learner.open()
    await learner.drain()
    await append_rewards(redis, loop, [0.0] * 200)
    await learner.drain()
    await redis.delete(Keys(loop).lease("p"))
    successor = PolicyLearner(redis, loop, "p", settings)
    assert await successor.open()
    await successor.drain()
    await append(redis, loop, 10, first=5000)
    await successor.drain()

    record = await policies.read_policy(redis, loop, "p")
    (alarm,) = record.alarms
    assert alarm["number"] == 1
    assert 2000 < alarm["events"] <= 2200
    assert record.events == 2210
    told = [
        entry.alarm
        for position, fields in await log.read(redis, loop, log.START, most=5000)
        if isinstance(entry := events.decode(position, fields, D), events.Control)
    ]
    assert told == [{"policy": "p", **alarm}]
    assert await audit_learning(redis, loop) == {"p": True}


async def append_rewards(redis: Redis, loop: str, rewards: list[float]) -> None:
    rows = []
    for number, reward in enumerate(rewards):
        who = {"user": None, "context": {}, "n": 3, "propensity": 0.5, "policy": None, "version": 0}
        e = events.body(decision_id=f"r{number}", item=f"p{number % 3}", **who)
        rows.append((f"r{number}", e, np.full(D, 0.1, "<f4").tobytes(), reward))
    await log.append_imported(redis, loop, rows)


async def test_rewards_are_learned_as_shares_of_the_loops_range(redis: Redis, settings: Settings) -> None:
    name = f"range-{uuid4().hex[:10]}"
    wide = LoopSettings(reward_range=(-10, 30), default_reward=0)
    await loops.create_loop(redis, LoopRecord(name, wide, {}, D, "test", 1, 0, {}, {}))
    await redis.srem("rebound:loops", name)
    await policy(redis, name, "popularity")
    await append_rewards(redis, name, [10.0, -10.0, 30.0])  # of p0, p1, p2
    learner = PolicyLearner(redis, name, "popularity", settings)
    assert await learner.open()
    await learner.drain()
    state = await policies.read_state(redis, name, "popularity")
    assert state is not None
    assert unpack(state)["clicks"].tolist() == [0.5, 0.0, 1.0]
    await loops.delete_loop(redis, name)


async def test_a_policy_that_retrains_does_so_at_the_same_events_in_any_batches(
    redis: Redis, loop: str, settings: Settings
) -> None:
    params = {"retrain_every": 150, "epochs": 1}
    await policies.create_policy(redis, loop, PolicyRecord("mlp", "embedding_mlp", params, seed=0))
    learner = PolicyLearner(redis, loop, "mlp", settings)
    assert await learner.open()
    keeper = asyncio.create_task(learner._keep_lease())  # the first training waits for PyTorch to be imported
    for first in range(0, 400, 80):
        await append(redis, loop, 80, first=first)
        await learner.drain()
    keeper.cancel()
    state = await policies.read_state(redis, loop, "mlp")
    assert state is not None
    assert unpack(state)["rows"].tolist() == [300]
    assert await audit_learning(redis, loop) == {"mlp": True}
