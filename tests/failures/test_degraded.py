"""When things break: DESIGN's table, row by row."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis import Redis

from service.settings import Settings
from tests.conftest import Worker
from tests.processes import Served, alive
from tests.waiting import until


def recommend(url: str, **body: Any) -> dict[str, Any]:
    reply = httpx.post(f"{url}/recommend", json={"candidates": ["a", "b", "c"], **body}, timeout=10)
    assert reply.status_code == 200, reply.text
    found: dict[str, Any] = reply.json()
    return found


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One service for the faults that it recovers from."""
    data = tmp_path_factory.mktemp("degraded") / "data"
    with Served(data, REBOUND_FSYNC="always", REBOUND_STORE_TIMEOUT_S="0.5") as served:
        yield served


def make_loop(url: str, name: str) -> str:
    """Make a loop that `adaptive` serves."""
    httpx.put(f"{url}/loops/{name}", json={}, timeout=30).raise_for_status()
    for path, body in (("/policies", {"name": "adaptive", "kind": "adaptive"}), ("/policies/adaptive/activate", None)):
        httpx.post(f"{url}{path}", params={"loop": name}, json=body, timeout=30).raise_for_status()
    return name


def test_redis_gone_and_back(served: Served) -> None:
    """Decisions go on from memory, feedback says try again; when Redis is back, the buffer is written."""
    first = recommend(served.url, decision_id="before")
    (redis,) = served.children("redis-server")
    os.kill(redis, signal.SIGSTOP)  # it hangs: the worst way to be gone
    during = recommend(served.url, decision_id="during")
    assert (first["degraded"], during["degraded"]) == (False, True)
    refused = httpx.post(f"{served.url}/feedback", json={"decision_id": "before", "reward": 1}, timeout=20)
    assert (refused.status_code, refused.json()["code"]) == (503, "store_unavailable")
    assert refused.headers["retry-after"]
    until(lambda: httpx.get(f"{served.url}/readyz", timeout=20).status_code == 503, "it says that it is not ready")
    os.kill(redis, signal.SIGCONT)
    path = f"{served.url}/decisions/during"
    until(lambda: httpx.get(path, timeout=10).status_code == 200, "the buffered decision is written")
    assert httpx.get(path).json()["decision"]["items"] == during["items"]
    for decision in ("before", "during"):
        sent = {"decision_id": decision, "reward": 1, "feedback_id": "again"}
        assert httpx.post(f"{served.url}/feedback", json=sent).status_code in (200, 202)
    until(lambda: not recommend(served.url)["degraded"], "it is back to normal")
    until(served.ready, "it says so")


def test_redis_dies_and_is_started_again(served: Served) -> None:
    recommend(served.url, decision_id="kept")
    pid = served.kill("redis-server")
    until(lambda: not alive(pid), "redis is dead")
    until(served.ready, "the supervisor has started it again", within_s=30)
    assert httpx.get(f"{served.url}/decisions/kept", timeout=10).status_code == 200
    until(lambda: not recommend(served.url)["degraded"], "it is back to normal")


def test_a_corrupt_snapshot_is_refused_and_the_old_one_stays(served: Served) -> None:
    loop = make_loop(served.url, "corrupt")
    sent = {"loop": loop, "decision_id": recommend(served.url, loop=loop)["decision_id"], "reward": 1}
    assert httpx.post(f"{served.url}/feedback", json=sent).status_code == 202
    until(lambda: recommend(served.url, loop=loop)["version"] == 1, "version 1 serves")
    keys = served.keys(loop)
    with Redis.from_url(served.redis_url) as redis:
        served.kill("service learn")  # or it would publish a good one next
        redis.hset(keys.snapshots("adaptive"), "2", b"garbled")
        redis.hset(keys.policy("adaptive"), "version", 2)
        redis.publish("rebound:changes", loop)

    def refused() -> int:
        count: int = httpx.get(f"{served.url}/status").json()["this_worker"]["refused_snapshots"]
        return count

    until(refused, "the snapshot is refused and counted")
    assert recommend(served.url, loop=loop)["version"] == 1
    assert refused() == 1, "it is not tried again and again"
    until(served.ready, "the learner runs again")


