"""What a large catalogue costs a worker: to adopt all of it, and to adopt one change.

make bench ARGS=tests/benchmarks/test_large_catalogues.py

Times are CPU of the process. Changes of the small and of the large catalogue take turns; the ratio is that of medians.
"""

from __future__ import annotations

import gc
import statistics
import time
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from service.admin.loops import new_record
from service.loop import LoopSettings
from service.represent.schema import FeatureSchema
from service.serve.follower import Follower
from service.store import item_store, loop_store
from service.store.keys import Keys

pytestmark = pytest.mark.anyio

BATCH, CHANGES = 1000, 30


def items(start: int, count: int) -> dict[str, dict[str, Any]]:
    """Make items of four fields: two of levels, a number, a boolean."""
    return {
        f"sku-{i:07d}": {
            "category": f"category {i * 7919 % 200}",
            "brand": f"brand {i * 104729 % 5000}",
            "price": round(1 + (i * 31337 % 100000) / 100, 2),
            "in_stock": i % 7 != 0,
        }
        for i in range(start, start + count)
    }


def private_mb() -> float:
    """Return the memory of this process that it shares with no other, in MB."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private")) / 1024


async def sent_mb(redis: Redis) -> float:
    return float((await redis.info("stats"))["total_net_output_bytes"]) / 1e6


async def filled(redis: Redis, n: int) -> Keys:
    record = new_record(f"large-{n}", LoopSettings(), FeatureSchema())
    assert await loop_store.create_loop(redis, record)
    keys = Keys(record.name, record.id)
    for start in range(0, n, BATCH):
        await item_store.change_items(redis, keys, items(start, BATCH))
    return keys


async def cpu(follower: Follower, keys: Keys) -> float:
    started = time.process_time()
    await follower.refresh(keys.loop)
    return time.process_time() - started


@pytest.mark.parametrize("scanned", [False, True], ids=["items are named", "all items are candidates"])
async def test_a_change_costs_what_changed(quiet_redis: Redis, quick: bool, *, scanned: bool) -> None:
    sizes = (1000, 10_000) if quick else (1000, 100_000)
    follower = Follower(quiet_redis, "bench")
    loops = []
    for n in sizes:
        keys = await filled(quiet_redis, n)
        gc.collect()
        before, read = private_mb(), await sent_mb(quiet_redis)
        whole = await cpu(follower, keys)
        read = await sent_mb(quiet_redis) - read
        gc.collect()
        print(f"\n{n:,} items: {whole:.2f} s to adopt, {read:.1f} MB read, {private_mb() - before:.0f} MB of memory")
        if scanned:
            assert len(follower.loop(keys.loop).catalogue.whole) == n
        loops.append((keys, whole))
    costs: dict[int, list[float]] = {n: [] for n in sizes}
    read = await sent_mb(quiet_redis)
    for number in range(CHANGES):
        for n, (keys, _) in zip(sizes, loops, strict=True):
            await item_store.change_items(quiet_redis, keys, {f"sku-{number:07d}": {"category": f"new {number}"}})
            costs[n].append(await cpu(follower, keys))
    small, large = (statistics.median(costs[n]) for n in sizes)
    read = 1e3 * (await sent_mb(quiet_redis) - read) / (CHANGES * len(sizes))
    print(
        f"one change: {1e3 * small:.2f} ms of {sizes[0]:,} items, {1e3 * large:.2f} ms of {sizes[1]:,}, {read:.1f} kB"
    )
    print(f"the ratio is {large / small:.1f}; all of the large catalogue cost {loops[1][1] / large:,.0f} changes")
    for keys, _ in loops:
        await loop_store.delete_loop(quiet_redis, keys.loop)
    if not quick:
        assert large / small < (30 if scanned else 2)
        assert loops[1][1] / large > (5 if scanned else 50)
