"""Latency of `/recommend` while an evaluation runs, and while none does, turn by turn on one service.

make bench ARGS=tests/benchmarks/test_evaluation_beside_requests.py
"""

from __future__ import annotations

import time
from pathlib import Path

import httpx
import numpy as np

from tests.processes import Served
from tests.waiting import until

ROUNDS, REQUESTS, DECISIONS = 5, 300, 3000
TARGETS = [{"kind": kind} for kind in ("linucb", "lin_ts", "squarecb", "popularity", "adaptive", "neural_linear")]


def timed(client: httpx.Client, requests: int) -> list[float]:
    """Ask one after the other; return the milliseconds of each."""
    found = []
    for number in range(requests):
        started = time.perf_counter()
        client.post("/recommend", json={"user_id": f"u{number}"}).raise_for_status()
        found.append(1000 * (time.perf_counter() - started))
    return found


def test_requests_do_not_wait_for_an_evaluation(tmp_path: Path, quick: bool) -> None:
    rounds, decisions = (1, 300) if quick else (ROUNDS, DECISIONS)
    with Served(tmp_path / "data") as served, httpx.Client(base_url=served.url, timeout=30) as client:
        items = [{"id": f"p{number}", "features": {"price": number}} for number in range(100)]
        client.post("/items", json={"items": items}).raise_for_status()
        for number in range(decisions):
            asked = {"user_id": f"u{number}", "context": {"hour": number % 24}}
            decision = client.post("/recommend", json=asked).json()
            sent = {"decision_id": decision["decision_id"], "reward": number % 2}
            client.post("/feedback", json=sent).raise_for_status()
        until(lambda: client.get("/policies/adaptive").json()["lag"] == 0, "it is learned", within_s=120)
        idle: list[float] = []
        busy: list[float] = []
        for _ in range(rounds):
            idle += timed(client, REQUESTS)
            made = client.post("/evaluations", json={"targets": TARGETS}).raise_for_status().json()
            path = f"/evaluations/{made['id']}"
            until(lambda path=path: client.get(path).json()["done"] > 0, "decisions are judged", within_s=120)  # type: ignore[misc]
            busy += timed(client, REQUESTS)
            assert client.get(path).json()["status"] == "running", "it ended too early: judge more decisions"
            assert client.post(f"{path}/cancel").json()["status"] == "cancelled"
            until(lambda: not client.get("/status").json()["evaluations"], "it is gone")
    for name, found in (("no evaluation", idle), ("one runs", busy)):
        p50, p99 = np.percentile(found, (50, 99))
        print(f"{name}: p50 {p50:.2f} ms, p99 {p99:.2f} ms, most {max(found):.1f} ms, {len(found)} requests")
    assert np.median(busy) < 2 * np.median(idle)
