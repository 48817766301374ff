"""Endless traffic for a demonstration, with a small control endpoint to fire a shock.

It outlives the service: while that is gone, failures are counted and a new connection is tried; then the catalogue is
made right again and the traffic goes on.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections import Counter, deque
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import numpy as np
import uvicorn
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel, ConfigDict, Field

from simulator.client import Service
from simulator.contestants import PolicySpec
from simulator.errors import Refused, ServiceError, UnknownName
from simulator.measures import WINDOW
from simulator.shocks import SHOCKS, find_shock
from simulator.world import WORLDS, Catalogue, Moment, Traffic, Visit, World

AT_ONCE = 256  # requests in flight; more are skipped and counted, as a shop would lose them
RETRY_S = 1.0


class Live:
    """Traffic at a steady rate against one loop.

    Args:
        rate: recommendations per second, Poisson.
        policies: made if absent; the first serves unless something else does already.
    """

    def __init__(
        self, service: Service, *, loop: str, world: str, rate: float, seed: int, policies: list[PolicySpec]
    ) -> None:
        self._service, self._loop, self._rate, self._policies = service, loop, rate, policies
        self._world: World[Any] = WORLDS[world](seed)
        self._pauses = np.random.default_rng([seed, 4])
        self._offered: Catalogue | None = None  # what the service has; None: to be made right first
        self._going: set[asyncio.Task[None]] = set()
        self._held: list[tuple[int, dict[str, Any]]] = []  # (step, report that is sent then)
        self.step = 0
        self.connected = False
        self.decisions = self.clicks = 0
        self.failures: Counter[str] = Counter()
        self.last_error: str | None = None
        self.serving: dict[str, Any] = {}
        self._recent: deque[tuple[float, float, float]] = deque(maxlen=WINDOW)  # (shown, best, chance)

    def strike(self, name: str) -> dict[str, Any]:
        """Fire a shock now.

        Raises:
            UnknownName: there is none of this name.
        """
        self._world = self._world.struck(find_shock(self._world.name, name), self.step)
        return {"name": name, "step": self.step, "says": self._world.schedule[-1][1].says}

    def status(self) -> dict[str, Any]:
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
            f"last_{WINDOW}": dict(zip(("expected", "oracle", "random"), recent, strict=True)),
            "shocks": [{"name": shock.name, "step": at, "says": shock.says} for at, shock in self._world.schedule],
            "can_strike": list(SHOCKS[self._world.name]),
            "failures": dict(self.failures),
            "last_error": self.last_error,
        }

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop`; then what is in flight is waited for."""
        intended = time.monotonic()
        while not stop.is_set():
            catalogue = self._world.catalogue(self.step)
            if self._offered is not catalogue and not await self._offer(catalogue):
                await _wait(stop, RETRY_S)
                intended = time.monotonic()
                continue
            await _wait(stop, intended - time.monotonic())
            intended += float(self._pauses.exponential(1 / self._rate))
            if len(self._going) >= AT_ONCE:
                self._failed("TooManyInFlight", f"{AT_ONCE} requests are in flight; this visit was skipped")
            else:
                self._go(self._visit(self._world.at(self.step), self._world.traffic(self.step)))
                for bot in self._world.bots(self.step):
                    self._go(self._bot(bot))
            self._report_due()
            self.step += 1
        await asyncio.gather(*self._going)

    def _go(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._going.add(task)
        task.add_done_callback(self._going.discard)

    def _report_due(self) -> None:
        due = [report for step, report in self._held if step <= self.step]
        if due:
            self._held = [entry for entry in self._held if entry[0] > self.step]
            self._go(self._late(due))

    async def _offer(self, catalogue: Catalogue) -> bool:
        """Loop, items and policies as they should be; whether that worked.

        Raises:
            Refused: for want of the right key, which no waiting mends.
        """
        try:
            await self._set_up(catalogue)
        except ServiceError as error:
            if isinstance(error, Refused) and error.status in (401, 403):
                raise
            self.connected = False
            self._failed(type(error).__name__, str(error))
            return False
        self._offered, self.connected = catalogue, True
        return True

    async def _set_up(self, catalogue: Catalogue) -> None:
        service, loop = self._service, self._loop
        if await service.get_loop(loop) is None:
            await service.put_loop(loop, {"schema": self._world.schema})
        await service.put_items(loop, catalogue.items)
        for item in await service.items(loop):
            if item not in catalogue.row:
                await service.delete_item(loop, item)
        there = {policy["name"]: policy["share"] for policy in await service.policies(loop)}
        for policy in self._policies:
            if policy.kind not in there:
                await service.create_policy(loop, policy.kind, policy.kind, policy.params)
        if not any(there.values()):
            await service.activate(loop, self._policies[0].kind)

    async def _late(self, reports: list[dict[str, Any]]) -> None:
        try:
            await self._service.feedback(self._loop, reports)
        except ServiceError as error:
            self._failed(type(error).__name__, str(error))

    async def _bot(self, visit: Visit) -> None:
        """It clicks whatever it is shown, and is in no figure."""
        try:
            reply = await self._service.recommend(self._loop, visit.user_id, visit.context)
            report = {"decision_id": reply["decision_id"], "item_id": reply["items"][0]["id"], "reward": 1.0}
            await self._service.feedback(self._loop, [report])
        except ServiceError as error:
            self._failed(type(error).__name__, str(error))

    async def _visit(self, moment: Moment, traffic: Traffic) -> None:
        try:
            reply = await self._service.recommend(self._loop, moment.visit.user_id, moment.visit.context)
            item = reply["items"][0]["id"]
            self.serving = {"policy": reply["policy"], "version": reply["version"], "degraded": reply["degraded"]}
            if item not in moment.catalogue.row:  # decided a moment before the catalogue changed
                self.failures["NotOnOffer"] += 1
                return
            rate, clicked = moment.outcome(item)
            report = {"decision_id": reply["decision_id"], "item_id": item, "reward": float(clicked)}
            if traffic.delay and not traffic.silent:
                self._held.append((moment.step + traffic.delay, report))
            elif not traffic.silent:
                await self._service.feedback(self._loop, [report])
        except ServiceError as error:
            self._failed(type(error).__name__, str(error))
            if not isinstance(error, Refused) or error.status == 404:
                self._offered = None  # it is gone, or came back without us
            return
        self.decisions += 1
        self.clicks += clicked
        self._recent.append((rate, moment.oracle, moment.random))

    def _failed(self, kind: str, why: str) -> None:
        self.failures[kind] += 1
        self.last_error = why


class Strike(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, Field(description="such as taste-swap; GET / lists them")]


def control(live: Live) -> FastAPI:
    """POST /shock {"name": "taste-swap"}; GET / tells how it goes; GET /healthz."""
    app = FastAPI(title="Rebound live traffic", description="Simulated users; fire a shock and watch the loop recover.")

    @app.post("/shock", status_code=202)
    async def shock(body: Strike) -> dict[str, Any]:
        """Change the market now."""
        try:
            return live.strike(body.name)
        except UnknownName as error:
            raise HTTPException(404, str(error)) from error

    @app.get("/")
    async def status() -> dict[str, Any]:
        """What it sends, what comes back, and the truth that the service does not know."""
        return live.status()

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    return app


class _Server(uvicorn.Server):
    """Signals are `serve`'s own business."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def serve(live: Live, *, host: str, port: int) -> None:
    """Traffic and control endpoint, until SIGTERM or SIGINT.

    Raises:
        Refused: the service wants another key.
    """
    stop = asyncio.Event()
    server = _Server(
        uvicorn.Config(control(live), host=host, port=port, log_level="warning", timeout_graceful_shutdown=3)
    )
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    traffic = asyncio.create_task(live.run(stop))
    endpoint = asyncio.create_task(server.serve())
    await asyncio.wait([traffic, endpoint], return_when=asyncio.FIRST_COMPLETED)
    stop.set()
    server.should_exit = True
    await asyncio.gather(traffic, endpoint)


async def _wait(stop: asyncio.Event, seconds: float) -> None:
    """Until `stop`, for `seconds` at most."""
    if seconds <= 0:
        await asyncio.sleep(0)
        return
    try:
        await asyncio.wait_for(stop.wait(), seconds)
    except TimeoutError:
        return
