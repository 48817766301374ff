"""CPU time of one API worker per request, of this checkout and, in turns with it, of another one and an empty endpoint.

    make bench ARGS=tests/benchmarks/test_cpu_per_request.py
    COMPARE_WITH=../rebound-0.1 make bench ARGS=tests/benchmarks/test_cpu_per_request.py

Both run on the Python of this checkout. CPU time, user and system, is what Linux says of the worker's threads; so
other work on the machine disturbs it less than a latency. The learners are stopped before the requests are counted, or
the swaps of their new versions would count, too.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from service.run.embedded import EmbeddedRedis
from tests.processes import free_port
from tests.waiting import until

HERE = Path(__file__).parents[2]
CONNECTIONS = 8  # kept, each with one request in flight
ROUNDS, REQUESTS = 40, 200  # short rounds: what disturbs one of a pair disturbs the other, too
ITEMS = [
    {"id": f"sku-{i}", "features": {"category": f"c{i % 5}", "price": i / 2, "brand": f"b{i % 7}"}} for i in range(50)
]
CONTEXT = {"persona": "cat_connoisseur", "hour": 14, "device": "phone", "basket": 3}


@dataclass(frozen=True)
class Service:
    """One worker and one learner of a checkout, on a Redis of their own."""

    url: str
    worker: int  # process ids
    learner: int


EMPTY = """
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    await receive()
    head = [(b"content-type", b"application/json"), (b"content-length", b"2")]
    await send({"type": "http.response.start", "status": 200, "headers": head})
    await send({"type": "http.response.body", "body": b"{}"})
