"""Latency on kept connections: through `rebound serve`, and through `rebound api` on the same Redis.

make bench ARGS=tests/benchmarks/test_latency.py
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np

from service.run.embedded import EmbeddedRedis
from tests.processes import Served, free_port
from tests.waiting import until

ROUNDS, REQUESTS = 10, 100
WARM_UP = 50


@contextmanager
def api(redis_url: str, folder: Path) -> Iterator[str]:
    """One `rebound api` on its own port; its URL."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "service", "api", "--port", str(port)]
    env = {**os.environ, "REBOUND_REDIS_URL": redis_url}
    with (folder / "api.log").open("wb") as log:
        # A session of its own, as the workers of `serve` have: Linux shares out the processor by session.
        process = subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)

    def ready() -> bool:
        assert process.poll() is None, (folder / "api.log").read_text()[-2000:]
        try:
            return httpx.get(f"{url}/readyz", timeout=2).status_code == 200
        except httpx.HTTPError:
            return False

    try:
        until(ready, f"{url} is ready", within_s=60)
        yield url
    finally:
        process.terminate()
        process.wait(timeout=30)


def recommend_and_report(client: httpx.Client, number: int) -> tuple[float, float]:
    """Seconds of one `/recommend` and of the `/feedback` to it."""
    started = time.perf_counter()
    reply = client.post("/recommend", json={"user_id": f"u{number % 100}", "context": {"hour": number % 24}})
    decided = time.perf_counter()
    sent = {"decision_id": reply.raise_for_status().json()["decision_id"], "reward": number % 2}
    asked = time.perf_counter()
    client.post("/feedback", json=sent).raise_for_status()
    return decided - started, time.perf_counter() - asked


def test_latency(tmp_path: Path) -> None:
    """One client sends one request after another, in turns to both services, each on its one kept connection.

    Both answer from the same Redis with the same loop of 50 items, so the ratio is of the ways to listen only.
    """
    seconds: dict[str, list[tuple[float, float]]] = {"serve": [], "api": []}
    with (
        Served(tmp_path / "data", workers=1) as served,
        api(EmbeddedRedis(served.data).url, tmp_path) as api_url,
        httpx.Client(base_url=served.url, timeout=10) as through_serve,
        httpx.Client(base_url=api_url, timeout=10) as through_api,
    ):
        items = [{"id": f"p{i}", "features": {"category": "ab"[i % 2]}} for i in range(50)]
        through_serve.post("/items", json={"items": items}).raise_for_status()
        clients = {"serve": through_serve, "api": through_api}
        for client in clients.values():
            for number in range(WARM_UP):
                recommend_and_report(client, number)
        for _ in range(ROUNDS):
            for name, client in clients.items():
                seconds[name] += [recommend_and_report(client, number) for number in range(REQUESTS)]
    p50 = {name: 1000 * np.percentile(taken, 50, axis=0) for name, taken in seconds.items()}
    p99 = {name: 1000 * np.percentile(taken, 99, axis=0) for name, taken in seconds.items()}
    print(f"\n{ROUNDS * REQUESTS} decisions each, one kept connection\n")
    print("| route | serve p50 ms | api p50 ms | ratio | serve p99 ms | api p99 ms |\n|---|---|---|---|---|---|")
    for column, route in enumerate(("/recommend", "/feedback")):
        a, b, ratio = p50["serve"][column], p50["api"][column], p50["serve"][column] / p50["api"][column]
        print(f"| {route} | {a:.1f} | {b:.1f} | {ratio:.2f} | {p99['serve'][column]:.1f} | {p99['api'][column]:.1f} |")
    assert (p50["serve"] < 1.5 * p50["api"]).all()
