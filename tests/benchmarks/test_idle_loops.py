"""CPU of an API worker, a learner and Redis while nothing happens, by the number of loops.

    make bench ARGS=tests/benchmarks/test_idle_loops.py
    COMPARE_WITH=../rebound-before make bench ARGS=tests/benchmarks/test_idle_loops.py

Each loop has a policy that has learned five events. The processes run on the Python of this checkout, in which the code
of the other one needs to run as well. Shares are of one core, over 20 seconds or more.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

from redis.asyncio import Redis

from service.run.embedded import EmbeddedRedis
from service.store import event_log, loop_store, policy_store
from service.store.connection import connect
from service.store.keys import Keys
from tests.benchmarks.test_cpu_per_request import HERE, cpu_seconds
from tests.builders import event_of, import_of, loop_of, policy_of
from tests.processes import free_port
from tests.waiting import until, until_async

LOOPS = (1, 50, 300, 1000)
SETTLE_S, MEASURED_S = 15.0, 30.0  # three looks at everything
EVENTS = 5


async def fill(redis: Redis, first: int, n: int) -> None:
    """Make n loops, each with a policy and some events."""
    for number in range(first, first + n):
        loop = loop_of(f"idle-{number}")
        keys = Keys(loop.name, loop.id)
        await loop_store.create_loop(redis, loop)
        await policy_store.create_policy(redis, keys, policy_of("linucb"), serve_alone=True)
        events = import_of([event_of(event) for event in range(EVENTS)])
        await event_log.append_imported(redis, keys, events, remember=1000)


async def learned(redis: Redis) -> bool:
    for name in await loop_store.loop_names(redis):
        keys = Keys(name, (await loop_store.read_loop(redis, name)).id)
        for policy in await policy_store.policy_names(redis, keys):
            if name != "default" and (await policy_store.read_policy(redis, keys, policy)).events != EVENTS:
                return False
    return True


async def prepare(url: str, first: int, n: int) -> None:
    redis = connect(url, name="test", timeout_s=5)
    await fill(redis, first, n)
    await until_async(lambda: learned(redis), f"{n} loops are learned", within_s=300)
    await redis.aclose()


def measure(
    checkout: Path, folder: Path, counts: tuple[int, ...], seconds: float, settle_s: float
) -> list[list[float]]:
    """Return, for each number of loops, the percent of a core of worker, learner and Redis."""
    folder.mkdir()
    found = []
    with ExitStack() as stack:
        redis = stack.enter_context(EmbeddedRedis(folder / "redis"))
        assert redis.process is not None
        env = {**os.environ, "REBOUND_REDIS_URL": redis.url, "PYTHONPATH": str(checkout)}
        pids = []
        for name, command in (("api", ["api", "--port", str(free_port())]), ("learn", ["learn"])):
            log = stack.enter_context((folder / f"{name}.log").open("wb"))
            start = [sys.executable, "-m", "service", *command]
            process = subprocess.Popen(start, env=env, cwd=checkout, stdout=log, stderr=log)
            stack.callback(process.wait, 60)
            stack.callback(process.terminate)
            pids.append(process.pid)
        until(lambda: (folder / "redis" / "redis.sock").exists(), "Redis is there")
        there = 0
        for n in counts:
            asyncio.run(prepare(redis.url, there, n - there))
            there = n
            time.sleep(settle_s)
            measured = [*pids, redis.process.pid]
            before, began = [cpu_seconds(pid) for pid in measured], time.monotonic()
            time.sleep(seconds)
            wall = time.monotonic() - began
            found.append([100 * (cpu_seconds(pid) - was) / wall for pid, was in zip(measured, before, strict=True)])
    return found


def test_idle_loops(tmp_path: Path, quick: bool) -> None:
    counts = LOOPS[:2] if quick else LOOPS
    seconds, settle_s = (2.0, 6.0) if quick else (MEASURED_S, SETTLE_S)
    checkouts = {"this": HERE}
    if other := os.environ.get("COMPARE_WITH"):
        checkouts["other"] = (HERE / other).resolve()
    found = {
        name: measure(checkout, tmp_path / name, counts, seconds=seconds, settle_s=settle_s)
        for name, checkout in checkouts.items()
    }
    print(f"\npercent of a core while nothing happens, over {seconds:g} s\n{'loops':>6}")
    for name, rows in found.items():
        for n, (api, learner, redis) in zip(counts, rows, strict=True):
            total = api + learner + redis
            print(f"{n:6} {name:6} API {api:5.2f}   learner {learner:5.2f}   Redis {redis:5.2f}   all {total:5.2f}")
    assert quick or all(sum(row) <= (0.5 if n == 1 else 5.0) for n, row in zip(counts, found["this"], strict=True))
