"""Endless traffic: shocks change it, it outlives the service, and it stops cleanly."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import httpx
import pytest
from typer.testing import CliRunner

from simulator.cli import app
from simulator.client import ServiceClient
from simulator.control import control_app
from simulator.errors import UsageError
from simulator.shocks import SHOCKS
from simulator.world import TrafficEffect
from tests.processes import free_port
from tests.simulator.builders import StandIn, client_of, generator_of, loop_name, traffic_shock
from tests.simulator.servers import Gate, reply, serving_in_thread
from tests.waiting import until

pytestmark = pytest.mark.anyio


async def become(fact: Callable[[], object], what: str, within_s: float = 20) -> None:
    """Do as `until` does, without holding up the event loop."""
    deadline = time.monotonic() + within_s
    while not fact():
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.01)


async def test_it_serves_shocks_and_stops(service: str) -> None:
    loop, stop = loop_name(), asyncio.Event()
    async with ServiceClient(service) as client:
        generator = generator_of(client, loop, rate=150)
        traffic = asyncio.create_task(generator.run(stop))
        transport = httpx.ASGITransport(control_app(generator))
        async with httpx.AsyncClient(transport=transport, base_url="http://live") as http:
            await become(lambda: generator.decisions > 20, "traffic")
            assert (await http.get("/healthz")).status_code == 200
            refused = await http.post("/shock", json={"name": "no-such"})
            assert refused.status_code == 404
            assert "taste-swap" in refused.json()["detail"]
            fired = await http.post("/shock", json={"name": "catalogue-churn"})
            assert fired.status_code == 202
            assert fired.json()["description"].startswith("30 % of the catalogue")
            async with asyncio.timeout(20):  # requests in flight may be answered before the catalogue changes
                while set(await client.items(loop)) != set(generator.catalogue.row):
                    await asyncio.sleep(0.01)
            after = generator.decisions + 20
            await become(lambda: generator.decisions > after, "traffic after the shock")
            status = (await http.get("/")).json()
        assert status["connected"]
        assert [shock["name"] for shock in status["shocks"]] == ["catalogue-churn"]
        assert "taste-swap" in status["available_shocks"]
        assert status["serving"]["policy"] == "popularity"
        assert {policy.name for policy in await client.policies(loop)} == {"popularity", "linucb"}
        stop.set()
        await asyncio.wait_for(traffic, 10)
        await client.delete_loop(loop)


async def test_it_outlives_the_service(service: str) -> None:
    gate = Gate(service)
    await gate.open()
    loop, stop = loop_name(), asyncio.Event()
    async with ServiceClient(gate.url, timeout_s=5) as client:
        generator = generator_of(client, loop, rate=150)
        traffic = asyncio.create_task(generator.run(stop))
        await become(lambda: generator.decisions > 20, "traffic")
        await gate.shut()
        await become(lambda: not generator.connected, "it notices")
        assert generator.failures["Unreachable"] > 0
        await gate.open()
        before = generator.decisions
        await become(lambda: generator.decisions > before + 20, "traffic again")
        assert generator.connected
        stop.set()
        await asyncio.wait_for(traffic, 10)
        await client.delete_loop(loop)
    await gate.shut()


@pytest.mark.parametrize(
    ("effect", "decisions", "reports"),
    [
        (TrafficEffect(silent=True), 1, 0),
        (TrafficEffect(delay=40), 1, 1),
        (TrafficEffect(delay=10**6), 1, 1),
        (TrafficEffect(bots=1), 2, 2),
    ],
)
async def test_shocks_change_what_is_sent(
    monkeypatch: pytest.MonkeyPatch, effect: TrafficEffect, decisions: int, reports: int
) -> None:
    """Decisions and reports, as multiples of the visits."""
    monkeypatch.setitem(SHOCKS["petshop"], "shake", traffic_shock(effect, span=10**9))
    service, stop = (
        StandIn({"GET /loops/shaken": {}, "GET /items": {"items": []}, "GET /policies": {"policies": []}}),
        asyncio.Event(),
    )
    async with client_of(service) as client:
        generator = generator_of(client, "shaken", "random", rate=200)
        generator.fire_shock("shake")
        running = asyncio.create_task(generator.run(stop))
        await become(lambda: generator.step >= 100, "100 visits")
        stop.set()
        await asyncio.wait_for(running, 10)
    sent = sum(len(body["feedback"]) for route, body in service.requests if route == "POST /feedback")
    assert not generator.failures
    assert generator.decisions == generator.step >= 100, "bots do not count"
    assert service.count("POST /recommend") == decisions * generator.step
    assert sent == reports * generator.step - len(generator.delayed)
    assert len(generator.delayed) == min(effect.delay, generator.step)


async def test_kinds_are_checked_before_anything_is_made_and_once() -> None:
    service = StandIn({"GET /items": {"items": []}, "GET /policies": {"policies": []}})
    async with client_of(service) as client:
        with pytest.raises(UsageError, match="'greedy'; it has: linucb, offline, random"):
            await generator_of(client, "x", "random", "greedy").run(asyncio.Event())
        assert [route for route, _ in service.requests] == ["GET /kinds"]
        stop = asyncio.Event()
        generator = generator_of(client, "x", "random")
        traffic = asyncio.create_task(generator.run(stop))
        await become(lambda: generator.decisions > 3, "traffic")
        generator.fire_shock("catalogue-churn")
        await become(lambda: service.count("POST /items") == 2, "the loop is set up again")
        stop.set()
        await asyncio.wait_for(traffic, 10)
    assert service.count("GET /kinds") == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_process_stops_cleanly(number: signal.Signals) -> None:
    service = StandIn({"GET /items": {"items": []}, "GET /policies": {"policies": []}})
    with serving_in_thread(service) as url, httpx.Client(trust_env=False) as http:
        port = free_port()
        command = [sys.executable, "-m", "simulator", "live", "--url", url, "--port", str(port), "--policy", "random"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "COLUMNS": "200"})

        def serves() -> bool:
            assert process.poll() is None
            try:
                return bool(http.get(f"http://127.0.0.1:{port}/").json()["decisions"])
            except httpx.TransportError:
                return False

        until(serves, "live has traffic", within_s=60)
        process.send_signal(number)
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert "0 failures" in said


def test_a_missing_key_ends_it() -> None:
    async def closed(head: bytes, body: bytes) -> bytes:
        if b"/readyz" in head:
            return reply(b"{}")
        return reply(b'{"code": "unauthorized", "detail": "a key is needed"}', "401 Unauthorized")

    with serving_in_thread(closed) as url:
        done = CliRunner().invoke(app, ["live", "--url", url, "--port", str(free_port())])
    assert done.exit_code == 1
    assert "--api-key" in done.stderr
