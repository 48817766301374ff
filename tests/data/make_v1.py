"""Makes `v1.aof.gz`: a small data folder of version 0.1, as the tests of the upgrade start a Redis on it.

Run it in a checkout of commit 01fa580, the last before format 2, with that checkout's own environment:

    python make_v1.py v1.aof.gz

It starts `rebound serve` on a temporary folder and drives it over HTTP. What cannot be had over HTTP is written to
Redis as that version would leave it: an unreadable entry of the log, half a policy, half a loop. In the end Redis
rewrites its append-only file, and times to live are taken off the decisions, so that the file does not age.

The loops:
    shop      four policies share the traffic, one of them trained in batches; `linucb` is pinned to a former version;
              decisions of one and of two items, rewarded and pending; the catalogue changed on the way
    sums      aggregation `sum`, rewards in [-1, 4]; `popularity` has raised an alarm; decisions with reports that wait
    quick     a wait of a moment: decisions that got the default reward, one of them with a late report
    stars     its settings cannot be read: reward_range [1, 5], default_reward 0
    half      only the field `d`, as a start that was cut off leaves it; and the policy `half` of `shop` only `kind`
"""

from __future__ import annotations

import gzip
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from redis import Redis

WEEK_S = 7 * 86_400
SCHEMA = {
    "context": {"persona": {"type": "categorical", "levels": ["cat", "dog"]}},
    "item": {"kind": {"type": "categorical", "levels": ["toy", "food"]}},
    "crosses": [["persona", "kind"]],
    "hash_dims": 0,
}
rng = random.Random(0)


def until(fact: Callable[[], object]) -> None:
    """Wait for a fact, for a minute at most."""
    deadline = time.monotonic() + 60
    while not fact():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


class Client:
    """Calls one loop."""

    def __init__(self, http: httpx.Client, loop: str) -> None:
        self._http, self._loop = http, loop

    def __call__(self, method: str, path: str, body: Any = None) -> Any:
        reply = self._http.request(method, path, json=body, params={"loop": self._loop})
        assert reply.is_success, f"{method} {path}: {reply.text}"
        return reply.json() if reply.content else None

    def make(self, **settings: Any) -> None:
        self("PUT", f"/loops/{self._loop}", settings)

    def recommend(self, decision_id: str, **body: Any) -> list[str]:
        sent = {"loop": self._loop, "decision_id": decision_id, **body}
        return [item["id"] for item in self("POST", "/recommend", sent)["items"]]

    def report(self, decision_id: str, reward: float, **body: Any) -> str:
        sent = {"loop": self._loop, "decision_id": decision_id, "reward": reward, **body}
        status: str = self("POST", "/feedback", sent)["status"]
        return status

    def learned(self) -> None:
        """Wait until every policy has learned all events."""

        def there() -> bool:
            told = self._http.get("/status").json()["loops"][self._loop]
            return all(policy["events"] == told["events"] for policy in told["policies"].values())

        until(there)


def shop(client: Client) -> None:
    client.make(wait_time=WEEK_S, exploration_floor=0.1, schema=SCHEMA)
    client(
        "POST", "/items", {"items": [{"id": f"p{i}", "features": {"kind": ("toy", "food")[i % 2]}} for i in range(6)]}
    )
    events = [
        {
            "event_id": f"e{i}",
            "user_id": f"u{i % 7}",
            "context": {"persona": ("cat", "dog")[i % 2]},
            "item_id": f"p{i % 6}",
            "reward": float(rng.random() < 0.4),
            "propensity": None if i % 10 else 0.25,
        }
        for i in range(120)
    ]
    client("POST", "/events", {"events": events})
    small = {"epochs": 1, "embedding_dim": 2, "hidden": [4, 4], "retrain_every": 150}
    for kind, params in (
        ("linucb", {}),
        ("adaptive", {}),
        ("popularity", {"half_life": 500}),
        ("embedding_mlp", small),
    ):
        client("POST", "/policies", {"name": kind, "kind": kind, "params": params})
    until(lambda: client("GET", "/policies/embedding_mlp")["version"])
    client("PUT", "/traffic", {"linucb": 0.4, "adaptive": 0.3, "popularity": 0.2, "embedding_mlp": 0.1})
    for number in range(90):
        if number == 40:
            client(
                "POST", "/items", {"items": [{"id": "p6", "features": {"kind": "toy"}}, {"id": "p0", "features": {}}]}
            )
            client("DELETE", "/items/p1")
        body: dict[str, Any] = {
            "user_id": f"u{number % 13}" if number % 5 else None,
            "context": {"persona": ("cat", "dog", "fish")[number % 3]},
            "k": 1 + number % 2,
        }
        if number % 9 == 0:
            body["candidates"] = ["p2", {"id": "guest", "features": {"kind": "food"}}, "p3", "p4"]
        if number % 11 == 0:
            body["exclude"] = ["p2"]
        items = client.recommend(f"d{number}", **body)
        if number % 4:  # the others wait for their reports still
            for item in items:
                client.report(f"d{number}", float(rng.random() < 0.5), item_id=item, feedback_id=f"f{number}-{item}")
        if number % 10 == 0:
            client.learned()
    client.learned()
    client("POST", "/policies/embedding_mlp/train")
    client.learned()
    version = client("GET", "/policies/linucb")["version"]
    client("POST", "/policies/linucb/rollback", {"version": version - 3})
    for number in range(90, 100):
        client.recommend(f"d{number}", user_id=f"u{number}", context={"persona": "cat"})


