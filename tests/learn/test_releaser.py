"""The learner's part of a release: steps and ways back, each once, whatever is killed or changed meanwhile."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from redis.asyncio import Redis

from service.admin import traffic
from service.admin.policies import delete_policy, describe
from service.admin.releases import cancel_release, read_release, start_release
from service.errors import Conflict, InvalidRequest, NotFound, StaleEpoch
from service.learn.releaser import Releaser
from service.loop import LoopSettings
from service.records import LoopRecord
from service.serve.follower import Follower
from service.serve.release_counter import ReleaseCounter
from service.store import change_log, loop_store, policy_store, release_store, workers
from service.store.connection import now
from service.store.decisions import join_feedback, settle_due
from service.store.group_commit import GroupCommit
from service.store.keys import Keys
from service.store.loop_rows import read_rows, write_rows
from service.store.release_store import ReleaseRecord
from tests.builders import decision_of, loop_of, policy_of, store_decisions
from tests.decide.builders import active_of

pytestmark = pytest.mark.anyio
GUARD = {"reward_drop": 0.2, "lag": 1000, "latency_ms": 50.0, "degraded": 0.1}


class Shop:
    """A loop with the policies `old`, which serves, and `new`."""

    def __init__(self, redis: Redis, record: LoopRecord) -> None:
        self.redis, self.keys = redis, Keys(record.name, record.id)
        self.name, self.settings = record.name, record.settings
        self.follower = Follower(redis, "w")
        self.releaser = Releaser(redis, self.keys)
        self.decisions = 0

    async def release(self, *steps: float, **guard: Any) -> ReleaseRecord:
        asked: dict[str, Any] = {"steps": steps or (0.5, 1), "guard": GUARD | guard, "confidence": 0.9, "by": "ann"}
        return await start_release(self.redis, self.follower, self.name, "new", **asked)

    async def show(self, rewards: dict[str, float | None], *, users: int = 34) -> None:
        """Show each of so many users one item by each of these policies, and report these rewards, if not None."""
        shown = []
        for policy in rewards:
            for number in range(users):
                self.decisions += 1
                name = f"d{self.decisions}"
                shown.append(decision_of(name, loop=self.name, user_id=f"{policy}{number}", policy=policy))
        await store_decisions(self.redis, self.keys, *shown, wait_ms=self.settings.wait_ms)
        commit = GroupCommit(self.redis)
        reports = [
            join_feedback(
                commit,
                self.keys,
                self.settings,
                decision_id=one.decision_id,
                item="",
                reward=reward if one.decision_id[-1] in "02468" else 0.0,  # so that they vary
                feedback_id="",
            )
            for one in shown
            if (reward := rewards[one.policy]) is not None
        ]
        await asyncio.gather(*reports)

    async def look(self) -> ReleaseRecord:
        await self.releaser.step()
        return await self.read()

    async def read(self) -> ReleaseRecord:
        return await read_release(self.redis, self.name, "new")

    async def traffic(self) -> dict[str, float]:
        return dict((await self.loop()).traffic)

    async def loop(self) -> LoopRecord:
        return await loop_store.read_loop(self.redis, self.name)

    async def changes(self) -> list[tuple[str, str]]:
        found = await change_log.read(self.redis, self.keys.change_log, before=None, most=20)
        return [(change.by, change.what) for _, change in reversed(found)]


@pytest.fixture
async def shop(quiet_redis: Redis) -> Shop:
    record = replace(loop_of("shop"), traffic={"old": 1.0})
    await loop_store.create_loop(quiet_redis, record)
    found = Shop(quiet_redis, record)
    for name in ("old", "new"):
        await policy_store.create_policy(quiet_redis, found.keys, policy_of("popularity", name=name))
        await quiet_redis.hset(found.keys.policy(name), "version", 1)
    return found


async def test_a_good_policy_goes_step_by_step_to_all_of_the_traffic(shop: Shop) -> None:
    made = await shop.release(0.2, 0.5, 1)
    assert await shop.traffic() == {"old": 0.8, "new": 0.2}
    await shop.show({"old": 0.0, "new": 1.0})  # before the decisions count: they may be of the split of before
    assert (await shop.look()).start == 68
    assert (await shop.look()).state == "running"
    await shop.show({"old": 0.2, "new": 1.0})
    second = await shop.look()
    assert (second.step, second.start, second.state) == (1, None, "running")
    assert await shop.traffic() == {"old": 0.5, "new": 0.5}
    await shop.look()
    waiting = await shop.look()
    assert "0 settled decisions" in waiting.why, "each step counts its own decisions"
    await shop.show({"old": 0.2, "new": 1.0})
    done = await shop.look()
    assert (done.state, done.share, done.ended is not None) == ("done", 1.0, True)
    assert await shop.traffic() == {"new": 1.0}
    assert (await shop.loop()).release is None
    assert [one["share"] for one in done.taken] == [0.2, 0.5, 1.0]
    assert [one["course"] for one in done.looks] == ["wait", "go on", "wait", "go on"]
    assert done.looks[1]["policy"]["events"] == 34
    assert not await shop.releaser.step(), "it is over"
    assert await shop.changes() == [
        ("ann", "begin release"),
        ("release of new", "take step of release"),
        ("release of new", "end release"),
    ]
    assert done.id == made.id


async def test_a_harmful_policy_goes_back_to_the_very_traffic_of_before(shop: Shop) -> None:
    before = {"old": 0.6000000000000001, "new": 0.1, "other": 0.3}
    await shop.redis.hset(shop.keys.record, "traffic", '{"old":0.6000000000000001,"new":0.1,"other":0.3}')
    await shop.release(0.5, 1)
    await shop.look()
    await shop.show({"old": 1.0, "other": 1.0, "new": 0.0})
    found = await shop.look()
    assert (found.state, found.share) == ("rolled_back", 0.1)
    assert "worse than the others" in found.why
    assert await shop.traffic() == before
    assert (await shop.changes())[-1] == ("release of new", "roll back release")
    status = (await describe(shop.redis, shop.name, "new")).release
    assert status is not None
    assert (status.state, status.share, status.why) == ("rolled_back", 0.1, found.why)


async def test_who_only_reports_clicks_is_not_believed_before_the_wait_is_over(shop: Shop) -> None:
    """Both groups' rewards in the log are clicks alone; the policy's other decisions still wait for theirs."""
    await shop.release()
    await shop.look()
    await shop.show({"new": None, "old": None})
    await shop.show({"new": 1.0, "old": 1.0})
    found = await shop.look()
    assert found.state == "running"
    assert "0 settled decisions" in found.why
    part = shop.keys.partition()
    for waiting in await shop.redis.zrange(part.pending, 0, -1):  # as if the wait were over
        await shop.redis.hset(part.decision(waiting.decode()), "deadline", 1)
        await shop.redis.zadd(part.pending, {waiting: 1})
    assert await settle_due(shop.redis, GroupCommit(shop.redis), shop.keys, shop.settings) == 68
    assert (await shop.look()).looks[-1]["policy"] == {"events": 68, "users": 34.0, "reward": 0.25}


async def test_whoever_takes_over_goes_on_and_nothing_counts_twice(shop: Shop) -> None:
    """A learner is killed at every write that it makes: before it, or after it without learning of that."""
    await shop.release(0.2, 0.5, 1)

    class Killed(BaseException):
        pass

    async def killed(*, before: bool) -> None:
        """Look once, with a learner that dies at its write."""
        write = release_store.write_release

        async def die(*args: Any, **more: Any) -> int:
            if not before:
                await write(*args, **more)
            raise Killed

        release_store.write_release = die
        try:
            with pytest.raises(Killed):
                await Releaser(shop.redis, shop.keys).step()
        finally:
            release_store.write_release = write

    for state in ("counting", "step", "counting", "done"):
        if state in ("step", "done"):
            await shop.show({"old": 0.2, "new": 1.0}, users=10)
            await killed(before=True)
            await killed(before=False)  # the sums of the first half are written
            await shop.show({"old": 0.2, "new": 1.0}, users=34)
        revision = await shop.redis.hget(shop.keys.release("new"), "revision")
        await killed(before=True)
        assert await shop.redis.hget(shop.keys.release("new"), "revision") == revision
        await killed(before=False)
        assert await shop.redis.hget(shop.keys.release("new"), "revision") == b"%d" % (int(revision) + 1)
    found = await shop.read()
    assert found.state == "done"
    assert [one["share"] for one in found.taken] == [0.2, 0.5, 1.0]
    assert [one["policy"]["events"] for one in found.looks] == [10, 44, 10, 44]


async def test_of_two_learners_at_one_step_one_takes_it(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    await shop.release(0.2, 0.5, 1)
    await shop.look()
    await shop.show({"old": 0.2, "new": 1.0})
    read, both = release_store.read_served, asyncio.Barrier(2)

    async def together(*args: Any) -> dict[str, int]:
        await both.wait()
        return await read(*args)

    monkeypatch.setattr(release_store, "read_served", together)
    steps = [Releaser(shop.redis, shop.keys).step() for _ in range(2)]
    found = await asyncio.gather(*steps, return_exceptions=True)
    assert sorted(map(type, found), key=str) == sorted([bool, StaleEpoch], key=str)
    assert [one["share"] for one in (await shop.read()).taken] == [0.2, 0.5]


async def test_decisions_count_once_every_worker_has_adopted_the_step(shop: Shop) -> None:
    await shop.release()
    await shop.redis.zadd("rebound:workers", {"slow": await now(shop.redis)})
    assert (await shop.look()).start is None
    await workers.adopt(shop.redis, shop.keys, "slow", (await shop.loop()).epoch)
    assert (await shop.look()).start == 0


async def test_looks_are_kept_as_events_grow(shop: Shop) -> None:
    await shop.release()
    await shop.look()
    for number in range(1, 16):
        await shop.show({"old": 0.2, "new": 1.0}, users=1)
        assert (await shop.look()).looks[-1]["policy"]["events"] == number, "the newest is there"
    kept = [one["policy"]["events"] for one in (await shop.read()).looks]
    assert kept == [*range(1, 11), 12, 14, 15]


async def test_a_changed_wait_time_begins_the_step_anew(shop: Shop) -> None:
    await shop.release()
    await shop.look()
    await shop.show({"old": 0.2, "new": 1.0}, users=10)
    assert (await shop.look()).looks
    other = LoopSettings(wait_time=5)
    await shop.redis.hset(shop.keys.record, "settings", other.model_dump_json())
    assert (await shop.look()).start is None
    again = await shop.look()
    assert (again.start, again.wait_ms, again.step) == (20, 5000, 0)


# ---- people


@pytest.mark.parametrize("how", ["split", "activate", "older version"])
async def test_a_persons_change_of_traffic_ends_the_release_and_stays(shop: Shop, how: str) -> None:
    await shop.release()
    await shop.look()
    if how == "split":
        await traffic.set_traffic(shop.redis, shop.follower, shop.name, {"old": 0.3, "new": 0.7}, by="bob")
        expected, why = {"old": 0.3, "new": 0.7}, "bob changed the traffic (split traffic)"
    elif how == "activate":
        await traffic.activate(shop.redis, shop.follower, shop.name, "old", by="bob")
        expected, why = {"old": 1.0}, "bob changed the traffic (activate policy)"
    else:  # whose script knows of no release
        await loop_store.change_loop(shop.redis, await shop.loop(), {"traffic": '{"old":0.1,"new":0.9}'})
        expected, why = {"old": 0.1, "new": 0.9}, "somebody changed the traffic"
    await shop.show({"old": 0.2, "new": 1.0})
    await shop.releaser.step()
    found = await shop.read()
    assert (found.state, found.share) == ("cancelled", expected.get("new", 0.0))
    assert found.why.startswith(why)
    assert await shop.traffic() == expected
    assert not await shop.releaser.step()


async def test_a_release_is_cancelled_once(shop: Shop) -> None:
    with pytest.raises(NotFound, match="never released"):
        await cancel_release(shop.redis, shop.follower, shop.name, "new", by="bob")
    await shop.release()
    found = await cancel_release(shop.redis, shop.follower, shop.name, "new", by="bob")
    assert (found.state, found.share) == ("cancelled", 0.0)
    assert await shop.traffic() == {"old": 1.0}
    assert await cancel_release(shop.redis, shop.follower, shop.name, "new", by="bob") == found
    assert await shop.changes() == [("ann", "begin release"), ("bob", "cancel release")]
    assert (await shop.release()).id != found.id, "it may be released again"


async def test_what_cannot_be_released_is_refused_and_nothing_changes(shop: Shop) -> None:
    for steps, why in (((0.5, 0.2), "larger than the one before"), ((0.5, 0.5), "larger"), ((1.0,), "below 1")):
        with pytest.raises(InvalidRequest, match=why):
            await shop.release(*steps)
    await shop.redis.hset(shop.keys.partition().stats, "events", 2000)
    with pytest.raises(Conflict, match="still to learn 2,000 events"):
        await shop.release()
    await shop.redis.hdel(shop.keys.partition().stats, "events")
    await traffic.set_traffic(shop.redis, shop.follower, shop.name, {"old": 0.5, "new": 0.5}, by="bob")
    with pytest.raises(InvalidRequest, match="larger than the share that 'new' has"):
        await shop.release()
    await traffic.activate(shop.redis, shop.follower, shop.name, "old", by="bob")
    await shop.release()
    with pytest.raises(Conflict, match="a release of policy 'new' runs"):
        await shop.release()
    with pytest.raises(Conflict, match="serves"):
        await delete_policy(shop.redis, shop.name, "new", by="bob")
    await traffic.activate(shop.redis, shop.follower, shop.name, "old", by="bob")
    await delete_policy(shop.redis, shop.name, "new", by="bob")
    assert not await shop.redis.exists(shop.keys.release("new"))
    assert await shop.traffic() == {"old": 1.0}


async def test_a_garbled_release_stops_no_person(shop: Shop) -> None:
    await shop.release()
    await shop.redis.hset(shop.keys.release("new"), "said", "{")
    assert (await describe(shop.redis, shop.name, "new")).release is None
    await traffic.activate(shop.redis, shop.follower, shop.name, "old", by="bob")
    assert (await shop.loop()).release is None


# ---- the service


async def test_the_guard_sees_how_workers_served_and_how_far_the_policy_is_behind(shop: Shop) -> None:
    counter = ReleaseCounter(shop.redis)
    for why, lag in (("took longer than 50 ms", 0), ("still to learn 1,001 events", 1001)):
        made = await shop.release()
        running = (await shop.loop()).release
        active = replace(active_of(2, name=shop.name), id=shop.keys.id, release=running)
        for policy, seconds in (("new", 0.1), ("old", 0.1), ("new", 0.001)):
            for _ in range(100):
                counter.count(active, policy, 0.0 if lag else seconds, degraded=False)
        await counter.flush()
        served = await release_store.read_served(shop.redis, shop.keys, "new", made.id)
        assert served == {"decisions": 200, "slow": 0 if lag else 100, "degraded": 0}
        await shop.redis.hset(shop.keys.partition().stats, "events", lag)
        await shop.look()
        found = await shop.look()
        assert found.state == "rolled_back"
        assert why in found.why
        assert await shop.traffic() == {"old": 1.0}
        await shop.redis.hdel(shop.keys.partition().stats, "events")


async def test_it_survives_a_backup_and_goes_on(shop: Shop) -> None:
    await shop.release()
    await shop.look()
    await shop.show({"old": 0.2, "new": 1.0})
    rows, record = [row async for row in read_rows(shop.redis, shop.keys)], await shop.loop()
    await shop.redis.flushall()
    copy = replace(record, id="copy")
    await write_rows(shop.redis, Keys(copy.name, copy.id), rows, later_ms=0)
    await loop_store.create_loop(shop.redis, copy)
    assert await Releaser(shop.redis, Keys(copy.name, copy.id)).step()
    assert (await shop.read()).state == "done"
    assert await shop.traffic() == {"new": 1.0}
