"""An outage of ours is not a change of the world: what clients could not report is not learned as no reward."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from service.run.embedded import EmbeddedRedis
from service.settings import Settings
from service.store.connection import connect
from tests.learn.running import running
from tests.processes import free_port
from tests.waiting import until_async

pytestmark = pytest.mark.anyio

WAIT_S = 1.5
LOOP = "shop"


class Parts:
    """A Redis and an API worker, each a process that can be killed and started again; a learner runs in this one."""

    def __init__(self, data: Path) -> None:
        self.store = EmbeddedRedis(data / "redis", fsync="always")
        self.log = data / "worker.log"
        self.port = free_port()
        self.client = httpx.AsyncClient(base_url=f"http://127.0.0.1:{self.port}", timeout=5)
        self.worker: subprocess.Popen[bytes]

    def start_worker(self) -> None:
        command = [sys.executable, "-m", "service", "api", "--port", str(self.port), "--redis", self.store.url]
        with self.log.open("ab") as log:
            self.worker = subprocess.Popen(command, stdout=log, stderr=log)

    async def ready(self) -> bool:
        try:
            return (await self.client.get("/readyz")).status_code == 200
        except httpx.HTTPError:
            return False

    async def decide(self, decision_id: str) -> None:
        sent = {"loop": LOOP, "candidates": ["a", "b"], "decision_id": decision_id}
        answer = await self.client.post("/recommend", json=sent)
        assert not answer.raise_for_status().json()["degraded"]

    async def report(self, decision_id: str) -> str:
        """Report until it is taken, as a client does; return the answer."""
        answers: list[str] = []

        async def taken() -> bool:
            try:
                answer = await self.client.post(
                    "/feedback", json={"loop": LOOP, "decision_id": decision_id, "reward": 1}
                )
            except httpx.HTTPError:
                return False
            if answer.status_code != 503:
                answers.append(answer.json()["status"])
            return bool(answers)

        await until_async(taken, "a report is taken")
        return answers[0]

    async def status(self) -> Any:
        return (await self.client.get("/status")).raise_for_status().json()


@pytest.fixture
async def parts(tmp_path: Path) -> AsyncIterator[Parts]:
    found = Parts(tmp_path)
    found.store.start()
    found.start_worker()
    try:
        await until_async(found.ready, f"the worker is ready ({found.log})", within_s=60)
        yield found
    finally:
        found.worker.kill()
        found.worker.wait()
        found.store.stop()
        await found.client.aclose()


@pytest.fixture
async def redis_of_parts(parts: Parts) -> AsyncIterator[Redis]:
    async with connect(parts.store.url, name="test", timeout_s=1) as redis:
        yield redis


async def past(deadline: float) -> None:
    async def there() -> bool:
        return time.time() > deadline

    await until_async(there, "the deadline is over by the clock on the wall")


@pytest.mark.slow
async def test_deadlines_stand_still_while_nobody_can_report(parts: Parts, redis_of_parts: Redis) -> None:
    (await parts.client.put(f"/loops/{LOOP}", json={"wait_time": WAIT_S})).raise_for_status()
    async with running(redis_of_parts, Settings(redis_url=parts.store.url)):
        for outage in ("redis is frozen", "redis is killed", "the worker is killed"):
            for decision_id in (f"reported: {outage}", f"ignored: {outage}"):
                await parts.decide(decision_id)
            deadline = (await parts.client.get(f"/decisions/reported: {outage}?loop={LOOP}")).json()["deadline"]
            assert parts.store.process is not None
            match outage:
                case "redis is frozen":
                    parts.store.process.send_signal(signal.SIGSTOP)
                case "redis is killed":
                    parts.store.process.kill()
                    parts.store.process.wait()
                case _:
                    parts.worker.kill()
                    parts.worker.wait()
            await past(deadline + 0.3)
            match outage:
                case "redis is frozen":
                    parts.store.process.send_signal(signal.SIGCONT)
                case "redis is killed":
                    parts.store.start()
                case _:
                    parts.start_worker()
            assert await parts.report(f"reported: {outage}") == "accepted", outage

        async def all_settled() -> bool:
            return bool((await parts.status())["loops"][LOOP]["events"] == 6)

        await until_async(all_settled, "those that nobody reported on get their default after all")
        status = await parts.status()
    counts = status["loops"][LOOP]
    assert (counts["joined"], counts["defaulted"], counts["late"]) == (3, 3, 0)
    assert status["outages"] >= 3  # a busy machine may hold up a heartbeat once more
    assert status["closed_s"] > 3 * (WAIT_S - 0.3)
    assert status["last_outage"]["until"] - status["last_outage"]["since"] > WAIT_S - 0.3
    metrics = (await parts.client.get("/metrics")).text
    assert f"rebound_outages_total {status['outages']}.0" in metrics
