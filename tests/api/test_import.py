"""Real logged traffic through POST /events (Open Bandit Dataset, the small sample; skipped where it is not at hand)."""

import csv
import gzip
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from tests.waiting import until

OBD = Path(__file__).parents[2].parent / "shared" / "data" / "obd" / "women"


@pytest.mark.skipif(not OBD.exists(), reason=f"the Open Bandit Dataset sample is not at {OBD}")
def test_a_real_log(client: httpx.Client, make_loop: Callable[..., str]) -> None:
    loop = make_loop(items=0, policy="popularity")
    with gzip.open(OBD / "random.csv.gz", "rt") as file:
        rows = list(csv.DictReader(file))
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
    started = time.monotonic()
    for first in range(0, len(events), 1000):
        sent = {"events": events[first : first + 1000]}
        reply = client.post("/events", params={"loop": loop}, json=sent)
        assert reply.json() == {"imported": 1000, "duplicates": 0}
        assert client.post("/events", params={"loop": loop}, json=sent).json() == {"imported": 0, "duplicates": 1000}

    def learned() -> bool:
        return client.get("/policies/popularity", params={"loop": loop}).json()["events"] == len(rows)

    until(learned, "the log is learned", within_s=60)
    print(f"{len(rows)} rows imported (twice) and learned in {time.monotonic() - started:.1f} s")
    shown = Counter(row["item_id"] for row in rows)
    clicks = Counter(row["item_id"] for row in rows if row["click"] == "1")
    summary = client.get("/policies/popularity", params={"loop": loop}).json()["summary"]["items"]
    assert {item: found["rate"] for item, found in summary.items()} == {
        item: clicks[item] / shown[item] for item in shown
    }
    assert sum(clicks.values()) > 0
