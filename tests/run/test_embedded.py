"""The embedded Redis: a real server, its data safe from kill -9."""

import os
import signal
from pathlib import Path

import pytest
from redis import Redis
from structlog.testing import capture_logs

from service.run.embedded import EmbeddedRedis, EmbeddedRedisError, find_redis_server
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


def test_a_log_cut_off_in_the_middle_of_a_write_is_loaded(data: Path) -> None:
    """A kill -9 or a power loss in the middle of a write leaves such a log."""
    with EmbeddedRedis(data, fsync="always") as first, Redis.from_url(first.url) as redis:
        redis.set("whole", 1)
        redis.set("torn", 1)
    written = max(data.rglob("*.aof"), key=lambda path: path.stat().st_size)
    os.truncate(written, written.stat().st_size - 5)
    with EmbeddedRedis(data) as second, Redis.from_url(second.url) as redis:
        assert (redis.exists("whole"), redis.exists("torn")) == (1, 0)


def test_a_long_load_is_waited_for(data: Path) -> None:
    """Redis answers "loading" once in 1024 commands. The scripts make the load long enough for that to be seen."""

    def command(*words: str) -> str:
        return f"*{len(words)}\r\n" + "".join(f"${len(word)}\r\n{word}\r\n" for word in words)

    data.mkdir()
    with (data / "appendonly.aof").open("w", newline="") as log:
        for start in range(0, 20 * 1024, 1024):
            log.write(command("EVAL", "for i = 1, 1000000 do end", "0"))
            log.writelines(command("SET", str(key), "1") for key in range(start, start + 1024))
    with capture_logs() as logged, EmbeddedRedis(data) as redis, Redis.from_url(redis.url) as client:
        assert client.dbsize() == 20 * 1024
    assert [line["event"] for line in logged] == ["redis is loading its data"]


def test_a_start_can_be_given_up(data: Path) -> None:
    redis = EmbeddedRedis(data)
    redis.start(give_up=lambda: True)
    assert redis.process is not None
    redis.stop()
    assert redis.process.returncode is not None


def test_a_folder_serves_one(data: Path) -> None:
    with EmbeddedRedis(data), pytest.raises(EmbeddedRedisError, match=f"in use by process {os.getpid()}"):
        EmbeddedRedis(data).start()


def test_the_server_of_a_killed_service_is_ended(data: Path) -> None:
    """The lock ends with the process that held it; its redis-server may run on for a moment."""
    left = EmbeddedRedis(data)
    left.start()
    assert left.process is not None
    with Redis.from_url(left.url) as redis:
        redis.set("answer", 42)
    assert left._lock is not None
    left._lock.close()  # as the kernel does when the holder is killed
    with EmbeddedRedis(data) as next_one, Redis.from_url(next_one.url) as redis:
        left.process.wait(timeout=10)
        assert redis.get("answer") == b"42"


def test_a_server_that_hangs_is_named(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.run.embedded.ANSWER_S", 0.3)
    with EmbeddedRedis(data) as left:
        assert left.process is not None
        assert left._lock is not None
        left._lock.close()  # as the kernel does when the holder is killed
        os.kill(left.process.pid, signal.SIGSTOP)
        try:
            with pytest.raises(EmbeddedRedisError, match=f"end process {left.process.pid} first"):
                EmbeddedRedis(data).start()
        finally:
            os.kill(left.process.pid, signal.SIGCONT)


def test_a_long_folder_gets_a_short_socket(tmp_path: Path) -> None:
    deep = tmp_path / ("x" * 120)
    with EmbeddedRedis(deep) as redis:
        assert len(str(redis.socket)) < 100
        assert Redis.from_url(redis.url).ping()


@pytest.mark.parametrize("name", ["50% off?", "größe#1", "a b"])
def test_any_folder_name_makes_a_good_url(tmp_path: Path, name: str) -> None:
    with EmbeddedRedis(tmp_path / name) as redis, Redis.from_url(redis.url) as client:
        assert client.ping()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EmbeddedRedisError, match="cannot be used"):
        EmbeddedRedis(tmp_path / "file" / "data").start()


def test_a_server_that_does_not_start_is_explained_by_the_end_of_its_log(data: Path) -> None:
    data.mkdir()
    (data / "appendonly.aof").write_text("this is no log of Redis\n")
    redis = EmbeddedRedis(data)
    with pytest.raises(EmbeddedRedisError, match="Bad file format"):
        redis.start()
    redis.stop()


def test_no_server_says_how_to_get_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("service.run.embedded.find_spec", lambda name: None)
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