"""


@contextmanager
def empty(folder: Path) -> Iterator[tuple[str, int]]:
    """Start the least that an ASGI application can do, on the uvicorn of this checkout; yield its address and pid."""
    (folder / "empty.py").write_text(EMPTY)
    port = free_port()
    start = [
        sys.executable,
        "-m",
        "uvicorn",
        "empty:app",
        "--port",
        str(port),
        "--no-access-log",
        "--app-dir",
        str(folder),
    ]
    process = subprocess.Popen([*start, "--log-level", "error"])
    try:
        until(lambda: is_open(port), "the empty endpoint listens")
        yield f"http://127.0.0.1:{port}", process.pid
    finally:
        process.terminate()
        process.wait(30)


def is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def started(checkout: Path, folder: Path) -> Iterator[Service]:
    """Start a service whose default loop has 50 items and has learned a little."""
    with ExitStack() as stack:
        redis = stack.enter_context(EmbeddedRedis(folder / "redis"))
        port = free_port()
        env = {**os.environ, "REBOUND_REDIS_URL": redis.url, "PYTHONPATH": str(checkout)}
        processes = []
        for name, command in (("api", ["api", "--port", str(port)]), ("learn", ["learn"])):
            log = stack.enter_context((folder / f"{name}.log").open("wb"))
            start = [sys.executable, "-m", "service", *command]
            processes.append(subprocess.Popen(start, env=env, cwd=checkout, stdout=log, stderr=log))
            stack.callback(processes[-1].wait, 30)
            stack.callback(processes[-1].terminate)
            stack.callback(processes[-1].send_signal, signal.SIGCONT)
        url = f"http://127.0.0.1:{port}"
        client = stack.enter_context(httpx.Client(base_url=url, timeout=30))
        until(lambda: is_ready(client), f"{checkout} is ready (logs in {folder})", within_s=60)
        client.post("/items", json={"items": ITEMS}).raise_for_status()
        for number in range(100):
            decision = client.post("/recommend", json={"user_id": f"u{number}", "context": CONTEXT}).json()
            sent = {"decision_id": decision["decision_id"], "reward": number % 2}
            client.post("/feedback", json=sent).raise_for_status()
        until(lambda: client.get("/policies/adaptive").json()["events"] == 100, "the traffic is learned")
        until(lambda: client.post("/recommend", json={}).json()["version"] > 0, "a version is served")
        yield Service(url, *(process.pid for process in processes))


def is_ready(client: httpx.Client) -> bool:
    try:
        return client.get("/readyz").status_code == 200
    except httpx.HTTPError:
        return False


def cpu_seconds(pid: int) -> float:
    """Return the time that all threads of a process have been on a processor."""
    tasks = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9


def send_all(url: str, requests: Sequence[tuple[str, Any]]) -> list[Any]:
    """Send (path, body) requests over kept connections; return the replies in their order."""
    host, _, port = url.removeprefix("http://").partition(":")
    replies: list[Any] = [None] * len(requests)

    def work(first: int) -> None:
        with socket.create_connection((host, int(port))) as connection, connection.makefile("rb") as lines:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for at in range(first, len(requests), CONNECTIONS):
                path, body = requests[at]
                content = json.dumps(body).encode()
                head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
                connection.sendall(f"{head}content-length: {len(content)}\r\n\r\n".encode() + content)
                status, length = lines.readline(), 0
                while (line := lines.readline().strip()) != b"":
                    if line.lower().startswith(b"content-length:"):
                        length = int(line.split(b":")[1])
                reply = lines.read(length)
                assert status.split()[1] in (b"200", b"202"), (status, reply)
                replies[at] = json.loads(reply)

    threads = [threading.Thread(target=work, args=(first,)) for first in range(CONNECTIONS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert None not in replies
    return replies


def catalogue(n: int) -> list[tuple[str, Any]]:
    """Ask for one of the 50 items of the catalogue."""
    return [("/recommend", {"user_id": f"u{i}", "context": CONTEXT}) for i in range(n)]


def sent_candidates(n: int) -> list[tuple[str, Any]]:
    """Ask for one of 50 items that are sent with their features."""
    return [("/recommend", {"user_id": f"u{i}", "context": CONTEXT, "candidates": ITEMS}) for i in range(n)]


def sent_ids(n: int) -> list[tuple[str, Any]]:
    """Ask for one of 50 items that are sent as ids, but for 5."""
    ids = [item["id"] for item in ITEMS]
    body = {"context": CONTEXT, "candidates": ids, "exclude": ids[:5]}
    return [("/recommend", {"user_id": f"u{i}", **body}) for i in range(n)]


ASKED: dict[str, Callable[[int], list[tuple[str, Any]]]] = {
    "/recommend, catalogue of 50": catalogue,
    "/recommend, 50 ids sent": sent_ids,
    "/recommend, 50 items sent": sent_candidates,
}


def measure(service: Service, n: int) -> dict[str, float]:
    """Return the microseconds of CPU per request of the worker, by what was asked."""
    found = {}
    reports = []
    for name, make in ASKED.items():
        asked = make(n)
        before = cpu_seconds(service.worker)
        replies = send_all(service.url, asked)
        found[name] = 1e6 * (cpu_seconds(service.worker) - before) / n
        reports = [("/feedback", {"decision_id": reply["decision_id"], "reward": 1}) for reply in replies]
    before = cpu_seconds(service.worker)
    send_all(service.url, reports)
    found["/feedback"] = 1e6 * (cpu_seconds(service.worker) - before) / n
    return found


def test_cpu_per_request(tmp_path: Path, quick: bool) -> None:
    checkouts = {"this": HERE}
    if other := os.environ.get("COMPARE_WITH"):
        checkouts["other"] = (HERE / other).resolve()
    found: dict[str, list[dict[str, float]]] = {name: [] for name in checkouts}
    with ExitStack() as stack:
        services = {}
        for name, checkout in checkouts.items():
            (tmp_path / name).mkdir()
            services[name] = stack.enter_context(started(checkout, tmp_path / name))
        for service in services.values():
            os.kill(service.learner, signal.SIGSTOP)
            measure(service, 100)
        url, pid = stack.enter_context(empty(tmp_path))
        send_all(url, catalogue(100))
        of_empty = []
        for number in range(1 if quick else ROUNDS):
            before, n = cpu_seconds(pid), 50 if quick else REQUESTS
            send_all(url, catalogue(n))
            of_empty.append(1e6 * (cpu_seconds(pid) - before) / n)
            for name in sorted(services, reverse=number % 2 == 1):
                found[name].append(measure(services[name], 50 if quick else REQUESTS))
    least = statistics.median(of_empty)
    print(
        f"\nmicroseconds of CPU per request, median of {len(found['this'])} rounds in turns; empty endpoint {least:.0f}"
    )
    for asked in found["this"][0]:
        medians = {name: statistics.median(one[asked] for one in rounds) for name, rounds in found.items()}
        line = f"{asked:28} this {medians['this']:6.0f}, share of the empty endpoint {least / medians['this']:.3f}"
        if other:
            ratios = [a[asked] / b[asked] for a, b in zip(found["this"], found["other"], strict=True)]
            line += f"   other {medians['other']:6.0f}   this / other, median of pairs {statistics.median(ratios):.3f}"
            line += f" ({min(ratios):.3f} to {max(ratios):.3f})"
        print(line)
        assert medians["this"] > 0
