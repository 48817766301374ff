"""The supervisor, with stand-ins for its children: real processes, really killed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from redis import Redis
from redis.exceptions import RedisError

from service.run.embedded import EmbeddedRedis
from service.run.supervisor import FIRST_BACKOFF_S, Child, PortTaken, listen, stop_all
from tests.processes import alive
from tests.run.stand_ins import FROZEN_S, NAMES, supervise
from tests.waiting import until

# One process imports the supervisor once, and each test's supervisor is forked from it.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.run.stand_ins"])


class Running:
    """A supervisor in a process of its own; children write their ids to a file of their name."""

    def __init__(self, folder: Path, *, redis: bool) -> None:
        self.folder = folder
        self.process = FORKS.Process(target=supervise, args=(folder,), kwargs={"redis": redis})
        self.process.start()
        assert self.process.pid is not None
        self.supervisor: int = self.process.pid
        until(lambda: (folder / "announced").exists(), "all children run")

    def lines(self, name: str) -> list[str]:
        file = self.folder / name
        return file.read_text().splitlines() if file.exists() else []

    def pid(self, name: str) -> int:
        """The newest process of that name."""
        return int(self.lines(name)[-1])

    def children(self) -> list[int]:
        tasks = Path(f"/proc/{self.supervisor}/task").iterdir()
        return [int(pid) for task in tasks for pid in (task / "children").read_text().split()]

    def exit_code(self) -> int | None:
        """Wait for the supervisor's end, at most 30 s."""
        self.process.join(timeout=30)
        return self.process.exitcode


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    running: list[Running] = []

    def begin(*, redis: bool = False) -> Running:
        for name in ("announced", *NAMES):
            (tmp_path / name).unlink(missing_ok=True)
        running.append(Running(tmp_path, redis=redis))
        return running[-1]

    yield begin
    for one in running:
        one.process.terminate()
        assert one.exit_code() is not None


@pytest.mark.parametrize(("name", "number"), [("api-0", signal.SIGKILL), ("api-1", signal.SIGSTOP)])
def test_a_dead_or_frozen_child_is_started_again_and_reported(
    start: Callable[..., Running], name: str, number: signal.Signals
) -> None:
    running = start()
    others = {other: running.pid(other) for other in NAMES if other != name}
    struck = running.pid(name)
    os.kill(struck, number)
    until(lambda: len(running.lines(name)) == 2, "it runs again")
    assert running.lines("died") == [str(struck)]
    assert not alive(struck)
    assert {other: running.pid(other) for other in others} == others, "the others were left alone"
    assert all(alive(pid) for pid in others.values())


def test_a_supervisor_that_stood_still_itself_kills_nobody(start: Callable[..., Running]) -> None:
    running = start()
    os.kill(running.supervisor, signal.SIGSTOP)
    time.sleep(1.5 * FROZEN_S)  # what it slept through is what the test is about
    os.kill(running.supervisor, signal.SIGCONT)
    os.kill(running.pid("api-0"), signal.SIGKILL)
    until(lambda: len(running.lines("api-0")) == 2, "it is at work again")
    assert len(running.lines("api-1")) == 1


def test_each_restart_of_a_child_waits_longer(start: Callable[..., Running]) -> None:
    running = start()
    took = []
    for restart in range(2, 5):
        os.kill(running.pid("api-0"), signal.SIGKILL)
        killed = time.monotonic()
        until(lambda wanted=restart: len(running.lines("api-0")) == wanted, "it runs again")  # type: ignore[misc]
        took.append(time.monotonic() - killed)
    for doublings, seconds in enumerate(took):
        assert seconds >= FIRST_BACKOFF_S * 2**doublings


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_workers_stop_before_the_learner(start: Callable[..., Running], number: signal.Signals) -> None:
    running = start(redis=True)
    pids = running.children()
    assert len(pids) == 4
    os.kill(running.supervisor, number)
    assert running.exit_code() == 0
    *workers, learner = running.lines("ended")
    assert (sorted(workers), learner) == (["api-0", "api-1"], "learner")
    assert not any(alive(pid) for pid in pids)


def test_kill_9_of_the_supervisor_leaves_no_process(start: Callable[..., Running]) -> None:
    running = start(redis=True)
    pids = running.children()
    assert len(pids) == 4
    assert all(alive(pid) for pid in pids)
    os.kill(running.supervisor, signal.SIGKILL)
    assert running.exit_code() == -signal.SIGKILL
    until(lambda: not any(alive(pid) for pid in pids), "all children have ended")


def test_redis_is_started_again_on_its_data(start: Callable[..., Running]) -> None:
    running = start(redis=True)
    worker = running.pid("api-0")
    with Redis.from_url(EmbeddedRedis(running.folder / "data").url) as redis:
        redis.set("answer", 42)
        pid = int(redis.info("server")["process_id"])
        os.kill(pid, signal.SIGKILL)
        until(lambda: not alive(pid), "redis is dead")

        def back() -> bool:
            try:
                return bool(redis.get("answer") == b"42")
            except RedisError:
                return False

        until(back, "it answers again")
        assert redis.info("server")["process_id"] != pid
    assert running.pid("api-0") == worker, "its clients were left alone"


def test_state_survives_kill_9_of_everything(start: Callable[..., Running]) -> None:
    running = start(redis=True)
    url = EmbeddedRedis(running.folder / "data").url
    with Redis.from_url(url) as redis:
        redis.set("answer", 42)
    pids = [*running.children(), running.supervisor]
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    until(lambda: not any(alive(pid) for pid in pids), "all are dead")
    start(redis=True)
    with Redis.from_url(url) as redis:
        assert redis.get("answer") == b"42"


def test_a_child_that_ignores_sigterm_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.run.supervisor.STOP_S", 0.2)
    code = "import signal, sys; signal.signal(signal.SIGTERM, signal.SIG_IGN); open(sys.argv[1], 'w'); signal.pause()"
    stubborn = Child("stubborn", [sys.executable, "-I", "-S", "-c", code, str(tmp_path / "ignores")], {})
    stubborn.start()
    assert stubborn.process is not None
    until(lambda: (tmp_path / "ignores").exists(), "it ignores SIGTERM")
    stop_all([stubborn])
    assert stubborn.process.returncode == -signal.SIGKILL


def test_a_taken_port_is_refused() -> None:
    with listen("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(PortTaken, match=f"127.0.0.1:{port} .*--port"):
            listen("127.0.0.1", port)
