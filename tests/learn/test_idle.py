"""A loop that is not used costs nothing: its tasks hold no lease and send no command until something is announced."""

from __future__ import annotations

import asyncio

import pytest
from redis.asyncio import Redis

from service.admin.audit import audit_learning
from service.learn import bell, learner
from service.settings import Settings
from service.store import event_log, loop_store, policy_store, workers
from service.store.keys import Keys
from service.store.profile_store import LEASE as PROFILE
from service.store.profile_store import read_profile
from tests.builders import decision_of, event_of, import_of, loop_of, policy_of, store_decisions
from tests.learn.running import running
from tests.waiting import until_async

pytestmark = pytest.mark.anyio


@pytest.fixture
async def redis(quiet_redis: Redis) -> Redis:
    """Return a Redis on which no other learner is at work."""
    await workers.store_identity(quiet_redis)
    return quiet_redis


@pytest.fixture(autouse=True)
def _times(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a loop fall asleep soon, and be looked at only where it was announced."""
    monkeypatch.setattr(bell, "AWAKE_S", 0.1)
    monkeypatch.setattr(learner, "LOOK_S", 1000.0)
    monkeypatch.setattr(learner, "PERIOD_S", 0.05)


async def make(redis: Redis, *, events: int = 3) -> Keys:
    loop = loop_of()
    keys = Keys(loop.name, loop.id)
    await loop_store.create_loop(redis, loop)
    await policy_store.create_policy(redis, keys, policy_of("popularity"))
    await append(redis, keys, events)
    return keys


async def append(redis: Redis, keys: Keys, n: int, *, first: int = 0) -> None:
    rows = import_of([event_of(number) for number in range(first, first + n)])
    await event_log.append_imported(redis, keys, rows, remember=1000)


async def asleep(redis: Redis, keys: Keys, events: int) -> None:
    """Wait until a loop's events are learned and counted, and its leases let go."""

    async def there() -> bool:
        policy = await policy_store.read_policy(redis, keys, "popularity")
        profile = await read_profile(redis, keys)
        held = await redis.exists(keys.lease("popularity"), keys.lease(PROFILE))
        return (policy.events, profile.events, held) == (events, events, 0)

    await until_async(there, f"{events} events are learned, and the loop sleeps")


async def calls(redis: Redis) -> int:
    """Return the commands that Redis has carried out, those of scripts included."""
    return sum(int(command["calls"]) for command in (await redis.info("commandstats")).values())


async def commands(redis: Redis, settings: Settings, loops: int) -> int:
    """Return the commands in half a second in which nothing happens."""
    async with running(redis, settings):
        for keys in [await make(redis) for _ in range(loops)]:
            await asleep(redis, keys, 3)
        await asyncio.sleep(0.2)  # the last sweep
        before = await calls(redis)
        await asyncio.sleep(0.5)
        return await calls(redis) - before


async def test_idle_loops_cost_no_command(redis: Redis, settings: Settings) -> None:
    """Heartbeats remain, the same for any number of loops."""
    one = await commands(redis, settings, 1)
    await redis.flushall()
    await workers.store_identity(redis)
    assert await commands(redis, settings, 20) <= one + 10, "about 20 would be one command a loop"


async def test_a_loop_that_sleeps_wakes_when_it_is_used(redis: Redis, settings: Settings) -> None:
    async with running(redis, settings):
        keys = await make(redis)
        await asleep(redis, keys, 3)
        await append(redis, keys, 4, first=3)
        await asleep(redis, keys, 7)
        await store_decisions(redis, keys, decision_of("d"), wait_ms=300)  # due when it sleeps again
        await asleep(redis, keys, 8)
    assert await audit_learning(redis, keys.loop) == {"popularity": True}


async def test_two_learners_take_turns(redis: Redis, settings: Settings) -> None:
    """What one has in memory is not taken for the state when the other has learned meanwhile."""
    async with running(redis, settings), running(redis, settings):
        keys = await make(redis)
        await asleep(redis, keys, 3)
        for round_ in range(1, 3):
            await append(redis, keys, 3, first=3 * round_)
            await asleep(redis, keys, 3 * round_ + 3)
    assert await audit_learning(redis, keys.loop) == {"popularity": True}


async def test_what_no_announcement_told_is_found_by_the_look_at_everything(redis: Redis, settings: Settings) -> None:
    async with running(redis, settings) as found:
        keys = await make(redis)
        await asleep(redis, keys, 3)
        await found.follow(asyncio.Event())  # sees where the log ends
        entry = (await redis.xrevrange(keys.partition().events, count=1))[0][1]
        await redis.xadd(keys.partition().events, entry)
        await found.follow(asyncio.Event())
        await asleep(redis, keys, 4)


async def test_a_subscription_that_breaks_leads_to_a_look_at_everything(redis: Redis, settings: Settings) -> None:
    async with running(redis, settings):
        keys = await make(redis)
        await asleep(redis, keys, 3)
        looked = (await redis.info("commandstats"))["cmdstat_xrevrange"]["calls"]
        await redis.client_kill_filter(_type="pubsub")

        async def again() -> bool:
            return bool((await redis.info("commandstats"))["cmdstat_xrevrange"]["calls"] > looked)

        await until_async(again, "all loops are looked at")


async def test_a_policy_that_was_deleted_and_made_again_is_learned_anew(redis: Redis, settings: Settings) -> None:
    async with running(redis, settings):
        keys = await make(redis)
        await asleep(redis, keys, 3)
        for _ in range(3):
            await policy_store.delete_policy(redis, await loop_store.read_loop(redis, keys.loop), "popularity")
            await policy_store.create_policy(redis, keys, policy_of("popularity"))
            await asleep(redis, keys, 3)
    assert await audit_learning(redis, keys.loop) == {"popularity": True}
