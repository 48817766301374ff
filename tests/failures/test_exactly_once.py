"""Nothing acknowledged is lost, nothing counts twice: without faults, and under kill -9 of each part."""

from __future__ import annotations

import asyncio
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from service.admin.audit import audit_learning, audit_states
from service.records import Event, Successor
from service.store import event_log
from service.store.activity_log import scan_log
from service.store.connection import connect
from tests.failures.traffic import Account, Traffic
from tests.processes import Served, alive
from tests.waiting import until

pytestmark = [pytest.mark.anyio, pytest.mark.slow]
LOOP = "mixed"
POLICIES = ("adaptive", "linucb", "popularity", "random")


def prepare(url: str, wait_time: float, *, fit_schema: bool = True) -> None:
    with httpx.Client(base_url=url, timeout=30) as client:
        # However slow the machine is, no early report is given up, and no decision forgotten before its last report.
        made = {"wait_time": wait_time, "fit_schema": fit_schema, "early_time": 3600, "ledger_time": 86_400}
        client.put(f"/loops/{LOOP}", json=made).raise_for_status()
        items = [{"id": f"p{i}", "features": {"category": "ab"[i % 2]}} for i in range(10)]
        client.post("/items", params={"loop": LOOP}, json={"items": items}).raise_for_status()
        for name in POLICIES:
            client.post("/policies", params={"loop": LOOP}, json={"name": name, "kind": name}).raise_for_status()
        client.post("/policies/linucb/activate", params={"loop": LOOP}).raise_for_status()


def status(url: str) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(f"{url}/status", timeout=10).json()["loops"].get(LOOP, {})
    return found


async def settled(url: str, n: int) -> None:
    """Every decision has its event, and every policy has learned them all."""

    def there() -> bool:
        try:
            now = status(url)
        except (httpx.HTTPError, ValueError):
            return False
        if not now or now["pending"] or now["events"] < n:
            return False
        return all(now["policies"][name]["events"] == now["events"] for name in POLICIES)

    await asyncio.to_thread(until, there, "all events are in the log and learned", within_s=120)


async def check(served: Served, account: Account) -> None:
    """The account of the client against the log, the counters and the learned states."""
    url = served.url
    await settled(url, len(account.decided))
    redis = connect(served.redis_url, name="test", timeout_s=10)
    events: Counter[str] = Counter()
    rewards: dict[str, float] = {}
    slate_positions: list[int | None] = []
    defaults = 0
    seen: set[str] = set()  # decisions for which the user's state was read
    async for entries in event_log.scan(redis, served.keys(LOOP)):
        for event in entries:
            if isinstance(event, Successor):  # a schema that the service fitted
                continue
            assert isinstance(event, Event)
            events[event.decision_id] += 1
            rewards[event.decision_id] = event.reward
            defaults += event.source == "default"
            slate_positions.append(event.slate_position)
            seen |= set() if event.seen is None else {event.decision_id}
    now = status(url)
    print(
        f"decisions {len(account.decided)}, answers {dict(account.answers)}, retries {account.retries}; log: "
        f"{sum(events.values())} events = {len(account.rewards)} distinct accepted + {defaults} defaults; "
        f"learned: { {name: now['policies'][name]['events'] for name in POLICIES} }"
    )
    assert set(events) == account.decided
    assert set(events.values()) == {1}
    assert sorted(slate_positions, key=lambda at: -1 if at is None else at) == list(range(len(slate_positions)))
    assert sum(events.values()) == len(account.rewards) + defaults == now["events"] == now["joined"] + now["defaulted"]
    assert {decision: rewards[decision] for decision in account.rewards} == account.rewards
    assert now["early_waiting"] + now["unknown"] >= account.lost > 0, "after a cut answer one is sent, and kept, twice"
    assert account.answers["early"] > 0
    assert {now["policies"][name]["events"] for name in POLICIES} == {sum(events.values())}
    assert await audit_learning(redis, LOOP) == dict.fromkeys(POLICIES, True)
    await check_activity(served, redis, account, seen)
    await redis.aclose()


