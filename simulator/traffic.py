"""Generate endless traffic against one loop, for a demonstration.

The generator outlives the service: while nothing answers, it counts failures and tries again each second. Then it
restores the loop's catalogue and policies, and goes on.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Coroutine, Sequence
from typing import Any

import numpy as np

from simulator.client import ServiceClient
from simulator.contestants import PolicySpec
from simulator.errors import Refused, ServiceError
from simulator.kinds import check_kinds
from simulator.measures import ROLLING
from simulator.shocks import SHOCKS, find_shock
from simulator.world import WORLDS, Catalogue, Item, Moment, Tie, TrafficEffect, Visit, World

MAX_IN_FLIGHT = 256  # requests; further visits are skipped and counted
RETRY_S = 1.0


class TrafficGenerator:
    """Traffic at a steady rate against one loop.

    Args:
        loop: created if absent.
        rate: recommendations per second, > 0; the arrivals are a Poisson process.
        policies: created if absent. The first one serves, unless another one has traffic already.
    """

    def __init__(
        self, client: ServiceClient, *, loop: str, world: str, rate: float, seed: int, policies: Sequence[PolicySpec]
    ) -> None:
        self._client, self._loop, self._rate, self._policies = client, loop, rate, policies
        self._world: World[Any] = WORLDS[world](seed)
        self._pauses = np.random.default_rng([seed, 4])
        self._kinds_checked = False
        self._ties: frozenset[Tie] = frozenset()  # that the service knows
        self._synced: Catalogue | None = None  # the service's catalogue; None: the loop must be set up first
        self._in_flight: set[asyncio.Task[None]] = set()
        self.delayed: list[tuple[int, dict[str, Any]]] = []  # (step to send it at, report)
        self.step = 0
        self.connected = False
        self.decisions = self.clicks = 0
        self.failures: Counter[str] = Counter()  # by the name of the error
        self.last_error: str | None = None
        self.serving: dict[str, Any] = {}  # policy, version and degraded of the last reply
        self._recent: deque[tuple[float, float, float]] = deque(maxlen=ROLLING)  # click rates: shown, oracle, random

    @property
    def catalogue(self) -> Catalogue:
        """The catalogue that the service should have now."""
        return self._world.catalogue(self.step)

    def fire_shock(self, name: str) -> dict[str, Any]:
        """Change the world from this step on.

        Raises:
            UsageError: the world has no shock of this name.
        """
        shock = find_shock(self._world.name, name)
        self._world = self._world.with_shock(shock, self.step)
        return {"name": name, "step": self.step, "description": shock.description}

    def status(self) -> dict[str, Any]:
        """Return the counts, the last reply, and the click rates of the last 500 decisions."""
        recent = np.array(self._recent).mean(axis=0).tolist() if self._recent else [None] * 3
        return {
            "loop": self._loop,
            "world": self._world.name,
            "rate": self._rate,
            "connected": self.connected,
            "step": self.step,
            "decisions": self.decisions,
            "clicks": self.clicks,
            "serving": self.serving,
            f"last_{ROLLING}": dict(zip(("expected", "oracle", "random"), recent, strict=True)),
            "shocks": [
                {"name": shock.name, "step": at, "description": shock.description} for at, shock in self._world.schedule
            ],
            "available_shocks": list(SHOCKS[self._world.name]),
            "failures": dict(self.failures),
            "last_error": self.last_error,
        }

    async def run(self, stop: asyncio.Event) -> None:
        """Send traffic until `stop` is set, then wait for the requests in flight.

        Raises:
            Refused: the service wants another key.
            UsageError: the service lacks the kind of a policy.
        """
        intended = time.monotonic()
        while not stop.is_set():
            catalogue, ties = self.catalogue, self._world.ties(self.step)
            if self._out_of_step(catalogue, ties) and not await self._sync(catalogue, ties):
                await _wait(stop, RETRY_S)
                intended = time.monotonic()
                continue
            await _wait(stop, intended - time.monotonic())
            intended += float(self._pauses.exponential(1 / self._rate))
            if len(self._in_flight) >= MAX_IN_FLIGHT:
                self._count_failure("TooManyInFlight", f"{MAX_IN_FLIGHT} requests are in flight; skipped a visit")
            else:
                self._start(self._visit(self._world.at(self.step), self._world.traffic_effect(self.step)))
                for bot in self._world.bots(self.step):
                    self._start(self._visit_of_bot(bot, self._candidates(catalogue)))
            self._send_due_reports()
            self.step += 1
        await asyncio.gather(*self._in_flight)

    def _out_of_step(self, catalogue: Catalogue, ties: frozenset[Tie]) -> bool:
        """Tell whether the loop must be set up, its catalogue changed, or its edges."""
        if self._synced is None or ties is not self._ties:
            return True
        return self._synced is not catalogue and not self._world.inline

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._in_flight.add(task)
        task.add_done_callback(self._in_flight.discard)

    def _send_due_reports(self) -> None:
        due = [report for step, report in self.delayed if step <= self.step]
        if due:
            self.delayed = [entry for entry in self.delayed if entry[0] > self.step]
            self._start(self._send_reports(due))

    async def _sync(self, catalogue: Catalogue, ties: frozenset[Tie]) -> bool:
        """Set up the loop; return whether that succeeded.

        Raises:
            Refused: the service wants another key, so waiting is useless.
            UsageError: the service lacks the kind of a policy.
        """
        try:
            await self._set_up(catalogue)
            await self._client.move_edges(self._loop, frozenset() if self._synced is None else self._ties, ties)
        except ServiceError as error:
            if isinstance(error, Refused) and error.status in (401, 403):
                raise
            self.connected = False
            self._count_failure(type(error).__name__, str(error))
            return False
        self._synced, self._ties, self.connected = catalogue, ties, True
        return True

    async def _set_up(self, catalogue: Catalogue) -> None:
        """Create what is absent; make the service's catalogue equal to the world's."""
        client, loop = self._client, self._loop
        if not self._kinds_checked:
            check_kinds(self._policies, await client.kinds())
            self._kinds_checked = True
        if await client.get_loop(loop) is None:
            await client.put_loop(loop, self._world.settings)
        if not self._world.inline:
            await client.put_items(loop, catalogue.items)
            for item in await client.items(loop):
                if item not in catalogue.row:
                    await client.delete_item(loop, item)
        shares = {policy.name: policy.share for policy in await client.policies(loop)}
        for policy in self._policies:
            if policy.kind not in shares:
                await client.create_policy(loop, policy.kind, policy.kind, policy.params)
        if not any(shares.values()):
            await client.activate(loop, self._policies[0].kind)

    async def _send_reports(self, reports: list[dict[str, Any]]) -> None:
        try:
            await self._client.feedback(self._loop, reports)
        except ServiceError as error:
            self._count_failure(type(error).__name__, str(error))

    def _candidates(self, catalogue: Catalogue) -> Sequence[Item] | None:
        """Return what a request brings."""
        return catalogue.items if self._world.inline else None

    async def _visit_of_bot(self, visit: Visit, candidates: Sequence[Item] | None) -> None:
        """Request one decision for a bot, which clicks any item; it is in no figure."""
        try:
            reply = await self._client.recommend(self._loop, visit.user_id, visit.context, candidates)
            await self._client.feedback(self._loop, [reply.report(1.0)])
        except ServiceError as error:
            self._count_failure(type(error).__name__, str(error))

    async def _visit(self, moment: Moment, effect: TrafficEffect) -> None:
        """Request one decision and report its reward, unless a shock delays or drops the report."""
        try:
            if moment.visit.deeds:
                await self._client.activity(self._loop, moment.visit.activity)
            reply = await self._client.recommend(
                self._loop, moment.visit.user_id, moment.visit.context, self._candidates(moment.catalogue)
            )
            self.serving = {"policy": reply.policy, "version": reply.version, "degraded": reply.degraded}
            if reply.item_id not in moment.catalogue.row:  # decided just before the catalogue changed
                self.failures["NotOnOffer"] += 1
                return
            rate, reward = moment.outcome(reply.item_id)
            report = reply.report(reward)
            if effect.delay and not effect.silent:
                self.delayed.append((moment.step + effect.delay, report))
            elif not effect.silent:
                await self._client.feedback(self._loop, [report])
        except ServiceError as error:
            self._count_failure(type(error).__name__, str(error))
            if not isinstance(error, Refused) or error.status == 404:
                self._synced = None  # the service may have lost the loop
            return
        self.decisions += 1
        self.clicks += reward > 0
        self._recent.append((rate, moment.oracle, moment.random))

    def _count_failure(self, kind: str, reason: str) -> None:
        self.failures[kind] += 1
        self.last_error = reason


async def _wait(stop: asyncio.Event, seconds: float) -> None:
    """Return after `seconds`, or as soon as `stop` is set."""
    if seconds <= 0:
        await asyncio.sleep(0)
        return
    try:
        await asyncio.wait_for(stop.wait(), seconds)
    except TimeoutError:
        return
