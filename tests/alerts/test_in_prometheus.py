"""A real Prometheus scrapes a real service: alerts fire when a test breaks what they are about, and not before.

Times are shortened: `for` to 2 s, the windows of rates to 20 s.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis import Redis

from service.run.embedded import EmbeddedRedis
from service.store.keys import Keys, loop_record
from tests.alerts.test_rules import RULES
from tests.processes import free_port
from tests.waiting import until

ROOT = Path(__file__).parents[2]
SILENT_S = 600  # at full size
CONFIG = """
global: {{scrape_interval: 1s, evaluation_interval: 1s}}
rule_files: [rules.yml]
scrape_configs:
  - job_name: rebound
    static_configs: [{{targets: ["127.0.0.1:{port}"]}}]
"""


def shortened(rules: str) -> str:
    return re.sub(r"\[\d+m\]", "[20s]", re.sub(r"for: \S+", "for: 2s", rules))


@dataclass
class Watched:
    """A service of an API worker and a learner, with shoppers, and the Prometheus that watches it."""

    folder: Path
    redis: EmbeddedRedis
    port: int
    prometheus: int
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    reports: bool = True  # whether shoppers report what they liked

    def start(self, name: str, *command: str, **env: str) -> None:
        said = {**os.environ, "REBOUND_REDIS_URL": self.redis.url, **env}
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(command, env=said, stdout=log, stderr=log)

    def start_learner(self) -> None:
        self.start("learner", sys.executable, "-m", "service", "learn")

    def stop(self, name: str) -> None:
        self.processes[name].send_signal(signal.SIGCONT)
        self.processes[name].terminate()
        self.processes[name].wait(30)

    def api(self) -> httpx.Client:
        return httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=10)

    def ask(self, path: str, **query: str) -> Any:
        reply = httpx.get(f"http://127.0.0.1:{self.prometheus}/api/v1/{path}", params=query, timeout=10).json()
        assert reply["status"] == "success", (query, reply)
        return reply["data"]

    def firing(self) -> set[str]:
        return {one["labels"]["alertname"] for one in self.ask("alerts")["alerts"] if one["state"] == "firing"}

    def fires(self, alert: str) -> None:
        until(lambda: alert in self.firing(), f"{alert} fires", within_s=90)

    def ceases(self, alert: str) -> None:
        until(lambda: alert not in self.firing(), f"{alert} ceases", within_s=90)


def is_up(ask: Callable[[], httpx.Response]) -> bool:
    try:
        return ask().status_code == 200
    except httpx.HTTPError:
        return False


def shop(watched: Watched, over: threading.Event) -> None:
    """Ask for an item ten times a second; report what was liked."""
    with watched.api() as client:
        for number in range(10**9):
            if over.wait(0.1):
                return
            try:
                said = client.post("/recommend", json={"user_id": f"u{number % 50}", "context": {"hour": number % 24}})
                if watched.reports and said.status_code == 200:
                    liked = said.json()["items"][0]["id"] == f"sku-{number % 24 % 5}"
                    report = {"decision_id": said.json()["decision_id"], "reward": float(liked)}
                    client.post("/feedback", json=report)
            except httpx.HTTPError:
                pass


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    folder = tmp_path_factory.mktemp("prometheus")
    with ExitStack() as stack:
        redis = stack.enter_context(EmbeddedRedis(folder / "redis"))
        it = Watched(folder, redis, free_port(), free_port())
        (folder / "rules.yml").write_text(shortened(RULES.read_text()))
        (folder / "prometheus.yml").write_text(CONFIG.format(port=it.port))
        api = (sys.executable, "-m", "service", "api", "--port", str(it.port))
        it.start("api", *api, REBOUND_BUFFER_DECISIONS="20", REBOUND_STORE_TIMEOUT_S="0.5")
        it.start_learner()
        config, data = f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/series"
        it.start("prometheus", "prometheus", config, data, f"--web.listen-address=127.0.0.1:{it.prometheus}")
        for name in it.processes:
            stack.callback(it.stop, name)
        with it.api() as client:
            until(lambda: is_up(lambda: client.get("/readyz")), f"the service is ready ({folder})", within_s=60)
            items = [{"id": f"sku-{number}", "features": {"colour": f"c{number % 5}"}} for number in range(20)]
            client.post("/items", json={"items": items}).raise_for_status()
        ready = f"http://127.0.0.1:{it.prometheus}/-/ready"
        until(lambda: is_up(lambda: httpx.get(ready)), f"Prometheus is ready ({folder})", within_s=60)
        over = threading.Event()
        shopper = threading.Thread(target=shop, args=(it, over))
        shopper.start()
        stack.callback(shopper.join)
        stack.callback(over.set)
        yield it


def test_a_service_at_work_fires_none(watched: Watched, size: float) -> None:
    until(lambda: bool(watched.ask("query", query="rebound_policy_learned_events > 50")["result"]), "it learns")
    began, seen = time.monotonic(), set[str]()
    while time.monotonic() - began < max(25.0, SILENT_S * size):
        seen |= watched.firing()
        time.sleep(1.0)  # the time itself is what is asked for
    assert seen == set()


def test_every_query_of_the_dashboard_draws(watched: Watched) -> None:
    dashboard = json.loads((ROOT / "docker/grafana/dashboards/rebound.json").read_text())
    queries = {target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])}
    drawn = {}
    for query in queries:
        asked = query.replace("$loop", ".*").replace("$__rate_interval", "20s")
        drawn[query] = bool(watched.ask("query", query=asked)["result"])
    faults = {query for query, found in drawn.items() if not found}
    assert all("misfits" in query or "degraded" in query for query in faults), "only faults have nothing to draw"
    assert len(drawn) > 20


def test_no_learner(watched: Watched) -> None:
    watched.stop("learner")
    watched.fires("ReboundNoLearner")
    watched.start_learner()
    watched.ceases("ReboundNoLearner")


def test_feedback(watched: Watched) -> None:
    """None comes; then only what is refused; and of another loop only what is late."""
    watched.reports = False
    watched.fires("ReboundNoFeedback")
    watched.reports = True
    with watched.api() as client:
        client.put("/loops/mail", json={"wait_time": 1}).raise_for_status()
        asked: deque[tuple[float, str]] = deque()  # when, and which decision

        def reported() -> bool:
            decision = client.post("/recommend", json={"loop": "mail", "candidates": ["a", "b"]}).json()
            client.post("/feedback", json={"decision_id": decision["decision_id"], "item_id": "c", "reward": 1})
            asked.append((time.monotonic(), decision["decision_id"]))
            while time.monotonic() - asked[0][0] > 3.0:
                client.post("/feedback", json={"decision_id": asked.popleft()[1], "loop": "mail", "reward": 1})
            return {"ReboundRejectedFeedback", "ReboundLateFeedback"} <= watched.firing()

        until(reported, "ReboundRejectedFeedback and ReboundLateFeedback fire", within_s=120)
    watched.ceases("ReboundNoFeedback")


def test_a_loop_without_traffic(watched: Watched) -> None:
    with watched.api() as client:
        client.put("/loops/plain", json={}).raise_for_status()

        def drawn() -> bool:
            client.post("/recommend", json={"loop": "plain", "candidates": ["a", "b"]}).raise_for_status()
            return "ReboundRandom" in watched.firing()

        until(drawn, "ReboundRandom fires", within_s=90)


def test_an_entry_that_cannot_be_learned(watched: Watched) -> None:
    with Redis.from_url(watched.redis.url) as redis:
        keys = Keys("default", redis.hget(loop_record("default"), "id").decode())
        redis.xadd(keys.partition().events, {"v": "1", "e": "no event"})
    watched.fires("ReboundDeadLetters")


def test_memory(watched: Watched) -> None:
    with Redis.from_url(watched.redis.url) as redis:
        redis.config_set("maxmemory", int(1.1 * redis.info("memory")["used_memory"]))
        try:
            watched.fires("ReboundMemory")
        finally:
            redis.config_set("maxmemory", 0)
    watched.ceases("ReboundMemory")


def test_redis_away(watched: Watched) -> None:
    assert watched.redis.process is not None
    pid = watched.redis.process.pid
    os.kill(pid, signal.SIGSTOP)
    try:
        for alert in ("ReboundStoreDown", "ReboundDegraded", "ReboundErrors", "ReboundDecisionsDropped"):
            watched.fires(alert)
        assert "ReboundNoLearner" not in watched.firing(), "nobody knows whether a learner lives"
    finally:
        os.kill(pid, signal.SIGCONT)
    watched.ceases("ReboundStoreDown")


def test_no_worker(watched: Watched) -> None:
    watched.stop("api")
    watched.fires("ReboundWorkerDown")
