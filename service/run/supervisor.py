"""`rebound serve`: Redis, API workers and learner as children of one process, which restarts what dies."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from http.client import HTTPConnection, HTTPException
from pathlib import Path

import structlog
from prometheus_client import multiprocess

from service.settings import Settings
from service.store._children import die_with
from service.store.embedded import EmbeddedRedis, EmbeddedRedisError

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 5.0
SETTLED_S = 10.0  # a child that has lived so long is well again
READY_S = 30.0
STOP_S = 15.0
ONE_THREAD = {name: "1" for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")}

log = structlog.get_logger()


class PortTaken(OSError):
    """Something else listens there."""


@dataclass
class Child:
    """One process that is to run."""

    name: str
    command: Sequence[str]
    env: Mapping[str, str]
    pass_fds: Sequence[int] = ()
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    pause: float = FIRST_PAUSE_S
    restart_at: float = 0.0

    def start(self) -> None:
        # A session of its own: Ctrl-C reaches the supervisor alone, which stops its children in order.
        self.process = subprocess.Popen(
            self.command,
            env=dict(self.env),
            pass_fds=self.pass_fds,
            start_new_session=True,
            preexec_fn=partial(die_with, os.getpid()),
        )
        self.started = time.monotonic()
        self.restart_at = 0.0


def stop_all(children: Sequence[Child]) -> None:
    """Ask all at once, wait, insist."""
    running = [(child.name, child.process) for child in children if child.process and child.process.poll() is None]
    for _, process in running:
        process.terminate()
    deadline = time.monotonic() + STOP_S
    for name, process in running:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            log.warning("had to be killed", child=name)
            process.kill()
            process.wait()


class Supervisor:
    """Starts groups of children in order, restarts those that die (waiting longer each time), and at the end stops the
    groups in reverse order, the children of a group at once. Redis comes first and goes last.
    """

    def __init__(
        self,
        groups: Sequence[Sequence[Child]],
        *,
        redis: EmbeddedRedis | None = None,
        on_death: Callable[[int], None] = lambda pid: None,
    ) -> None:
        self._groups, self._redis, self._on_death = groups, redis, on_death
        self._children = [child for group in groups for child in group]
        self._redis_again = 0.0
        self._stopping = False

    def run(self, ready: Callable[[], bool], announce: Callable[[], None]) -> None:
        """Until SIGINT or SIGTERM. `announce` is called once, when `ready` first says so.

        Raises:
            EmbeddedRedisError: Redis does not come up at the start.
        """
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._stop)
        try:
            if self._redis is not None:
                self._redis.start(give_up=lambda: self._stopping)
            self._watch_children()
            self._watch_until_stopped(ready, announce)
        finally:
            for group in reversed(self._groups):
                stop_all(group)
            if self._redis is not None:
                self._redis.stop()

    def _stop(self, number: int, frame: object) -> None:
        self._stopping = True

    def _watch_until_stopped(self, ready: Callable[[], bool], announce: Callable[[], None]) -> None:
        announced, deadline = False, time.monotonic() + READY_S
        while not self._stopping:
            self._watch_redis()
            self._watch_children()
            if not announced and ready():
                announced = True
                announce()
            elif not announced and time.monotonic() > deadline:
                deadline = float("inf")
                log.warning("still not ready; the lines above say why", after_s=READY_S)
            time.sleep(0.05)

    def _watch_redis(self) -> None:
        redis = self._redis
        if redis is None or redis.process is None or redis.process.poll() is None:
            return
        if time.monotonic() < self._redis_again:
            return
        log.error("redis died; starting it again on the same data", code=redis.process.returncode)
        pause = 1.0
        try:
            redis.start(give_up=self._watch_children)
        except EmbeddedRedisError as error:  # a full disk, say: workers serve from memory until it is mended
            pause = LONGEST_PAUSE_S
            log.error("redis did not come back", error=str(error), again_in_s=pause)
        self._redis_again = time.monotonic() + pause

    def _watch_children(self) -> bool:
        """Start whoever does not run and may; whether all are to stop."""
        for child in self._children:
            if self._stopping:
                break
            self._watch(child)
        return self._stopping

    def _watch(self, child: Child) -> None:
        now = time.monotonic()
        if child.process is None:
            child.start()
        elif child.process.poll() is None:
            if now - child.started > SETTLED_S:
                child.pause = FIRST_PAUSE_S
        elif child.restart_at == 0.0:
            code = child.process.returncode
            log.error("died; starting it again", child=child.name, code=code, after_s=child.pause)
            self._on_death(child.process.pid)
            child.restart_at = now + child.pause
            child.pause = min(child.pause * 2, LONGEST_PAUSE_S)
        elif now >= child.restart_at:
            child.start()


def listen(host: str, port: int) -> socket.socket:
    """The socket that all workers share.

    Raises:
        PortTaken: says by what name to choose another.
    """
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise PortTaken(
            f"{host}:{port} cannot be listened on ({error.strerror}); choose another with --port"
        ) from error
    return listener


def serve(settings: Settings, *, announce: Callable[[str], None]) -> None:
    """Run the whole service until SIGINT or SIGTERM; `announce` gets its address when it is ready.

    Raises:
        PortTaken, EmbeddedRedisError.
    """
    listener = listen(settings.host, settings.port)
    embedded = EmbeddedRedis(settings.data, fsync=settings.fsync)
    embedded.lock()  # also where Redis is elsewhere: the folder holds this run's metrics
    metrics = embedded.data / "metrics"
    _fresh(metrics)
    env = {
        **os.environ,
        "REBOUND_REDIS_URL": settings.redis_url or embedded.url,
        "REBOUND_HOST": settings.host,
        "PROMETHEUS_MULTIPROC_DIR": str(metrics),
    }
    python, fd = [sys.executable, "-m", "service"], listener.fileno()
    learner = Child("learner", [*python, "learn"], env)
    worker = [*python, "api", "--fd", str(fd)]
    workers = [Child(f"api-{i}", worker, {**env, **ONE_THREAD}, pass_fds=(fd,)) for i in range(settings.workers)]

    def forget(pid: int) -> None:
        with suppress(FileNotFoundError):
            multiprocess.mark_process_dead(pid, str(metrics))  # type: ignore[no-untyped-call]

    redis = None if settings.redis_url else embedded
    supervisor = Supervisor([[learner], workers], redis=redis, on_death=forget)
    port = listener.getsockname()[1]
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    supervisor.run(lambda: _ready(settings.host, port), lambda: announce(f"http://{host}:{port}"))


def _fresh(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()


def _ready(host: str, port: int) -> bool:
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    connection = HTTPConnection(reachable, port, timeout=1)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()
