"""The use case of `/feedback`: to the right loop, checked, and never acknowledged where it is not stored."""

from __future__ import annotations

import pytest
from redis.asyncio import Redis

from service.decide.active import ActiveLoop
from service.errors import Conflict, InvalidRequest, NotFound, StoreUnavailable
from service.loop import LoopSettings
from service.records import LoopRecord
from service.serve.feedback import FeedbackJoiner, check_reward
from service.store.group_commit import GroupCommit
from service.store.keys import Keys
from tests.builders import decision_of, store_decisions
from tests.decide.builders import active_of
from tests.serve.stand_ins import Follows, NoRedis

pytestmark = pytest.mark.anyio
MADE = "01JBX8E9Z3T4V5W6X7Y8Z9A0B1.0."


def active(loop: LoopRecord) -> ActiveLoop:
    """Return the active loop of a stored one."""
    made = active_of(2, name=loop.name)
    object.__setattr__(made, "id", loop.id)
    return made


@pytest.fixture
def joiner(redis: Redis, loop: LoopRecord) -> FeedbackJoiner:
    return FeedbackJoiner(Follows(active(loop)), GroupCommit(redis))


async def test_a_report_is_joined_once(redis: Redis, joiner: FeedbackJoiner, keys: Keys) -> None:
    await store_decisions(redis, keys, decision_of("d", ["a", "b"], loop=keys.loop))
    assert await joiner.join("d", 1.0, loop=keys.loop) == "accepted"
    assert await joiner.join("d", 1.0, loop=keys.loop) == "duplicate"
    assert await joiner.join("d", 0.5, item_id="b", feedback_id="x", loop=keys.loop) == "accepted"
    assert await joiner.join("d", 0.5, item_id="b", feedback_id="x", loop=keys.loop) == "duplicate"


async def test_the_loop_is_read_from_an_id_of_the_service(redis: Redis, joiner: FeedbackJoiner, keys: Keys) -> None:
    made = MADE + keys.loop
    await store_decisions(redis, keys, decision_of(made, loop=keys.loop))
    assert await joiner.join(made, 1.0) == "accepted"
    with pytest.raises(NotFound) as unknown:
        await joiner.join("own", 1.0)
    assert unknown.value.code == "unknown_loop", "an own id lies in `default`, which is not here"
    with pytest.raises(NotFound) as unknown:
        await joiner.join(MADE.replace("01JBX", "01JBY") + keys.loop, 1.0)
    assert unknown.value.code == "unknown_decision"


async def test_what_cannot_be_joined_says_why(redis: Redis, joiner: FeedbackJoiner, keys: Keys) -> None:
    await store_decisions(redis, keys, decision_of("d", loop=keys.loop))
    with pytest.raises(InvalidRequest) as refused:
        await joiner.join("d", 1.0, item_id="elsewhere", loop=keys.loop)
    assert refused.value.extra["errors"][0]["field"] == "item_id"
    with pytest.raises(InvalidRequest) as refused:
        await joiner.join("d", 1.5, loop=keys.loop)
    assert refused.value.extra["errors"][0]["field"] == "reward"
    await redis.hset(keys.partition().decision("d"), "seen", 1000)
    with pytest.raises(Conflict) as full:
        await joiner.join("d", 1.0, feedback_id="new", loop=keys.loop)
    assert full.value.code == "too_many_feedback"


async def test_nothing_is_acknowledged_without_the_store(redis: Redis, loop: LoopRecord, keys: Keys) -> None:
    """Neither where Redis does not answer nor where it lost the data: a new decision of that name may be there."""
    await store_decisions(redis, keys, decision_of("d", loop=keys.loop))
    with pytest.raises(StoreUnavailable):
        await FeedbackJoiner(Follows(active(loop)), NoRedis()).join("d", 1.0, loop=keys.loop)  # type: ignore[arg-type]
    follower = Follows(active(loop))
    follower.store_lost = True
    with pytest.raises(StoreUnavailable):
        await FeedbackJoiner(follower, GroupCommit(redis)).join("d", 1.0, loop=keys.loop)
    assert await redis.hget(keys.partition().decision("d"), "status") == b"pending"


@pytest.mark.parametrize("reward", [1.0, 5.0, 3])
async def test_rewards_within_the_range_are_taken(reward: float) -> None:
    check_reward(LoopSettings(reward_range=(1, 5), default_reward=1), reward, "reward")


@pytest.mark.parametrize("reward", [0.999, 5.001, -1e308, float("inf"), float("nan")])
async def test_rewards_outside_name_the_field_and_the_range(reward: float) -> None:
    with pytest.raises(InvalidRequest) as refused:
        check_reward(LoopSettings(reward_range=(1, 5), default_reward=1), reward, "events.3.reward")
    assert refused.value.extra["errors"][0]["field"] == "events.3.reward"
    assert "[1, 5]" in refused.value.detail