async def check_activity(served: Served, redis: Redis, account: Account, seen: set[str]) -> None:
    """What was accepted is logged, each once, and every state that was served is what the log folds to."""
    logged: dict[str, list[int]] = {}
    async for batch in scan_log(redis, served.keys(LOOP)):
        for one in batch:
            logged.setdefault(one.user, []).append(one.number)
    now = status(served.url)
    states = await audit_states(redis, LOOP, most=10 * len(account.decided))
    print(f"activity {now['activity']} accepted = {now['activity_logged']} logged; states: {states.same} the same")
    assert {user: list(range(1, count + 1)) for user, count in account.activity.items()} == logged
    assert now["activity"] == now["activity_logged"] == now["activity_held"] == account.activity.total()
    assert now["activity_duplicate"] > 0
    assert (states.same, states.different, states.gone) == (len(seen), [], 0)
    assert len(seen) > 0.8 * len(account.decided)


def decisions(size: float) -> int:
    """Number of decisions of one run: 20 000 in the full size, whose figures the docs name; at 5 it is 100 000."""
    return 220 if size < 0.1 else round(20_000 * size)


async def test_mixed_feedback_and_a_restart(data: Path, size: float) -> None:
    """Without faults of ours; then Ctrl-C, and what was learned is there again."""
    with Served(data, workers=2) as served:
        # Without fits: one that came after the last event would make one more version, at any moment.
        prepare(served.url, wait_time=3, fit_schema=False)
        account = await Traffic(served.url, LOOP, decisions(size)).run()
        assert account.answers["duplicate"] > 0.1 * len(account.decided)
        assert account.answers["404"]
        assert account.answers["422"]
        await check(served, account)
        before = status(served.url)["policies"]
        assert served.stop() == 0
    with Served(data) as again:
        after = status(again.url)["policies"]
        assert {p: after[p]["events"] for p in POLICIES} == {p: before[p]["events"] for p in POLICIES}
        assert after["linucb"]["version"] == before["linucb"]["version"] > 0
        reply = httpx.post(f"{again.url}/recommend", json={"loop": LOOP}).json()
        assert reply["version"] == after["linucb"]["version"]


def _flows(traffic: Traffic, running: asyncio.Task[Account], mark: int) -> bool:
    return traffic.done >= mark or running.done()


def _dead(pid: int) -> bool:
    return not alive(pid)


@pytest.mark.parametrize("victims", [("learn", "api"), ("everything",)])
async def test_kill_9(data: Path, size: float, victims: tuple[str, ...]) -> None:
    """Kills spread over the run; `always`, because this test also takes away Redis, between two of its fsyncs."""
    kills = max(1, round(10 * size)) * len(victims)
    served = Served(data, workers=2, REBOUND_FSYNC="always")
    served.start()
    try:
        prepare(served.url, wait_time=4)
        traffic = Traffic(served.url, LOOP, decisions(size))
        running = asyncio.create_task(traffic.run())
        for kill in range(kills):
            mark = traffic.n * (kill + 1) // (kills + 1)
            flows = partial(_flows, traffic, running, mark)
            await asyncio.to_thread(until, flows, "traffic flows", within_s=600)
            assert not running.done(), "the traffic ended before the kills did"
            victim = victims[kill % len(victims)]
            if victim == "everything":
                await asyncio.to_thread(served.kill_everything)
                await asyncio.to_thread(served.start)
            else:
                pid = served.kill(f"-m service {victim}")
                await asyncio.to_thread(until, partial(_dead, pid), "it is dead")
                await asyncio.to_thread(until, served.ready, "the service is ready again", within_s=60)
        await check(served, await running)
        assert served.stop() == 0
    finally:
        if served.process.poll() is None:
            served.kill_everything()
