"""Open-loop load: requests start when the schedule says so, whether or not the service keeps up.

Arrival times are drawn beforehand (Poisson). Latency counts from the intended start, so a stall shows in every request
that it delays; failures and time-outs are samples like all others.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import numpy as np
from hdrh.histogram import HdrHistogram
from rich.table import Table

from simulator.client import Service
from simulator.contestants import PolicySpec
from simulator.errors import ServiceError
from simulator.progress import Advance, Stages
from simulator.world import WORLDS, Moment, World

LONGEST_US = 600_000_000  # what the histograms can hold: 10 min, to 3 digits
PERCENTILES = (50, 90, 95, 99, 99.9)
THINKING_S = 0.3  # mean time from a reply to its feedback


@dataclass(frozen=True)
class LoadPlan:
    """What to send.

    Args:
        rate: recommendations per second, > 0.
        seconds: how long new ones start.
        feedback: share of the answered ones that get a feedback, in [0, 1].
    """

    rate: float = 200.0
    seconds: float = 20.0
    feedback: float = 0.5
    seed: int = 1
    policy: PolicySpec = field(default_factory=lambda: PolicySpec("linucb"))
    world: str = "petshop"


class Route:
    """What became of the requests to one route."""

    def __init__(self) -> None:
        self.latency_us = HdrHistogram(1, LONGEST_US, 3)
        self.failures: Counter[str] = Counter()
        self.sent = 0
        self.last = 0.0  # perf_counter of the last answer

    async def measure(self, intended: float, request: Awaitable[Any]) -> Any:
        """Its reply, None if it failed; `intended` is when it should have started (perf_counter)."""
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
        """Counts, and latency in ms."""
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
    """The start of every request, in seconds from the beginning of the run: a Poisson process."""
    generator = np.random.default_rng([seed, 1])
    most = int(rate * seconds + 10 * (rate * seconds) ** 0.5 + 10)  # ten standard deviations more than expected
    times = np.cumsum(generator.exponential(1 / rate, most))
    found: list[float] = times[times < seconds].tolist()
    return found


async def run(service: Service, plan: LoadPlan, stages: Stages) -> dict[str, Any]:
    """Load the service, in a loop of its own that is deleted at the end; every figure.

    Raises:
        ServiceError: the loop cannot be set up. Under load, failures are figures.
    """
    world = WORLDS[plan.world](plan.seed)
    loop = f"load-{uuid4().hex[:8]}"
    await service.put_loop(loop, {"schema": world.schema})
    try:
        await service.put_items(loop, world.catalogue(0).items)
        await service.create_policy(loop, plan.policy.kind, plan.policy.kind, plan.policy.params)
        await service.activate(loop, plan.policy.kind)
        times = arrivals(plan.rate, plan.seconds, plan.seed)
        with stages.stage(f"{plan.rate:g} recommendations/s for {plan.seconds:g} s", len(times)) as advance:
            load = Load(service, loop, world, plan)
            await load.run(times, advance)
    finally:
        await service.delete_loop(loop)
    recommend = load.routes["/recommend"]
    answered = recommend.sent - recommend.failures.total()
    seconds = max(recommend.last - load.began, plan.seconds)
    return {
        "settings": {
            "url": service.url,
            "rate": plan.rate,
            "seconds": plan.seconds,
            "feedback": plan.feedback,
            "seed": plan.seed,
            "policy": str(plan.policy),
            "world": plan.world,
        },
        "seconds": seconds,
        "answered_per_s": answered / seconds,
        "started_late_ms": {f"p{p:g}": load.late_us.get_value_at_percentile(p) / 1000 for p in PERCENTILES},
        "routes": {path: route.figures() for path, route in load.routes.items()},
    }


class Load:
    """One run against one loop."""

    def __init__(self, service: Service, loop: str, world: World[Any], plan: LoadPlan) -> None:
        self._service, self._loop, self._world = service, loop, world
        self._thinking = np.random.default_rng([plan.seed, 2])
        self._feedback = plan.feedback
        self.routes = {"/recommend": Route(), "/feedback": Route()}
        self.late_us = HdrHistogram(1, LONGEST_US, 3)  # by how much we ourselves missed an intended start
        self.began = 0.0  # perf_counter

    async def run(self, times: list[float], advance: Advance) -> None:
        """Send everything and wait for the last answer."""
        self.began = began = time.perf_counter()
        async with asyncio.TaskGroup() as going:
            for step, at in enumerate(times):
                moment = self._world.at(step)
                thinking = float(self._thinking.exponential(THINKING_S))
                reports = bool(self._thinking.random() < self._feedback)
                if (pause := began + at - time.perf_counter()) > 0:
                    await asyncio.sleep(pause)
                self.late_us.record_value(max(1, int((time.perf_counter() - began - at) * 1e6)))
                going.create_task(self._visit(moment, began + at, thinking if reports else None))
                advance(1)

    async def _visit(self, moment: Moment, intended: float, thinking: float | None) -> None:
        """One recommendation and perhaps, after some thought, its feedback."""
        asked = self._service.recommend(self._loop, moment.visit.user_id, moment.visit.context)
        reply = await self.routes["/recommend"].measure(intended, asked)
        if reply is None or thinking is None:
            return
        intended = time.perf_counter() + thinking
        await asyncio.sleep(thinking)
        item = reply["items"][0]["id"]
        report = {"decision_id": reply["decision_id"], "item_id": item, "reward": float(moment.outcome(item)[1])}
        await self.routes["/feedback"].measure(intended, self._service.feedback(self._loop, [report]))


def table(figures: dict[str, Any]) -> Table:
    """For the terminal."""
    settings = figures["settings"]
    title = f"{figures['answered_per_s']:,.0f} recommendations/s answered of {settings['rate']:,.0f}/s asked"
    late = figures["started_late_ms"]["p99"]
    shown = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        caption="Latency in ms from the intended start; failures count. The simulator itself started late by "
        f"{late:.1f} ms (p99): where that is not small, it was the bottleneck.",
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
