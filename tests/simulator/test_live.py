"""Endless traffic: learns, takes shocks, outlives the service, stops cleanly."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from uuid import uuid4

import httpx
import pytest
from pydantic import SecretStr

from service.settings import Settings
from simulator.client import Service
from simulator.contestants import PolicySpec
from simulator.live import Live, control
from tests.conftest import Worker
from tests.processes import free_port
from tests.simulator.servers import Gate
from tests.waiting import until

pytestmark = pytest.mark.anyio

POLICIES = [PolicySpec("popularity"), PolicySpec("linucb")]


async def become(fact: Callable[[], object], what: str, within_s: float = 20) -> None:
    """`until`, without holding up the event loop."""
    deadline = time.monotonic() + within_s
    while not fact():
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.01)


async def test_it_serves_shocks_and_stops(service: str) -> None:
    loop, stop = f"live-{uuid4().hex[:8]}", asyncio.Event()
    async with Service(service) as client:
        live = Live(client, loop=loop, world="petshop", rate=300, seed=1, policies=POLICIES)
        traffic = asyncio.create_task(live.run(stop))
        transport = httpx.ASGITransport(control(live))
        async with httpx.AsyncClient(transport=transport, base_url="http://live") as http:
            await become(lambda: live.decisions > 50, "traffic")
            assert (await http.get("/healthz")).status_code == 200
            refused = await http.post("/shock", json={"name": "no-such"})
            assert refused.status_code == 404
            assert "taste-swap" in refused.json()["detail"]
            struck = await http.post("/shock", json={"name": "catalogue-churn"})
            assert struck.status_code == 202
            async with asyncio.timeout(
                20
            ):  # requests in flight at the shock may be answered before the change of catalogue
                while set(await client.items(loop)) != set(live._world.catalogue(live.step).row):
                    await asyncio.sleep(0.01)
            after = live.decisions + 50
            await become(lambda: live.decisions > after, "traffic after the shock")
            status = (await http.get("/")).json()
        assert status["connected"]
        assert [shock["name"] for shock in status["shocks"]] == ["catalogue-churn"]
        assert status["serving"]["policy"] == "popularity"
        assert {policy["name"] for policy in await client.policies(loop)} == {"popularity", "linucb"}
        stop.set()
        await asyncio.wait_for(traffic, 10)
        await client.delete_loop(loop)


async def test_it_outlives_the_service(service: str) -> None:
    gate = Gate(service)
    await gate.open()
    loop, stop = f"live-{uuid4().hex[:8]}", asyncio.Event()
    async with Service(gate.url, timeout_s=5) as client:
        live = Live(client, loop=loop, world="petshop", rate=200, seed=1, policies=POLICIES)
        traffic = asyncio.create_task(live.run(stop))
        await become(lambda: live.decisions > 20, "traffic")
        await gate.shut()
        await become(lambda: not live.connected, "it notices")
        assert live.failures["Unreachable"] > 0
        await gate.open()
        before = live.decisions
        await become(lambda: live.decisions > before + 20, "traffic again")
        assert live.connected
        stop.set()
        await asyncio.wait_for(traffic, 10)
        await client.delete_loop(loop)
    await gate.shut()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_process_stops_cleanly(service: str, number: signal.Signals) -> None:
    port, loop = free_port(), f"live-{uuid4().hex[:8]}"
    command = [sys.executable, "-m", "simulator", "live", "--url", service, "--loop", loop, "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "COLUMNS": "200"})

    def serves() -> bool:
        assert process.poll() is None
        try:
            return bool(httpx.get(f"http://127.0.0.1:{port}/").json()["decisions"])
        except httpx.TransportError:
            return False

    until(serves, "live has traffic")
    process.send_signal(number)
    said, _ = process.communicate(timeout=20)
    assert process.returncode == 0, said
    assert "0 failures" in said


def test_a_missing_key_ends_it(settings: Settings) -> None:
    with Worker(settings.model_copy(update={"admin_keys": (SecretStr("k" * 20),)}), learner=False) as url:
        command = [sys.executable, "-m", "simulator", "live", "--url", url, "--port", str(free_port())]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert done.returncode == 1
    assert "--api-key" in done.stderr


def test_without_a_service_it_says_so() -> None:
    command = [sys.executable, "-m", "simulator", "live", "--url", f"http://127.0.0.1:{free_port()}", "--wait", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert done.returncode == 1
    assert "rebound serve" in done.stderr
