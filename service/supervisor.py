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
from http.client import HTTPConnection, HTTPException
from pathlib import Path

import structlog
from prometheus_client import multiprocess

from service.settings import Settings
from service.store._children import die_with_parent
from service.store.embedded import EmbeddedRedis

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 5.0
SETTLED_S = 10.0  # a child that has lived so long is well again
STOP_S = 15.0

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
            self.command, env=dict(self.env), pass_fds=self.pass_fds, start_new_session=True, preexec_fn=die_with_parent
        )
        self.started = time.monotonic()
        self.restart_at = 0.0

    @property
    def dead(self) -> bool:
        return self.process is None or self.process.poll() is not None

    def stop(self) -> None:
        """Ask, wait, insist."""
        if self.process is None or self.dead:
            return
        self.process.terminate()
        try:
            self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            log.warning("had to be killed", child=self.name)
            self.process.kill()
            self.process.wait()


class Supervisor:
    """Starts children in order, restarts those that die (waiting longer each time), stops them in reverse order."""

    def __init__(
        self, children: Sequence[Child], *, redis: EmbeddedRedis | None, on_death: Callable[[int], None]
    ) -> None:
        self._children, self._redis, self._on_death = children, redis, on_death
        self._stopping = False

    def start(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._stop)
        if self._redis is not None:
            self._redis.start()
        for child in self._children:
            child.start()

    def _stop(self, number: int, frame: object) -> None:
        self._stopping = True

    def run(self, ready: Callable[[], bool], announce: Callable[[], None]) -> None:
        """Until SIGINT or SIGTERM. `announce` is called once, when `ready` first says so."""
        announced = False
        try:
            while not self._stopping:
                self._watch_redis()
                for child in self._children:
                    self._watch(child)
                if not announced and ready():
                    announced = True
                    announce()
                time.sleep(0.05)
        finally:
            for child in reversed(self._children):
                child.stop()
            if self._redis is not None:
                self._redis.stop()

    def _watch_redis(self) -> None:
        redis = self._redis
        if redis is not None and redis.process is not None and redis.process.poll() is not None:
            log.error("redis died; starting it again on the same data", code=redis.process.returncode)
            redis.start()

    def _watch(self, child: Child) -> None:
        now = time.monotonic()
        if not child.dead:
            if now - child.started > SETTLED_S:
                child.pause = FIRST_PAUSE_S
            return
        if child.restart_at == 0.0:
            assert child.process is not None
            log.error("died; starting it again", child=child.name, code=child.process.returncode, after_s=child.pause)
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
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise PortTaken(
            f"{host}:{port} cannot be listened on ({error.strerror}); choose another with --port"
        ) from error
    listener.listen(2048)
    listener.set_inheritable(True)
    return listener


def serve(settings: Settings, *, announce: Callable[[str], None]) -> None:
    """Run the whole service until SIGINT or SIGTERM; `announce` gets its address when it is ready.

    Raises:
        PortTaken, EmbeddedRedisError.
    """
    listener = listen(settings.host, settings.port)
    redis = None if settings.redis_url else EmbeddedRedis(settings.data, fsync=settings.fsync)
    metrics = settings.data.resolve() / "metrics"
    env = {
        **os.environ,
        "REBOUND_REDIS_URL": settings.redis_url or redis.url,  # type: ignore[union-attr]
        "REBOUND_HOST": settings.host,
        "PROMETHEUS_MULTIPROC_DIR": str(metrics),
    }
    one_thread = {name: "1" for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    python = [sys.executable, "-m", "service"]
    children = [Child("learner", [*python, "learn"], env)]
    fd = listener.fileno()
    for number in range(settings.workers):
        command = [*python, "api", "--fd", str(fd)]
        children.append(Child(f"api-{number}", command, {**env, **one_thread}, pass_fds=(fd,)))

    def forget(pid: int) -> None:
        with suppress(FileNotFoundError):
            multiprocess.mark_process_dead(pid, str(metrics))  # type: ignore[no-untyped-call]

    supervisor = Supervisor(children, redis=redis, on_death=forget)
    _fresh(metrics)
    host, port = settings.host, listener.getsockname()[1]
    supervisor.start()
    supervisor.run(lambda: _ready(host, port), lambda: announce(f"http://{host}:{port}"))


def _fresh(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _ready(host: str, port: int) -> bool:
    connection = HTTPConnection(host if host not in ("0.0.0.0", "::") else "127.0.0.1", port, timeout=1)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()
