"""A schema is declared on a loop with a long log: how long until the policy has moved, and how much memory it takes.

make bench ARGS=tests/benchmarks/test_encoder_swap.py
"""

from __future__ import annotations

import threading
import time
from pathlib import Path

import httpx

from tests.processes import Served
from tests.waiting import until

LOOP = "long"
SCHEMA = {
    "context": {"persona": {"type": "categorical", "levels": ["a", "b", "c"]}},
    "item": {"kind": {"type": "categorical", "levels": ["x", "y", "z"]}},
    "crosses": [["persona", "kind"]],
}


def event(number: int) -> dict[str, object]:
    """Return an event of the past."""
    return {
        "event_id": f"e{number}",
        "user_id": f"u{number % 5000}",
        "context": {"persona": "abc"[number % 3], "hour": number % 24},
        "item_id": f"p{number % 50}",
        "reward": int(number % 7 == 0),
    }


def resident_mb(pid: int, what: str) -> float:
    """Return a process' memory in MB: VmRSS now, VmHWM at most."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(what)) / 1024


def test_a_swap_on_a_long_log(tmp_path: Path, quick: bool) -> None:
    n = 10_000 if quick else 200_000
    with (
        Served(tmp_path / "data") as served,
        httpx.Client(base_url=served.url, timeout=120, params={"loop": LOOP}) as http,
    ):
        http.put(f"/loops/{LOOP}", json={}).raise_for_status()
        items = [{"id": f"p{i}", "features": {"kind": "xyz"[i % 3], "price": i / 10}} for i in range(50)]
        http.post("/items", json={"items": items}).raise_for_status()
        http.post("/policies", json={"name": "adaptive", "kind": "adaptive"}).raise_for_status()
        http.post("/policies/adaptive/activate").raise_for_status()
        for first in range(0, n, 1000):
            events = [event(i) for i in range(first, first + 1000)]
            http.post("/events", json={"events": events}).raise_for_status()

        def told() -> dict[str, object]:
            found: dict[str, object] = httpx.get(f"{served.url}/status", timeout=60).json()["loops"][LOOP]["policies"][
                "adaptive"
            ]
            return found

        until(lambda: told()["events"] == n, "the log is learned", within_s=900)
        version = told()["version"]
        [learner] = served.children("-m service learn")
        before = resident_mb(learner, "VmHWM")
        slowest, stop = [0.0], threading.Event()

        def serve() -> None:
            with httpx.Client(base_url=served.url, timeout=60) as client:
                while not stop.is_set():
                    sent = time.monotonic()
                    client.post("/recommend", json={"loop": LOOP, "context": {"persona": "a"}}).raise_for_status()
                    slowest[0] = max(slowest[0], time.monotonic() - sent)

        crowd = threading.Thread(target=serve)
        crowd.start()
        started = time.monotonic()
        encoder = http.put(f"/loops/{LOOP}", json={"schema": SCHEMA}).json()["encoder"]
        until(lambda: told()["encoder"] == encoder, "the policy has moved", within_s=300)
        moved = time.monotonic() - started
        started = time.monotonic()
        assert http.post("/policies/adaptive/rollback", json={"version": version}).json()["adopted"]
        back = time.monotonic() - started
        stop.set()
        crowd.join()
        after = resident_mb(learner, "VmHWM")
        print(
            f"{n} events: moved in {moved:.1f} s, back in {1000 * back:.0f} ms; "
            f"learner at most {before:.0f} MB before, {after:.0f} MB after; "
            f"slowest reply meanwhile {1000 * slowest[0]:.0f} ms"
        )
