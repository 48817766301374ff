"""Measures the time from a reward's 202 to a reply whose version has learned from it.

make bench ARGS=tests/benchmarks/test_freshness.py
"""

from __future__ import annotations

import time
from pathlib import Path

import httpx
import numpy as np
import pytest

from service.settings import Settings
from tests.processes import Served

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
