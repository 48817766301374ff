"""The health checks: right about what they ask, and light."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import pytest
from redis import Redis

from service.run import health
from service.run.embedded import EmbeddedRedis
from service.run.supervisor import listen
from service.store.keys import LEARNER

ROOT = Path(__file__).parents[2]
PASSWORD = "p@ss: word/1"


@contextmanager
def closed_port() -> Iterator[int]:
    """A port that nobody listens on and nobody else gets meanwhile."""
    with listen("127.0.0.1", 0) as listener:
        port: int = listener.getsockname()[1]
        listener.close()
        yield port


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedRedis]:
    """A Redis of its own: the key is one for the whole server."""
    with EmbeddedRedis(tmp_path_factory.mktemp("health")) as redis:
        yield redis


def port_of(redis: EmbeddedRedis) -> int:
    """Let Redis listen on a TCP port too; the port."""
    with closed_port() as port, Redis.from_url(redis.url) as client:
        client.config_set("port", port)
        return port


def test_a_learner_is_seen_for_as_long_as_its_heartbeat_lasts(redis: EmbeddedRedis) -> None:
    with Redis.from_url(redis.url) as client:
        assert not health.learner_alive(redis.url)
        client.set(LEARNER, 1)
        assert health.learner_alive(redis.url)
        client.delete(LEARNER)
        assert not health.learner_alive(redis.url)


@pytest.mark.parametrize("path", ["/3", "/3?db=3", "?db=3", "/2?db=3"])
def test_the_database_of_the_url_is_asked(redis: EmbeddedRedis, path: str) -> None:
    url = f"redis://127.0.0.1:{port_of(redis)}"
    with Redis.from_url(url + path) as client:
        client.set(LEARNER, 1)
        assert health.learner_alive(url + path)
        assert not health.learner_alive(url + "/0")
        client.delete(LEARNER)


@pytest.mark.parametrize("user", ["", "default"])
def test_the_password_of_the_url_is_sent(redis: EmbeddedRedis, user: str) -> None:
    with Redis.from_url(redis.url) as client:
        client.set(LEARNER, 1)
        client.config_set("requirepass", PASSWORD)
        try:
            path = redis.url.removeprefix("unix://")
            assert health.learner_alive(f"unix://{user}:{quote(PASSWORD, safe='')}@{path}")
            with pytest.raises(OSError, match="NOAUTH"):
                health.learner_alive(redis.url)
            with pytest.raises(OSError, match=r"WRONGPASS|invalid"):
                health.learner_alive(f"unix://{user}:wrong@{path}")
        finally:
            client.config_set("requirepass", "")
            client.delete(LEARNER)


def test_a_url_with_other_options_is_left_to_the_client(redis: EmbeddedRedis) -> None:
    url = redis.url + "?protocol=2"
    with Redis.from_url(redis.url) as client:
        assert not health.learner_alive(url)
        client.set(LEARNER, 1)
        assert health.learner_alive(url)
        client.delete(LEARNER)


def test_a_redis_that_hangs_is_not_waited_for() -> None:
    with listen("127.0.0.1", 0) as deaf, pytest.raises(TimeoutError):
        health.learner_alive(f"redis://127.0.0.1:{deaf.getsockname()[1]}", timeout_s=0.05)


def test_the_check_prints_one_line_and_exits_with_its_verdict(
    redis: EmbeddedRedis, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], service: str
) -> None:
    monkeypatch.setenv("REBOUND_REDIS_URL", redis.url)
    assert health.main(["learner"]) == 1
    with Redis.from_url(redis.url) as client:
        client.set(LEARNER, 1)
        assert health.main(["learner"]) == 0
        client.delete(LEARNER)
    monkeypatch.setenv("REBOUND_PORT", service.rsplit(":", 1)[1])
    assert health.main(["api"]) == 0
    with closed_port() as port:
        monkeypatch.setenv("REBOUND_PORT", str(port))
        assert health.main(["api"]) == 1
        monkeypatch.setenv("REBOUND_REDIS_URL", f"redis://127.0.0.1:{port}")
        assert health.main(["learner"]) == 1
    monkeypatch.delenv("REBOUND_REDIS_URL")
    assert health.main(["learner"]) == 2
    assert health.main([]) == 2
    *answers, usage = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in answers] == [
        "no learner has been heard of in the last 10 s",
        "a learner is at work",
        "the API is ready",
        "no answer",
        "no answer",
        "REBOUND_REDIS_URL is not set",
    ]
    assert usage.startswith("usage:")


def test_the_check_imports_the_standard_library_only() -> None:
    """Importing the service took 1.2 CPU seconds of every 10 in the learner's container."""
    code = "import sys; before = set(sys.modules); import service.run.health; print(*set(sys.modules) - before)"
    listed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    packages = {name.split(".")[0] for name in listed.stdout.split()}
    assert "service" in packages
    assert packages - {"service"} <= sys.stdlib_module_names
