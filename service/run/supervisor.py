"""Run `rebound serve`: start Redis, API workers and a learner as child processes; restart each that dies or hangs."""

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
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path

import structlog
from prometheus_client import multiprocess

from service.run.children import end_with_parent
from service.run.embedded import EmbeddedRedis, EmbeddedRedisError
from service.run.pulse import Watched
from service.run.tls import unverified
from service.settings import Settings

FIRST_BACKOFF_S, LONGEST_BACKOFF_S = 0.1, 5.0  # before a restart; doubles with each
FROZEN_S = 2.0  # silence of an API worker's event loop after which it is killed and started again
LEARNER_FROZEN_S = 6.0  # of the learner: it may compute for a while
SETTLED_S = 10.0  # a child that has run so long starts again at the first back-off
READY_S = 30.0  # after which a start that is not ready is logged
STOP_S = 15.0  # from SIGTERM to SIGKILL
POLL_S = 0.05
BACKLOG = 2048
ONE_THREAD = {name: "1" for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")}

log = structlog.get_logger()


class PortTaken(OSError):
    """The address cannot be listened on. The message says how to choose another."""


@dataclass
class Child:
    """A process that the supervisor keeps running.

    Attributes:
        name: for the log.
        command, env, pass_fds: as for `subprocess.Popen`; `env` is the whole environment.
        frozen_s: after so many seconds without a sign of life it is killed; it gets the option `--pulse`, the
            descriptor to write to (`pulse.py`). None: it gives no signs.
        process: the newest process, None before the first start.
        started: when it was started, in seconds of the monotonic clock.
        backoff_s: how long the next restart waits.
        restart_at: when to restart, in seconds of the monotonic clock; 0 while the process runs.
    """

    name: str
    command: Sequence[str]
    env: Mapping[str, str]
    pass_fds: Sequence[int] = ()
    frozen_s: float | None = None
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    backoff_s: float = FIRST_BACKOFF_S
    restart_at: float = 0.0
    watched: Watched | None = None

    def start(self) -> None:
        """Start the process."""
        command, fds = list(self.command), list(self.pass_fds)
        if self.watched is not None:
            self.watched.close()
        if self.frozen_s is not None:
            self.watched = Watched(time.monotonic())
            command += ["--pulse", str(self.watched.fd)]
            fds.append(self.watched.fd)
        # A session of its own keeps Ctrl-C from it: the supervisor stops its children in order.
        self.process = subprocess.Popen(
            command,
            env=dict(self.env),
            pass_fds=fds,
            start_new_session=True,
            preexec_fn=partial(end_with_parent, os.getpid()),
        )
        if self.watched is not None:
            self.watched.started()
        self.started = time.monotonic()
        self.restart_at = 0.0

    def is_frozen(self, now: float) -> bool:
        """Return whether the process runs and has shown no life for too long."""
        return self.watched is not None and self.frozen_s is not None and self.watched.silence(now) > self.frozen_s


def stop_all(children: Sequence[Child]) -> None:
    """Send SIGTERM to all, wait 15 s, then SIGKILL."""
    running = [(child.name, child.process) for child in children if child.process and child.process.poll() is None]
    for _, process in running:
        process.terminate()
    deadline = time.monotonic() + STOP_S
    for name, process in running:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            log.warning("did not end after SIGTERM; killing it", child=name, after_s=STOP_S)
            process.kill()
            process.wait()


class Supervisor:
    """Start groups of children in order, restart the ones that die, and stop the groups in reverse order.

    Redis starts before all groups and stops after them. The children of one group stop at the same time.
    Each restart of a child waits twice as long as the one before, up to 5 s.

    Args:
        groups: the children, in the order of their start.
        redis: the embedded Redis, None if Redis runs elsewhere.
        on_death: called with the process id of each child that died by itself.
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
        self._redis_restart_at = 0.0
        self._stopping = False

    def run(self, ready: Callable[[], bool], announce: Callable[[], None]) -> None:
        """Start all and keep them running until SIGINT or SIGTERM, then stop them.

        Args:
            ready: called every 50 ms until it returns true.
            announce: called once, as soon as `ready` returns true.

        Raises:
            EmbeddedRedisError: Redis does not start the first time.
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
                log.warning("not ready yet; the lines above say why", after_s=READY_S)
            time.sleep(POLL_S)

    def _watch_redis(self) -> None:
        redis = self._redis
        if redis is None or redis.process is None or redis.process.poll() is None:
            return
        if time.monotonic() < self._redis_restart_at:
            return
        log.error("redis died; starting it again on the same data", code=redis.process.returncode)
        wait_s = 1.0
        try:
            redis.start(give_up=self._watch_children)
        except EmbeddedRedisError as error:  # such as a full disk; the workers serve from memory meanwhile
            wait_s = LONGEST_BACKOFF_S
            log.error("redis did not start", error=str(error), again_in_s=wait_s)
        self._redis_restart_at = time.monotonic() + wait_s

    def _watch_children(self) -> bool:
        """Start each child that is due; return whether the supervisor is stopping."""
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
            if child.is_frozen(now):
                log.error("does not answer; killing it", child=child.name, after_s=child.frozen_s)
                child.process.kill()
            elif now - child.started > SETTLED_S:
                child.backoff_s = FIRST_BACKOFF_S
        elif child.restart_at == 0.0:
            code = child.process.returncode
            log.error("died; starting it again", child=child.name, code=code, after_s=child.backoff_s)
            self._on_death(child.process.pid)
            child.restart_at = now + child.backoff_s
            child.backoff_s = min(child.backoff_s * 2, LONGEST_BACKOFF_S)
        elif now >= child.restart_at:
            child.start()


def listen(host: str, port: int) -> socket.socket:
    """Return a listening TCP socket, to be shared by all workers.

    Args:
        host: an IPv4 or IPv6 address, or a name that resolves to an IPv4 address.
        port: 0 for any free port.

    Raises:
        PortTaken: the address cannot be listened on.
    """
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise PortTaken(
            f"{host}:{port} cannot be listened on ({error.strerror}); choose another with --port"
        ) from error
    return listener


def serve(settings: Settings, *, announce: Callable[[str], None]) -> None:
    """Run the whole service until SIGINT or SIGTERM.

    Args:
        announce: called once with the service's URL, when it is ready.

    Raises:
        PortTaken: host and port cannot be listened on.
        EmbeddedRedisError: Redis does not start, or the data folder is in use.
    """
    listener = listen(settings.host, settings.port)
    embedded = EmbeddedRedis(settings.data, fsync=settings.fsync)
    embedded.lock()  # also if Redis is elsewhere: the folder holds this run's metrics
    metrics = embedded.data / "metrics"
    _make_empty(metrics)
    env = {
        **os.environ,
        "REBOUND_REDIS_URL": settings.redis_url or embedded.url,
        "REBOUND_HOST": settings.host,
        "PROMETHEUS_MULTIPROC_DIR": str(metrics),
    }
    tls = settings.tls_cert is not None
    if tls:
        env |= {"REBOUND_TLS_CERT": str(settings.tls_cert), "REBOUND_TLS_KEY": str(settings.tls_key)}
    python, fd = [sys.executable, "-m", "service"], listener.fileno()
    learner = Child("learner", [*python, "learn"], env, frozen_s=LEARNER_FROZEN_S)
    worker = [*python, "api", "--fd", str(fd)]
    workers = [
        Child(f"api-{i}", worker, {**env, **ONE_THREAD}, pass_fds=(fd,), frozen_s=FROZEN_S)
        for i in range(settings.workers)
    ]

    def forget_metrics(pid: int) -> None:
        with suppress(FileNotFoundError):
            multiprocess.mark_process_dead(pid, str(metrics))  # type: ignore[no-untyped-call]

    redis = None if settings.redis_url else embedded
    supervisor = Supervisor([[learner], workers], redis=redis, on_death=forget_metrics)
    port = listener.getsockname()[1]
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    url = f"http{'s' if tls else ''}://{host}:{port}"
    supervisor.run(lambda: _is_ready(settings.host, port, tls=tls), lambda: announce(url))


def _make_empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()


def _is_ready(host: str, port: int, *, tls: bool) -> bool:
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    connection = (
        HTTPSConnection(reachable, port, timeout=1, context=unverified())
        if tls
        else HTTPConnection(reachable, port, timeout=1)
    )
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()
