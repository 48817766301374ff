"""Open-loop load test: requests start at scheduled times, whether or not the service keeps up.

Arrival times are drawn beforehand (Poisson). Latency counts from the intended start, so a stall shows in every request
that it delays. Failures and time-outs are samples, too.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import numpy as np
from hdrh.histogram import HdrHistogram
from rich.table import Table

from simulator.client import ServiceClient
from simulator.contestants import PolicySpec
from simulator.errors import ServiceError
from simulator.kinds import check_kinds
from simulator.progress import Advance, Stages
from simulator.world import WORLDS, Moment, World

LONGEST_US = 600_000_000  # upper bound of the histograms: 10 min, to 3 digits
PERCENTILES = (50, 90, 95, 99, 99.9)
FEEDBACK_DELAY_S = 0.3  # mean time from a reply to its feedback


@dataclass(frozen=True)
class LoadPlan:
    """Settings of a load test.

    Args:
        policy: serves all recommendations.
        rate: recommendations per second, > 0.
        seconds: time during which new requests start, > 0.
        feedback: share of the answered recommendations that get feedback, in [0, 1].
    """

    policy: PolicySpec
    rate: float = 200.0
    seconds: float = 20.0
    feedback: float = 0.5
    seed: int = 1
    world: str = "petshop"


class RouteStatistics:
    """Counts and latencies of the requests to one route."""

    def __init__(self) -> None:
        self.latency_us = HdrHistogram(1, LONGEST_US, 3)
        self.failures: Counter[str] = Counter()
        self.sent = 0
        self.last = 0.0  # perf_counter of the last answer

    async def measure(self, intended: float, request: Awaitable[Any]) -> Any:
        """Return the reply, None if the request failed.

        Args:
            intended: the time at which the request should have started (perf_counter).
        """
        self.sent += 1
        reply = None
        try:
            reply = await request
        except ServiceError as error:
            self.failures[type(error).__name__] += 1
        self.last = time.perf_counter()
        us = int((self.last - intended) * 1e6)
        self.latency_us.record_value(min(max(us, 1), LONGEST_US))
        return reply

    def figures(self) -> dict[str, Any]:
        """Return the counts, and the latencies in ms."""
        h = self.latency_us
        percentiles = {f"p{p:g}": h.get_value_at_percentile(p) / 1000 for p in PERCENTILES} if self.sent else {}
        return {
            "requests": self.sent,
            "failed": self.failures.total(),
            "failures": dict(self.failures),
            "latency_ms": {**percentiles, "max": h.get_max_value() / 1000, "mean": h.get_mean_value() / 1000}
            if self.sent
            else {},
        }


def arrivals(rate: float, seconds: float, seed: int) -> list[float]:
    """Draw the start of every request, in seconds from the beginning: a Poisson process."""
    generator = np.random.default_rng([seed, 1])
    most = int(rate * seconds + 10 * (rate * seconds) ** 0.5 + 10)  # ten standard deviations more than expected
    times = np.cumsum(generator.exponential(1 / rate, most))
    found: list[float] = times[times < seconds].tolist()
    return found


async def run_load(client: ServiceClient, plan: LoadPlan, stages: Stages) -> dict[str, Any]:
    """Test the service in a new loop, delete the loop, and return every figure.

    Raises:
        ServiceError: the loop cannot be set up. A request that fails under load is counted instead.
        UsageError: the service lacks the kind of the policy.
    """
    check_kinds([plan.policy], await client.kinds())
    world = WORLDS[plan.world](plan.seed)
    loop = f"load-{uuid4().hex[:8]}"
    await client.put_loop(loop, world.settings)
    try:
        await client.put_items(loop, world.catalogue(0).items)
        await client.create_policy(loop, plan.policy.kind, plan.policy.kind, plan.policy.params)
        await client.activate(loop, plan.policy.kind)
        times = arrivals(plan.rate, plan.seconds, plan.seed)
        with stages.stage(f"{plan.rate:g} recommendations/s for {plan.seconds:g} s", len(times)) as advance:
            test = LoadTest(client, loop, world, plan)
            await test.run(times, advance)
    finally:
        await client.delete_loop(loop)
    recommend = test.routes["/recommend"]
    answered = recommend.sent - recommend.failures.total()
    seconds = max(recommend.last - test.began, plan.seconds)
    return {
        "settings": {
            "url": client.url,
            "rate": plan.rate,
            "seconds": plan.seconds,
            "feedback": plan.feedback,
            "seed": plan.seed,
            "policy": str(plan.policy),
            "world": plan.world,
        },
        "seconds": seconds,
        "answered_per_s": answered / seconds,
        "started_late_ms": {f"p{p:g}": test.late_us.get_value_at_percentile(p) / 1000 for p in PERCENTILES},
        "routes": {path: route.figures() for path, route in test.routes.items()},
    }


class LoadTest:
    """One load test of one loop."""

    def __init__(self, client: ServiceClient, loop: str, world: World[Any], plan: LoadPlan) -> None:
        self._client, self._loop, self._world = client, loop, world
        self._generator = np.random.default_rng([plan.seed, 2])
        self._feedback = plan.feedback
        self.routes = {"/recommend": RouteStatistics(), "/feedback": RouteStatistics()}
        self.late_us = HdrHistogram(1, LONGEST_US, 3)  # delay of the simulator itself against the intended starts
        self.began = 0.0  # perf_counter

    async def run(self, times: list[float], advance: Advance) -> None:
        """Send all requests and wait for the last reply."""
        self.began = began = time.perf_counter()
        async with asyncio.TaskGroup() as going:
            for step, at in enumerate(times):
                moment = self._world.at(step)
                delay = float(self._generator.exponential(FEEDBACK_DELAY_S))
                reports = bool(self._generator.random() < self._feedback)
                if (pause := began + at - time.perf_counter()) > 0:
                    await asyncio.sleep(pause)
                self.late_us.record_value(max(1, int((time.perf_counter() - began - at) * 1e6)))
                going.create_task(self._visit(moment, began + at, delay if reports else None))
                advance(1)

    async def _visit(self, moment: Moment, intended: float, delay: float | None) -> None:
        """Request a recommendation and, unless `delay` is None, send its feedback after `delay` seconds."""
        request = self._client.recommend(self._loop, moment.visit.user_id, moment.visit.context)
        reply = await self.routes["/recommend"].measure(intended, request)
        if reply is None or delay is None:
            return
        intended = time.perf_counter() + delay
        await asyncio.sleep(delay)
        report = reply.report(moment.outcome(reply.item_id)[1])
        await self.routes["/feedback"].measure(intended, self._client.feedback(self._loop, [report]))


def table(figures: dict[str, Any]) -> Table:
    """Lay out the figures for the terminal."""
    settings = figures["settings"]
    title = f"{figures['answered_per_s']:,.0f} recommendations/s answered of {settings['rate']:,.0f}/s asked"
    late = figures["started_late_ms"]["p99"]
    shown = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        caption="Latency in ms from the intended start, failures included. The simulator started requests "
        f"{late:.1f} ms late (p99); if that is not small, the simulator was the bottleneck.",
    )
    shown.caption_justify = "left"
    shown.add_column("route")
    for column in ("requests", "failed", *(f"p{p:g}" for p in PERCENTILES), "max"):
        shown.add_column(column, justify="right")
    for path, route in figures["routes"].items():
        latency = [f"{route['latency_ms'][f'p{p:g}']:.1f}" if route["latency_ms"] else "" for p in PERCENTILES]
        longest = f"{route['latency_ms']['max']:.1f}" if route["latency_ms"] else ""
        shown.add_row(path, f"{route['requests']:,}", f"{route['failed']:,}", *latency, longest)
    return shown
