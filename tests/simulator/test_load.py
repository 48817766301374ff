"""Open loop: a stall shows in every request that it delays, and failures are samples."""

from __future__ import annotations

import asyncio
import io
import time

import numpy as np
import orjson
import pytest
from rich.console import Console

from simulator.client import ServiceClient
from simulator.contestants import PolicySpec
from simulator.load import LoadPlan, arrivals, run_load, table
from tests.simulator.builders import DECISION, StandIn, client_of, loops_of, stages
from tests.simulator.servers import reply

pytestmark = pytest.mark.anyio

POLICY = PolicySpec("linucb")


def test_arrivals_are_a_poisson_process_and_drawn_beforehand() -> None:
    times = arrivals(1000, 20, seed=1)
    assert times == arrivals(1000, 20, seed=1) != arrivals(1000, 20, seed=2)
    assert times[0] > 0
    assert times[-1] < 20
    gaps = np.diff(times)
    assert (gaps > 0).all()
    assert len(times) == pytest.approx(20_000, abs=4 * 20_000**0.5)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05), "exponential"


async def test_latency_counts_from_the_intended_start_when_the_server_stalls() -> None:
    service, stalled_until = StandIn(), 0.0

    async def stalling(head: bytes, body: bytes) -> bytes:
        """Answers at once, but for one stall of 0.6 s that holds up all requests."""
        nonlocal stalled_until
        if b"/recommend" not in head:
            return await service(head, body)
        stalled_until = stalled_until or time.monotonic() + 0.6
        await asyncio.sleep(max(0.0, stalled_until - time.monotonic()))
        return reply(orjson.dumps(DECISION))

    plan = LoadPlan(POLICY, rate=200, seconds=1.5, feedback=0)
    # One connection: requests wait for it while the server is stalled, as they do behind any full server.
    async with client_of(stalling, connections=1) as client:
        figures = await run_load(client, plan, stages())
    latency = figures["routes"]["/recommend"]["latency_ms"]
    requests = figures["routes"]["/recommend"]["requests"]
    assert requests == len(arrivals(200, 1.5, seed=1))
    # 0.6 of 1.5 s were stalled: so were 40 % of the requests, by 300 ms on average
    assert latency["max"] > 550
    assert latency["p90"] > 300
    assert latency["p50"] < 300


async def test_failures_and_time_outs_are_samples() -> None:
    service, asked = StandIn(), 0

    async def unreliable(head: bytes, body: bytes) -> bytes:
        nonlocal asked
        if b"/recommend" not in head:
            return await service(head, body)
        asked += 1
        if asked % 3 == 0:
            return reply(b'{"code": "store_unavailable", "detail": "gone"}', "503 Service Unavailable")
        if asked % 3 == 1:
            await asyncio.sleep(5)
        return reply(orjson.dumps(DECISION))

    plan = LoadPlan(POLICY, rate=100, seconds=1, feedback=1)
    async with client_of(unreliable, timeout_s=0.2) as client:
        figures = await run_load(client, plan, stages())
    recommend, feedback = figures["routes"]["/recommend"], figures["routes"]["/feedback"]
    assert set(recommend["failures"]) == {"Failing", "TooSlow"}
    assert recommend["failed"] == pytest.approx(recommend["requests"] * 2 / 3, abs=1)
    assert feedback["requests"] == recommend["requests"] - recommend["failed"] > 0
    assert feedback["failed"] == 0
    assert recommend["latency_ms"]["p90"] >= 199, "a time-out counts as long as it took"
    shown = Console(file=io.StringIO(), width=120)
    shown.print(table(figures))
    assert "/recommend" in shown.file.getvalue()  # type: ignore[attr-defined]


async def test_against_the_service(service: str) -> None:
    async with ServiceClient(service) as client:
        before = set(await loops_of(client, "load-"))
        figures = await run_load(client, LoadPlan(POLICY, rate=100, seconds=1), stages())
        assert set(await loops_of(client, "load-")) == before, "the loop is deleted"
    assert figures["routes"]["/recommend"]["failed"] == figures["routes"]["/feedback"]["failed"] == 0
    assert figures["routes"]["/feedback"]["requests"] > 20
    assert 70 < figures["answered_per_s"] < 140
