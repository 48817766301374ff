"""Memory and time of `rebound export` and `rebound import`, for a log and for one ten times as long.

EXPORT_EVENTS=200000 make bench ARGS=tests/benchmarks/test_export.py
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from service.store.connection import connect
from service.store.keys import LOOPS, Keys
from tests.builders import event_of, fields_of, loop_of, store_loop

MOST = int(os.environ.get("EXPORT_EVENTS", 100_000))


async def fill(url: str, name: str, events: int) -> None:
    """Store a loop with a log of so many events over ten days; each has a context, features and a row of 32 columns."""
    async with connect(url, name="bench", timeout_s=60) as redis:
        keys: Keys = await store_loop(redis, loop_of(name))
        await redis.sadd(LOOPS, name)
        row = np.random.default_rng(0).normal(size=32)
        context = {"segment": "cats", "hour": 14, "device": {"os": "ios", "premium": True}}
        event = event_of(x=row, context=context, features={"kind": "toy", "price": 4.5})
        event = replace(event, source="feedback", policy="linucb")
        for first in range(0, events, 1000):
            async with redis.pipeline(transaction=False) as pipe:
                for number in range(first, min(first + 1000, events)):
                    one = replace(event, decision_id=f"d{number}", user=f"u{number % 1000}")
                    at = 1_790_000_000_000 + number * (864_000_000 // events)
                    pipe.xadd(keys.partition().events, dict(fields_of(one)), id=f"{at}-{number % 1000}")
                await pipe.execute()


def run(*words: str) -> tuple[float, float]:
    """Run a command; return its seconds and the most memory that it had, in MB."""
    started = time.monotonic()
    process = subprocess.Popen([sys.executable, "-m", "service", *words], stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return time.monotonic() - started, used.ru_maxrss / 1000


def test_memory_does_not_grow_with_the_log(quiet_redis_url: str, tmp_path: Path) -> None:
    memory: dict[str, list[float]] = {}
    for events in (MOST // 10, MOST):
        asyncio.run(fill(quiet_redis_url, f"log-{events}", events))
        asyncio.run(fill(quiet_redis_url, f"copy-{events}", 0))
        for name in (f"{events}", f"{events}.dsjson"):
            path = tmp_path / name
            for what, loop in (("export", "log"), ("import", "copy")):
                if what == "import" and name.endswith(".dsjson"):
                    continue
                seconds, most = run(what, str(path), "--loop", f"{loop}-{events}", "--redis", quiet_redis_url)
                size = sum(file.stat().st_size for file in [path, *path.rglob("*")] if file.is_file())
                memory.setdefault(f"{what} {path.suffix or 'parquet'}", []).append(most)
                print(f"{what} {name}: {seconds:.1f} s, {size / 1e6:.1f} MB of files, {most:.0f} MB of memory")
    for what, (few, many) in memory.items():
        assert many < few + 60, what