def sums(client: Client) -> None:
    client.make(
        wait_time=WEEK_S, aggregation="sum", reward_range=[-1, 4], default_reward=0.5, schema={**SCHEMA, "crosses": []}
    )
    client("POST", "/items", {"items": [{"id": f"p{i}", "features": {"kind": "toy"}} for i in range(3)]})
    client("POST", "/policies", {"name": "popular", "kind": "popularity", "params": {"detect_change": True}})
    client("POST", "/policies/popular/activate")
    rewards = [4.0 if i % 2 else -1.0 for i in range(800)] + [-1.0] * 150
    events = [{"event_id": f"e{i}", "item_id": f"p{i % 3}", "reward": reward} for i, reward in enumerate(rewards)]
    client("POST", "/events", {"events": events})
    client.learned()
    assert len(client("GET", "/policies/popular")["alarms"]) == 1
    for number in range(10):
        items = client.recommend(f"d{number}", k=2)
        for report in range(number % 4):
            client.report(f"d{number}", 1.5, item_id=items[0], feedback_id=f"f{report}")


def quick(client: Client) -> None:
    client.make(wait_time=0.2, default_reward=0.25, schema={**SCHEMA, "crosses": []})
    client("POST", "/policies", {"name": "lin_ts", "kind": "lin_ts"})
    client("POST", "/policies/lin_ts/activate")
    for number in range(5):
        client.recommend(f"d{number}", candidates=["a", "b"])
    client.report("d0", 1.0)
    until(lambda: client("GET", "/decisions/d4")["status"] == "defaulted")
    assert client.report("d4", 1.0) == "late"
    client.learned()


def faults(http: httpx.Client, redis: Redis) -> None:
    """What only a crash, or a fault of that version, leaves behind."""
    http.put("/loops/stars", json={"reward_range": [1, 5]})  # an error; but it is stored
    assert b"settings" in redis.hgetall("rebound:{stars:0}:loop")
    redis.hset("rebound:{half:0}:loop", "d", 4)
    redis.sadd("rebound:loops", "half")
    redis.hset("rebound:{shop:0}:policy:half", "kind", "linucb")
    redis.xadd("rebound:{shop:0}:events", {"e": "no json", "x": "abc", "r": "1", "s": "feedback"})
    redis.hincrby("rebound:{shop:0}:stats", "events", 1)


def rewritten(redis: Redis) -> None:
    """Let Redis write its append-only file anew, without times to live."""
    for key in redis.scan_iter(match="rebound:*decision:*"):
        redis.persist(key)
    redis.bgrewriteaof()

    def done() -> bool:
        told = redis.info("persistence")
        return not told["aof_rewrite_in_progress"] and not told["aof_rewrite_scheduled"]

    until(done)


def main(out: Path) -> None:
    with tempfile.TemporaryDirectory() as folder, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        data = Path(folder) / "data"
        env = {**os.environ, "REBOUND_PUBLISH_PERIOD_MS": "1000", "REBOUND_SNAPSHOT_BUDGET_MB": "1"}
        command = [sys.executable, "-m", "service", "serve", "--port", str(port), "--data", str(data)]
        serving = subprocess.Popen(command, env=env)
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as http:

                def ready() -> bool:
                    try:
                        return bool(http.get("/readyz").is_success)
                    except httpx.TransportError:
                        return False

                until(ready)
                http.delete("/loops/default")  # its rows are long
                shop(Client(http, "shop"))
                sums(Client(http, "sums"))
                quick(Client(http, "quick"))
                with Redis.from_url(f"unix://{data}/redis.sock") as redis:
                    faults(http, redis)
                    Client(http, "shop").learned()
                    rewritten(redis)
        finally:
            serving.send_signal(signal.SIGINT)
            serving.wait()
        file = (data / "appendonly.aof").read_bytes()
        out.write_bytes(gzip.compress(file, mtime=0))
        print(f"{out}: {out.stat().st_size} bytes, {len(file)} before")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
