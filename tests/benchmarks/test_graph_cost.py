"""Measures what edges cost: CPU of the keeper and of its Redis, bytes of an edge, and CPU of reading in a decision.

make bench ARGS=tests/benchmarks/test_graph_cost.py

Every user knows 20 others, drawn at random among a hundred that are near, and has done five things. CPU times are of
this process, and of Redis as it says itself: other work on the machine disturbs them less than it does a clock.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from statistics import median

import pytest
from redis.asyncio import Redis
from rich.console import Console
from rich.table import Table

from service.learn.graph_keeper import GraphKeeper
from service.loop import LoopSettings
from service.run.embedded import EmbeddedRedis
from service.serve.activity import ActivityKeeper
from service.store import edges, graph_store, item_store, loop_store
from service.store.activity import Sent, take_activity
from service.store.connection import connect
from service.store.edges import SentEdge, take_edges
from service.store.group_commit import GroupCommit
from service.store.keys import Keys
from tests.builders import loop_of, store_loop
from tests.decide.builders import active_of
from tests.serve.stand_ins import Follows

NODES, QUICK_NODES = (500, 2_000), (200,)
FRIENDS, NEAR, DEEDS = 20, 100, 5
BATCH = 50  # users that are sent at once
READS, AT_ONCE, ROUNDS = 320, 32, 9
SETTINGS = LoopSettings()

pytestmark = pytest.mark.anyio


async def costs(redis: Redis, work: Callable[[], Awaitable[object]]) -> tuple[float, float]:
    """Return the CPU seconds of this process and of Redis that some work takes."""

    async def of_redis() -> float:
        told = await redis.info("cpu")
        return float(told["used_cpu_user"]) + float(told["used_cpu_sys"])

    before, own = await of_redis(), time.process_time()
    await work()
    return time.process_time() - own, await of_redis() - before


async def used(redis: Redis) -> int:
    return int((await redis.info("memory"))["used_memory"])


async def a_graph(redis: Redis, keys: Keys, n: int) -> None:
    draws, commit = random.Random(1), GroupCommit(redis)
    users = [f"user-{number}" for number in range(n)]
    for first in range(0, n, BATCH):
        sent = {}
        for at in range(first, min(first + BATCH, n)):
            near = [users[(at + 1 + step) % n] for step in draws.sample(range(min(NEAR, n - 1)), FRIENDS)]
            sent[users[at]] = [SentEdge(users[at], to, "friend", 1.0) for to in near]
        await take_edges(commit, keys, SETTINGS, sent)


async def deeds(redis: Redis, keys: Keys, n: int) -> None:
    draws, commit = random.Random(2), GroupCommit(redis)
    for first in range(0, n, BATCH):
        done = {
            f"user-{at}": [Sent(f"user-{at}", f"p{draws.randrange(100)}", "buy") for _ in range(DEEDS)]
            for at in range(first, min(first + BATCH, n))
        }
        await take_activity(commit, keys, SETTINGS, done, edges=True)


async def measure(redis: Redis, n: int) -> list[float]:
    """Return, per 1000 users: CPU ms of link, ours and Redis's; of fields, ours and Redis's; bytes of an edge."""
    record = loop_of()
    keys = await store_loop(redis, record)
    await loop_store.begin(redis, keys, "edges")
    await item_store.change_items(redis, keys, {f"p{i}": {"kind": f"k{i % 9}", "price": i} for i in range(100)})
    before = await used(redis)
    await a_graph(redis, keys, n)
    linking = await costs(redis, lambda: edges.link_pending(GroupCommit(redis), redis, keys))
    bytes_of_edge = (await used(redis) - before) / (n * FRIENDS)
    await deeds(redis, keys, n)
    keeper = GraphKeeper(redis, keys)
    assert await keeper.open()
    computing = await costs(redis, keeper.drain)
    assert await graph_store.count_waiting(redis, keys) == (0, 0)
    [fields] = (await graph_store.fields_of(redis, keys, ["user-1"])).values()
    assert fields["friends"] == FRIENDS
    await loop_store.remove_keys(redis, keys)
    return [*(1e6 * seconds / n for seconds in (*linking, *computing)), bytes_of_edge]


async def reads(redis: Redis, *, activity: bool, edges: bool) -> Callable[[int], Awaitable[None]]:
    """Return what reads what is known of users, so many at once, in a loop that has activity, or edges, or both."""
    record = loop_of()
    keys = await store_loop(redis, record)
    await deeds(redis, keys, AT_ONCE + NEAR)
    if edges:
        await a_graph(redis, keys, AT_ONCE + NEAR)
        keeper = GraphKeeper(redis, keys)
        assert await keeper.open()
        await keeper.drain()
    if not activity:
        await redis.delete(*(keys.partition().activity(f"user-{at}") for at in range(AT_ONCE)))
    active = active_of(50, name=record.name)
    object.__setattr__(active, "id", record.id)
    object.__setattr__(active, "activity", activity)
    object.__setattr__(active, "edges", edges)
    reader = ActivityKeeper(Follows(active), redis, GroupCommit(redis))

    async def read(at_once: int) -> None:
        for _ in range(READS // at_once):
            asked = (reader.with_state({"hour": 3}, f"user-{at}", active, at=1) for at in range(at_once))
            found = await asyncio.gather(*asked)
            assert ("@graph" in found[0][0], "@user" in found[0][0]) == (edges, activity)

    return read


async def test_costs_of_edges(tmp_path: Path, quick: bool) -> None:
    table = Table("users", "link, ms CPU / 1000", "Redis", "fields, ms CPU / 1000", "Redis", "bytes / edge")
    with EmbeddedRedis(tmp_path / "redis") as server:
        redis = connect(server.url, name="test", timeout_s=60)
        try:
            for n in QUICK_NODES if quick else NODES:
                table.add_row(f"{n:,}", *(f"{value:,.0f}" for value in await measure(redis, n)))
            Console(width=120).print(table)
            readers = {
                "activity": await reads(redis, activity=True, edges=False),
                "edges": await reads(redis, activity=False, edges=True),
                "both": await reads(redis, activity=True, edges=True),
            }
            for at_once in (1, AT_ONCE):
                found: dict[str, list[float]] = {name: [] for name in readers}
                for _ in range(2 if quick else ROUNDS):
                    for name, read in readers.items():
                        own, _ = await costs(redis, partial(read, at_once))
                        found[name].append(1e6 * own / READS)
                print(f"{at_once} at once, µs CPU a read:", {name: round(median(us)) for name, us in found.items()})
                assert median(found["both"]) > 0
        finally:
            await redis.aclose()
