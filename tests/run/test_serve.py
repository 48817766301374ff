"""`rebound serve` as a whole: one real start for all tests of this file."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from service.run.embedded import EmbeddedRedis
from tests.certificates import certify
from tests.processes import Served
from tests.waiting import until

ROOT = Path(__file__).parents[2]
FAULT_S = 0.040  # the shortest delayed acknowledgement of Linux


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A service that speaks TLS; those of other files speak plain HTTP."""
    folder = tmp_path_factory.mktemp("serve")
    with Served(folder / "data", certified=certify(folder)) as served:
        yield served


def test_replies_on_a_kept_connection_do_not_wait_for_acknowledgements(served: Served) -> None:
    """With Nagle's algorithm on, every reply but a connection's first takes 40 ms or more.

    A machine under load delays some replies by that much too, so the quickest quarter decides.
    """
    seconds = []
    with httpx.Client(base_url=served.url, verify=served.verify) as client:
        for _ in range(20):
            started = time.perf_counter()
            client.get("/healthz").raise_for_status()
            seconds.append(time.perf_counter() - started)
    assert sorted(seconds)[5] < FAULT_S / 2, seconds


def test_the_health_checks_of_the_containers_pass(served: Served) -> None:
    env = {"REBOUND_REDIS_URL": EmbeddedRedis(served.data).url, "REBOUND_PORT": str(served.port)}
    env["REBOUND_TLS_CERT"] = "cert.pem"  # that it speaks TLS is all that a check needs to know
    checks = re.findall(r"test: \[CMD, python3, (-m, service\S+, \w+)\]", (ROOT / "docker-compose.yml").read_text())
    assert len(checks) == 2
    for check in checks:
        command = [sys.executable, *check.split(", ")]
        assert subprocess.run(command, env={**os.environ, **env}, stdout=subprocess.DEVNULL).returncode == 0


def test_a_frozen_worker_is_replaced_and_its_requests_end(served: Served) -> None:
    [frozen] = served.children("api")
    with httpx.Client(base_url=served.url, timeout=30, verify=served.verify) as client:
        client.get("/healthz").raise_for_status()  # the connection is the worker's
        os.kill(frozen, signal.SIGSTOP)
        with pytest.raises(httpx.TransportError) as ended:
            client.get("/healthz")
    assert not isinstance(ended.value, httpx.TimeoutException), "the socket was closed"
    until(served.ready, "another worker answers")
    assert frozen not in served.children("api")


def test_a_frozen_learner_is_replaced(served: Served) -> None:
    [frozen] = served.children("learn")
    os.kill(frozen, signal.SIGSTOP)
    until(lambda: served.children("learn") not in ([], [frozen]), "another learner runs")
    until(served.ready, "it is at work")
