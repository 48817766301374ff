"""A service of real processes, as `rebound serve` starts it, to be killed."""

from __future__ import annotations

import os
import signal
import socket
import ssl
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import httpx
from redis import Redis

from service.store.keys import Keys, loop_record
from tests.certificates import Certified
from tests.waiting import until


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Served:
    """`rebound serve` on a data folder; can be killed and started again.

    Args:
        certified: it speaks TLS with this certificate; None: plain HTTP.
    """

    def __init__(self, data: Path, *, workers: int = 1, certified: Certified | None = None, **env: str) -> None:
        self.data, self.port = data, free_port()
        self.url = f"http://127.0.0.1:{self.port}" if certified is None else f"https://127.0.0.1:{self.port}"
        self.verify: ssl.SSLContext | bool = False if certified is None else certified.trust()
        self._command = [sys.executable, "-m", "service", "serve", "--port", str(self.port), "--data", str(data)]
        self._command += ["--workers", str(workers)]
        if certified is not None:
            self._command += ["--tls-cert", str(certified.cert), "--tls-key", str(certified.key)]
        self._env = {**os.environ, **env}
        self._log = data.parent / f"{data.name}.log"
        self.process: subprocess.Popen[bytes]

    def start(self) -> None:
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(self._command, env=self._env, stdout=log, stderr=log)
        until(self.ready, f"the service at {self.url} is ready (its log: {self._log})", within_s=60)

    def ready(self) -> bool:
        assert self.process.poll() is None, self._log.read_text()[-2000:]
        try:
            status = httpx.get(f"{self.url}/status", timeout=2, verify=self.verify).json()
        except (httpx.HTTPError, ValueError):
            return False
        return bool(status["rung"] == "ok")

    @property
    def redis_url(self) -> str:
        """Address of its Redis."""
        return f"unix://{self.data}/redis.sock"

    def keys(self, loop: str) -> Keys:
        """The keys of one of its loops, in Redis."""
        with Redis.from_url(self.redis_url) as redis:
            loop_id: bytes = redis.hget(loop_record(loop), "id")
            return Keys(loop, loop_id.decode())

    def children(self, word: str = "") -> list[int]:
        """Process ids of the supervisor's children whose command line holds `word`."""
        found = []
        for task in Path(f"/proc/{self.process.pid}/task").iterdir():
            for pid in (task / "children").read_text().split():
                with suppress(FileNotFoundError):  # gone this very moment
                    line = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
                    if word in line:
                        found.append(int(pid))
        return found

    def kill(self, word: str) -> int:
        """SIGKILL to one child; its process id."""
        pid = self.children(word)[0]
        os.kill(pid, signal.SIGKILL)
        return pid

    def kill_everything(self) -> None:
        """SIGKILL to all at once, the supervisor and Redis too."""
        pids = [*self.children(), self.process.pid]
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        self.process.wait()
        until(lambda: not any(alive(pid) for pid in pids), "all processes are gone")

    def stop(self) -> int:
        """Ctrl-C; the exit code."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(timeout=30)

    def __enter__(self) -> Served:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self.process.poll() is None:
            self.stop()


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"
