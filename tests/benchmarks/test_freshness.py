"""Measures the time from a reward's 202 to a reply whose version has learned from it, and from activity to its use.

make bench ARGS=tests/benchmarks/test_freshness.py
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path

import httpx
import numpy as np
import pytest

from service.settings import Settings
from tests.processes import Served
from tests.waiting import until

PERIOD_S = Settings.model_fields["publish_period_ms"].default / 1000  # least time between two versions


@pytest.mark.parametrize("pause_s", [3 * PERIOD_S, 0.0], ids=["alone", "one after another"])
def test_freshness(pause_s: float, tmp_path: Path, quick: bool) -> None:
    """Each trial rewards one decision and asks until a reply comes from a higher version than any published before.

    There is one client and no other traffic, so a new version has learned from this reward. A reward that comes alone
    is published at once. One that follows a version directly waits for the end of the publish period.
    """
    trials = 20 if quick else 250
    with Served(tmp_path / "data", workers=1) as served, httpx.Client(base_url=served.url, timeout=10) as client:
        items = [{"id": f"p{i}", "features": {"category": "ab"[i % 2]}} for i in range(50)]
        client.post("/items", json={"items": items}).raise_for_status()
        seconds = []
        for trial in range(trials):
            time.sleep(pause_s)  # paces the load; nothing is waited for
            decision = client.post("/recommend", json={"context": {"n": trial % 7}}).raise_for_status().json()
            before = client.get(f"/policies/{decision['policy']}").raise_for_status().json()
            assert before["lag"] == 0
            sent = {"decision_id": decision["decision_id"], "reward": trial % 2}
            assert client.post("/feedback", json=sent).status_code == 202
            started = time.perf_counter()
            while client.post("/recommend", json={"context": {"n": 0}}).json()["version"] <= before["version"]:
                assert time.perf_counter() - started < 10
            seconds.append(time.perf_counter() - started)
    p50, p99, worst = 1000 * np.percentile(seconds, [50, 99, 100])
    print(f"\n{trials} rewards, {pause_s:.1f} s between them: p50 {p50:.0f} ms, p99 {p99:.0f} ms, worst {worst:.0f} ms")
    assert quick or p99 < 1000


@pytest.mark.parametrize("workers", [1, 2], ids=["same worker", "another worker"])
def test_freshness_of_activity(workers: int, tmp_path: Path, quick: bool) -> None:
    """Each trial sends an activity and asks until a reply was made with it, in the worker that took it, or in another.

    The record of a decision says which activity it saw (`@user.count`). It is read after the clock was stopped.
    """
    trials = 20 if quick else 500
    with Served(tmp_path / "data", workers=workers) as served, httpx.Client(base_url=served.url, timeout=10) as taker:
        items = [{"id": f"p{i}", "features": {"category": "ab"[i % 2]}} for i in range(50)]
        taker.post("/items", json={"items": items}).raise_for_status()
        with ExitStack() as stack:
            asker = taker if workers == 1 else other_worker(served.url, taker, stack)
            send(taker, "first", "p0")
            until(lambda: seen(asker, asked(asker, "first")) == 1, "this worker knows that there is activity")
            seconds = []
            for trial in range(trials):
                user = f"u{trial % 10}"
                send(taker, user, f"p{trial % 50}")
                started = time.perf_counter()
                while True:
                    decision = asked(asker, user)
                    took = time.perf_counter() - started
                    if seen(asker, decision) == 1 + trial // 10:
                        break
                    assert took < 10
                seconds.append(took)
    p50, p99, worst = 1000 * np.percentile(seconds, [50, 99, 100])
    where = "the same worker" if workers == 1 else "another worker"
    print(f"\n{trials} activities, {where}: p50 {p50:.1f} ms, p99 {p99:.1f} ms, worst {worst:.1f} ms")
    assert quick or p99 < 1000


def other_worker(url: str, client: httpx.Client, stack: ExitStack) -> httpx.Client:
    """Return a client whose connection leads to another worker."""

    def worker(of: httpx.Client) -> str:
        name: str = of.get("/status").raise_for_status().json()["this_worker"]["worker"]
        return name

    while True:
        other = stack.enter_context(httpx.Client(base_url=url, timeout=10))
        if worker(other) != worker(client):
            return other


def send(client: httpx.Client, user: str, item: str) -> None:
    activity = [{"user_id": user, "item_id": item, "type": "view"}]
    assert client.post("/activity", json={"activity": activity}).raise_for_status().json()["results"] == [
        {"status": "accepted"}
    ]


def asked(client: httpx.Client, user: str) -> str:
    decision: str = client.post("/recommend", json={"user_id": user}).raise_for_status().json()["decision_id"]
    return decision


def seen(client: httpx.Client, decision: str) -> int:
    """Return how many activities of its user a decision saw."""
    record = client.get(f"/decisions/{decision}").raise_for_status().json()["decision"]
    count: int = record["context"].get("@user", {}).get("count", 0)
    return count
