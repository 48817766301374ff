"""A real log through `POST /events`, sent twice, and learned: the Open Bandit Dataset, its file of random choices.

OPEN_BANDIT=women.csv.gz make bench ARGS=tests/benchmarks/test_import.py
"""

from __future__ import annotations

import csv
import gzip
import os
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import httpx

from tests.waiting import until


def test_a_real_log(client: httpx.Client, make_loop: Callable[..., str]) -> None:
    file = Path(os.environ["OPEN_BANDIT"])  # a CSV file of the data set, compressed or not
    with gzip.open(file, "rt") if file.suffix == ".gz" else file.open() as lines:
        rows = list(csv.DictReader(lines))
    events = [
        {
            "event_id": row[""],
            "context": {"position": row["position"], **{f"user_{i}": row[f"user_feature_{i}"] for i in range(4)}},
            "item_id": row["item_id"],
            "reward": float(row["click"]),
            "propensity": float(row["propensity_score"]),
            "at": row["timestamp"],
        }
        for row in rows
    ]
    loop = make_loop(items=0, policy="popularity")
    started = time.monotonic()
    for first in range(0, len(events), 1000):
        part = {"events": events[first : first + 1000]}
        size = len(part["events"])
        assert client.post("/events", params={"loop": loop}, json=part).json() == {"imported": size, "duplicates": 0}
        assert client.post("/events", params={"loop": loop}, json=part).json() == {"imported": 0, "duplicates": size}

    def learned() -> bool:
        return bool(client.get("/policies/popularity", params={"loop": loop}).json()["events"] == len(rows))

    until(learned, "the log is learned", within_s=600)
    print(f"{len(rows)} rows imported (twice) and learned in {time.monotonic() - started:.1f} s")
    shown = Counter(row["item_id"] for row in rows)
    clicks = Counter(row["item_id"] for row in rows if row["click"] == "1")
    summary = client.get("/policies/popularity", params={"loop": loop}).json()["summary"]["items"]
    assert {item: found["rate"] for item, found in summary.items()} == {
        item: clicks[item] / shown[item] for item in shown
    }
    assert sum(clicks.values()) > 0