def test_a_poison_event_stops_nothing(served: Served) -> None:
    loop = make_loop(served.url, "poisoned")
    part = served.keys(loop).partition()
    with Redis.from_url(served.redis_url) as redis:
        redis.xadd(part.events, {"e": b"no json", "x": b"abc", "r": "1", "s": "feedback"})
        redis.hincrby(part.stats, "events", 1)
    sent = {"loop": loop, "decision_id": recommend(served.url, loop=loop)["decision_id"], "reward": 1}
    assert httpx.post(f"{served.url}/feedback", json=sent).status_code == 202

    def status() -> dict[str, Any]:
        found: dict[str, Any] = httpx.get(f"{served.url}/status").json()["loops"][loop]
        return found

    until(lambda: status()["policies"]["adaptive"]["events"] == 2, "learning went on past it")
    assert status()["dead_letters"] == 1


def test_a_worker_dies_and_no_budget_is_overspent_and_none_strands(served: Served) -> None:
    """Two workers spend budgets together, and one is killed on the way. What it had stored and not answered counts."""
    loop, most, clients = "budgets", {"a": 30, "b": 12}, 8
    budgets = {item: {"impressions": n} for item, n in most.items()}
    body = {"exploration_floor": 1.0, "budgets": budgets}
    httpx.put(f"{served.url}/loops/{loop}", json=body, timeout=30).raise_for_status()
    shown: Counter[str] = Counter()
    cut = 0

    def spend(url: str) -> None:
        nonlocal cut
        asked = {"loop": loop, "candidates": ["a", "b", "c"]}
        try:
            reply = httpx.post(f"{url}/recommend", json=asked, timeout=10)
        except httpx.ConnectError:
            return
        except httpx.TransportError:  # it may have been stored
            cut += 1
            return
        assert reply.status_code == 200, reply.text
        assert not reply.json()["degraded"]
        shown.update([reply.json()["items"][0]["id"]])

    def used() -> Counter[str]:
        part = served.keys(loop).partition()
        with Redis.from_url(served.redis_url) as redis:
            held = {field.decode(): value.split() for field, value in redis.hgetall(part.budgets).items()}
        return Counter({field.removeprefix("total/"): int(value[3]) for field, value in held.items()})

    def spend_all(url: str) -> Counter[str]:
        with ThreadPoolExecutor(clients) as pool:
            list(pool.map(spend, [url, served.url] * clients))
        return used()

    with Worker(Settings(redis_url=served.redis_url), learner=False) as other:
        until(lambda: spend_all(other)["a"] > 5, "both spend")
        with ThreadPoolExecutor(1) as pool:
            spending = pool.submit(spend_all, other)
            killed = served.kill("service api")
            spending.result()
        until(lambda: not alive(killed), "it is dead")
        until(lambda: spend_all(other) == most, "every budget is spent to its end")
        until(served.ready, "another has come")
        assert spend_all(other) == most
    for item, n in most.items():
        assert n - cut <= shown[item] <= n


def test_lost_data_is_not_papered_over(data: Path) -> None:
    """FLUSHALL: workers serve on from memory, and the learner writes nothing until a person restarts them."""
    with Served(data) as served:
        sent = {"decision_id": recommend(served.url)["decision_id"], "reward": 1}
        httpx.post(f"{served.url}/feedback", json=sent).raise_for_status()
        until(lambda: recommend(served.url)["version"] == 1, "version 1 serves")
        keys = served.keys("default")
        with Redis.from_url(served.redis_url) as redis:
            redis.flushall()
            until(lambda: httpx.get(f"{served.url}/status").json()["rung"] == "store_lost", "the loss is noticed")
            lost = recommend(served.url)
            assert (lost["version"], lost["degraded"]) == (1, True)
            assert httpx.get(f"{served.url}/readyz").status_code == 503
            refused = httpx.post(f"{served.url}/feedback", json={"decision_id": lost["decision_id"], "reward": 1})
            assert (refused.status_code, refused.json()["code"]) == (503, "store_unavailable")
            assert not redis.exists(keys.policy("adaptive"), keys.state("adaptive"), keys.partition().pending)


def test_no_orphans_after_kill_9_of_the_supervisor(data: Path) -> None:
    served = Served(data)
    served.start()
    pids = served.children()
    assert len(pids) == 3
    os.kill(served.process.pid, signal.SIGKILL)
    served.process.wait()
    until(lambda: not any(alive(pid) for pid in pids), "Redis, worker and learner have ended too")
