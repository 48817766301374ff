"""The real thing for every test: a real redis-server, a real uvicorn, the real learner."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import hypothesis
import pytest
import structlog
import uvicorn
from redis.asyncio import Redis

from service.admin.loops import bootstrap
from service.api.app import create_app
from service.learn.learner import Learner
from service.records import LoopRecord
from service.run.embedded import EmbeddedRedis
from service.settings import Settings
from service.store import loop_store
from service.store.connection import connect
from service.store.keys import Keys
from tests.builders import loop_of, store_loop
from tests.waiting import until

# The same examples in every run: a red one is the fault of what changed. `make test ARGS=--hypothesis-profile=search`
# looks for new ones.
SLOW_IS_FINE = [hypothesis.HealthCheck.too_slow]  # no test fails because the machine is busy
hypothesis.settings.register_profile("same", derandomize=True, deadline=None, suppress_health_check=SLOW_IS_FINE)
hypothesis.settings.register_profile("search", max_examples=2000, deadline=None, suppress_health_check=SLOW_IS_FINE)
hypothesis.settings.load_profile("same")

# No test speaks TLS. Yet every new client of httpx reads the certificates that it would trust: 30 ms, in the processes
# that the tests start, too. From a folder it reads them only when they are needed.
os.environ.pop("SSL_CERT_FILE", None)
os.environ["SSL_CERT_DIR"] = os.path.dirname(__file__)
# Nor need each of those processes compile the service anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def own_logs() -> Iterator[None]:
    """A command that a test calls in its own process sets up logging; that ends with the test."""
    yield
    structlog.reset_defaults()


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One redis-server for the session; tests keep apart by the names of their loops.

    The loop `default` is there from the start. A service makes it on empty data only, and the data of this server is
    not empty any more where a test of single parts came first.
    """
    with EmbeddedRedis(tmp_path_factory.mktemp("redis")) as redis:
        asyncio.run(_first_start(redis.url))
        yield redis.url


async def _first_start(url: str) -> None:
    redis = connect(url, name="test", timeout_s=5)
    await bootstrap(redis)
    await redis.aclose()


@pytest.fixture(scope="session")
def quiet_redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A second redis-server, on which no service of the session is at work."""
    with EmbeddedRedis(tmp_path_factory.mktemp("quiet")) as redis:
        yield redis.url


@pytest.fixture
async def quiet_redis(quiet_redis_url: str) -> AsyncIterator[Redis]:
    """A connection to an empty Redis that the test has for itself."""
    connection = connect(quiet_redis_url, name="test", timeout_s=5)
    await connection.flushall()
    yield connection
    await connection.aclose()


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    """A connection to the session's Redis."""
    connection = connect(redis_url, name="test", timeout_s=5)
    yield connection
    await connection.aclose()


@pytest.fixture
async def loop(redis: Redis) -> AsyncIterator[LoopRecord]:
    """Store a loop that no running learner knows, with a retention of 1000 events; remove it afterwards."""
    record = loop_of(retention=1000)
    keys = await store_loop(redis, record)
    yield record
    await redis.delete(keys.record)
    await loop_store.remove_keys(redis, keys)


@pytest.fixture
def keys(loop: LoopRecord) -> Keys:
    """Return the keys of `loop`."""
    return Keys(loop.name, loop.id)


@pytest.fixture(scope="session")
def settings(redis_url: str) -> Settings:
    return Settings(redis_url=redis_url, publish_period_ms=20)


class Worker:
    """An API worker (and, if asked for, a learner) in a thread with an event loop of its own."""

    def __init__(self, settings: Settings, *, learner: bool, hot_path: bool = True) -> None:
        self._settings, self._learner = settings, learner
        app = create_app(settings, hot_path=hot_path)
        self.server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", access_log=False, lifespan="on"))
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)
        self._stop: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def _run(self) -> None:
        self._stop, self._loop = asyncio.Event(), asyncio.get_running_loop()
        redis = connect(str(self._settings.redis_url), name="test", timeout_s=5)
        learner = asyncio.create_task(Learner(redis, self._settings).run(self._stop)) if self._learner else None
        await self.server.serve()
        self._stop.set()
        if learner:
            await learner
        await redis.aclose()

    def __enter__(self) -> str:
        self._thread.start()
        until(lambda: self.server.started or not self._thread.is_alive(), "the worker starts")
        return f"http://127.0.0.1:{self.server.servers[0].sockets[0].getsockname()[1]}"

    def __exit__(self, *exc: object) -> None:
        self.server.should_exit = True
        self._thread.join(timeout=20)
        if self._thread.is_alive():
            assert self._loop is not None
            for task in asyncio.all_tasks(self._loop):
                task.print_stack()
            raise AssertionError("the worker did not stop; its tasks are above")


@pytest.fixture(scope="session")
def service(settings: Settings) -> Iterator[str]:
    """The address of a service with one worker and a learner, for all tests of the session."""
    with Worker(settings, learner=True) as url:
        yield url


@pytest.fixture
def client(service: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service, timeout=30, verify=False) as client:  # reading certificates takes 40 ms
        yield client


@pytest.fixture
def make_loop(client: httpx.Client) -> Iterator[Callable[..., str]]:
    """Makes a fresh loop with 10 items and, unless told otherwise, linucb serving; returns its name.

    The loops are deleted after the test: a worker and a learner look at every loop again and again.
    """
    names = []

    def make(
        *, items: int = 10, policy: str | None = "linucb", params: dict[str, Any] | None = None, **body: Any
    ) -> str:
        name = f"t-{uuid4().hex[:12]}"
        names.append(name)
        client.put(f"/loops/{name}", json=body).raise_for_status()
        if items:
            catalogue = [{"id": f"p{i:03}", "features": {"category": "ab"[i % 2], "price": i}} for i in range(items)]
            client.post("/items", params={"loop": name}, json={"items": catalogue}).raise_for_status()
        if policy:
            made = {"name": policy, "kind": policy, "params": params or {}}
            client.post("/policies", params={"loop": name}, json=made).raise_for_status()
            client.post(f"/policies/{policy}/activate", params={"loop": name}).raise_for_status()
        return name

    yield make
    for name in names:
        client.delete(f"/loops/{name}")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data folder for a service of the test's own."""
    return tmp_path / "data"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--size", type=float, default=0.06, help="size of the statistical and failure runs; 1 = the figures of the docs"
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with a slow test come first. One that began last would keep one process at work and the others idle."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def size(request: pytest.FixtureRequest) -> float:
    """Share of the full-size runs."""
    share: float = request.config.getoption("--size")
    return share
