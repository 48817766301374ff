"""The embedded Redis: a real server, its data safe from kill -9."""

import os
import signal
from pathlib import Path

import pytest
from redis import Redis

from service.store.embedded import EmbeddedRedis, EmbeddedRedisError, find_redis_server
from tests.processes import alive
from tests.waiting import until


def test_data_survives_kill_9(data: Path) -> None:
    first = EmbeddedRedis(data, fsync="always")
    first.start()
    with Redis.from_url(first.url) as redis:
        redis.set("answer", 42)
    assert first.process is not None
    os.kill(first.process.pid, signal.SIGKILL)
    first.process.wait()
    first.stop()
    with EmbeddedRedis(data) as second, Redis.from_url(second.url) as redis:
        assert redis.get("answer") == b"42"
        assert redis.config_get("appendonly")["appendonly"] == "yes"
        assert redis.config_get("maxmemory-policy")["maxmemory-policy"] == "noeviction"


def test_a_folder_serves_one(data: Path) -> None:
    with EmbeddedRedis(data), pytest.raises(EmbeddedRedisError, match=f"in use by process {os.getpid()}"):
        EmbeddedRedis(data).start()


def test_the_server_of_a_killed_service_is_ended(data: Path) -> None:
    """The lock goes with the process that held it; its redis-server may live on for a moment."""
    left = EmbeddedRedis(data)
    left.start()
    assert left.process is not None
    with Redis.from_url(left.url) as redis:
        redis.set("answer", 42)
    left._lock.close()  # as the kernel does when the holder is killed
    with EmbeddedRedis(data) as next_one, Redis.from_url(next_one.url) as redis:
        left.process.wait(timeout=10)
        assert redis.get("answer") == b"42"


def test_a_long_folder_gets_a_short_socket(tmp_path: Path) -> None:
    deep = tmp_path / ("x" * 120)
    with EmbeddedRedis(deep) as redis:
        assert len(str(redis.socket)) < 100
        assert Redis.from_url(redis.url).ping()


def test_no_server_says_how_to_get_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("service.store.embedded.find_spec", lambda name: None)
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    with pytest.raises(EmbeddedRedisError, match="REBOUND_REDIS_URL"):
        find_redis_server()


def test_it_is_gone_after_stop(data: Path) -> None:
    redis = EmbeddedRedis(data)
    redis.start()
    assert redis.process is not None
    pid = redis.process.pid
    redis.stop()
    until(lambda: not alive(pid), "the server has ended")
