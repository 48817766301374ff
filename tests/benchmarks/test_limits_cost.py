"""What limits cost: CPU of Redis and of a worker's client, per decision and per look at budgets.

    make bench ARGS=tests/benchmarks/test_limits_cost.py

Decisions are stored, fifty at once, and none is scored: this is what caps add to the rest.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import numpy as np
from redis.asyncio import Redis

from service.limits import Budget, Caps
from service.run.embedded import EmbeddedRedis
from service.store import limits
from service.store.connection import connect
from service.store.decisions import DecisionWriter, PendingDecision
from service.store.group_commit import GroupCommit
from service.store.keys import Keys
from tests.builders import D, decision_of, loop_of, store_loop

USERS, AT_ONCE = 20, 50


class Meter:
    """CPU seconds of Redis and of this process."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def start(self) -> None:
        self._began = await self._read()

    async def per(self, n: int) -> str:
        redis, own = (1e6 * (now - then) / n for now, then in zip(await self._read(), self._began, strict=True))
        return f"Redis {redis:7.0f} µs, worker {own:7.0f} µs"

    async def _read(self) -> tuple[float, float]:
        found = await self._redis.info("cpu")
        return float(found["used_cpu_user"]) + float(found["used_cpu_sys"]), time.process_time()


async def store(redis: Redis, keys: Keys, caps: Caps | None, names: list[str]) -> None:
    """Read what is counted of a user, and store a decision of one of many items, for each name."""
    commit = GroupCommit(redis)
    writer, rows = DecisionWriter(commit, buffer=0), np.zeros((1, D), np.float32)

    async def one(number: int, name: str) -> None:
        user, counted = f"u{number % USERS}", None
        if caps is not None:
            (await limits.read_counted(commit, keys, user, caps)).is_capped(caps)
            counted = limits.Limits(caps, user, {})
        made = decision_of(name, [f"item-{number // USERS % 1000}"], user_id=user)
        await writer.append(PendingDecision(keys, made, rows, [{}], 60_000, limits=counted))

    for start in range(0, len(names), AT_ONCE):
        await asyncio.gather(*(one(start + at, name) for at, name in enumerate(names[start : start + AT_ONCE])))


async def measure(url: str, n: int) -> None:
    redis = connect(url, name="bench", timeout_s=30)
    keys, meter = await store_loop(redis, loop_of()), Meter(redis)
    for what, kept in (("no caps", 0), ("caps, 40 to 50 items kept of a user", 50), ("caps, 380 to 500", 500)):
        caps = Caps.model_validate({"impressions": [{"most": 5, "within": 3600.0}], "kept": kept}) if kept else None
        await store(redis, keys, caps, [f"before-{kept}-{i}" for i in range(kept * USERS)])
        await meter.start()
        await store(redis, keys, caps, [f"{kept}-{i}" for i in range(n)])
        print(f"{what:38} {await meter.per(n)} a decision")
    for count in (1, 10, limits.AT_ONCE):
        budgets = {f"item-{i}": Budget(impressions=1000) for i in range(count)}
        await meter.start()
        for _ in range(n // 100):
            held = await limits.hold_budgets(redis, keys, budgets)
            await limits.grant_budgets(redis, keys, budgets, held, wanted=True)
        print(f"{f'{count} budgets':38} {await meter.per(n // 100)} a look, one a second and worker")
    await redis.aclose()


def test_cost_of_limits(tmp_path: Path, quick: bool) -> None:
    with EmbeddedRedis(tmp_path) as redis:
        asyncio.run(measure(redis.url, 200 if quick else 5000))
