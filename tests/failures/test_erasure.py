"""A user is erased while the learner that does it is killed with SIGKILL, again and again, at random moments."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import numpy as np
import pytest
from redis.asyncio import Redis

from service.admin.audit import audit_learning
from service.admin.users import erase_user
from service.learn.trainer import Trainer
from service.loop import LoopSettings
from service.records import Event
from service.store import erasure_store, event_log, experiment_store, loop_store, policy_store, workers
from service.store.activity import Sent, take_activity
from service.store.codec import experiments_bytes, unpack
from service.store.erasure_store import ErasureRecord
from service.store.group_commit import GroupCommit
from service.store.keys import LOOPS, Keys
from service.store.upgrade import upgrade
from tests.builders import decision_of, experiment_of, loop_of, store_decisions, store_loop
from tests.failures.learner_process import start_learner
from tests.learn.test_eraser import append, make, of_users, places
from tests.waiting import until_async

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

KINDS = ("linucb", "popularity")
USERS = tuple(f"other-{number}" for number in range(5))  # as `of_users` names them


async def forget_leases(redis: Redis) -> None:
    """Let the next learner begin at once: the one before is dead, and its leases would last for 5 s."""
    if held := [key async for key in redis.scan_iter(match="*lease*", count=1000)]:
        await redis.delete(*held)


@asynccontextmanager
async def learning(redis: Redis, url: str) -> AsyncIterator[None]:
    """Run a learner; kill it in the end."""
    await forget_leases(redis)
    process = start_learner(url)
    try:
        yield
    finally:
        process.kill()
        process.join()


async def newest(redis: Redis, keys: Keys) -> ErasureRecord:
    return (await erasure_store.list_erasures(redis, keys))[0]


async def test_an_erasure_is_whole_and_counts_once_however_often_the_learner_is_killed(
    quiet_redis: Redis, quiet_redis_url: str, size: float
) -> None:
    redis, chance, kills = quiet_redis, random.Random(7), max(3, round(50 * size))
    users = USERS if size >= 0.1 else USERS[:2]
    await upgrade(redis)
    await workers.store_identity(redis)
    loop = loop_of()
    keys = await store_loop(redis, loop)
    await redis.sadd(LOOPS, loop.name)
    experiment = experiment_of(starts=1e12)
    await redis.hset(keys.record, "experiments", experiments_bytes({experiment.name: experiment}))
    await make(redis, keys, *KINDS)
    events = of_users(1200 if size >= 0.1 else 240)
    await append(redis, keys, events)
    for user in USERS:
        await take_activity(GroupCommit(redis), keys, LoopSettings(), {user: [Sent(user, "p1", "view")] * 3})
        his = [decision_of(f"{user}-{n}", user_id=user) for n in range(20)]
        await store_decisions(redis, keys, *his, wait_ms=86_400_000)

    async def learned(count: int) -> bool:
        policies = [await policy_store.read_policy(redis, keys, name) for name in KINDS]
        return all(policy.events == count for policy in policies)

    async with learning(redis, quiet_redis_url):
        await until_async(lambda: learned(len(events)), "all is learned", within_s=300)
    before = await policy_store.read_policy(redis, keys, "linucb")
    of_user, died_at, killed = Counter(event.user for event in events), Counter[str](), 0
    undisturbed_s = 0.0

    for number, user in enumerate(users):
        asked = await erase_user(redis, keys.loop, user, by="test")

        async def over(erasure: str = asked.id) -> bool:
            return (await erasure_store.read_erasure(redis, keys, erasure)).ended is not None

        began, each = time.monotonic(), kills // (len(users) - 1)
        for _ in range(each if number else 0):  # the first one is left in peace
            async with learning(redis, quiet_redis_url):
                await asyncio.sleep(chance.uniform(0, 2 * undisturbed_s / (each + 1)))
            killed += 1
            died_at[(await erasure_store.read_erasure(redis, keys, asked.id)).step] += 1
        async with learning(redis, quiet_redis_url):
            await until_async(over, f"{user} is erased", within_s=300)
        if not number:
            undisturbed_s = time.monotonic() - began
        done = await erasure_store.read_erasure(redis, keys, asked.id)
        assert (done.decisions, done.activity, done.events, done.remains) == (20, 3, of_user[user], ()), user
        assert await places(redis, keys, user) == []
    assert killed > died_at["done"], "some were killed at work"
    print(f"{killed} kills in {len(users) - 1} erasures of {undisturbed_s:.1f} s; they stood at {dict(died_at)}")

    stats = await event_log.read_stats(redis, keys)
    kept = [event for event in events if event.user not in users]
    entries = [entry async for part in event_log.scan(redis, keys) for entry in part]
    assert [entry.decision_id for entry in entries if isinstance(entry, Event)] == [one.decision_id for one in kept]
    erased = len(events) - len(kept)
    counts = stats["events"], stats["erased"], stats["erased_pending"], stats["pending"]
    assert counts == (len(events), erased, 20 * len(users), 20 * (len(USERS) - len(users)))
    assert (await experiment_store.read_sums(redis, keys, experiment)).erased >= len(users)
    assert await audit_learning(redis, keys.loop) == dict.fromkeys(KINDS, True)
    never = Trainer.of(await loop_store.read_loop(redis, keys.loop), before)
    never.apply([replace(event, position=f"{n + 1}-0") for n, event in enumerate(kept)])
    state = unpack(await policy_store.read_state(redis, keys, "linucb") or b"")
    for name, array in never.policy.state().items():
        np.testing.assert_allclose(state[name].astype(float), array.astype(float), rtol=0, atol=1e-9)
