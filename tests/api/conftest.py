"""A second worker on the same Redis, without the hot path."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from service.settings import Settings
from tests.conftest import Worker


@pytest.fixture(scope="package")
def ordinary(settings: Settings, service: str) -> Iterator[str]:
    """The address of a worker that answers the hot routes through FastAPI's router. It shares Redis with `service`."""
    with Worker(settings, learner=False, hot_path=False) as url:
        yield url


@pytest.fixture
def other_client(ordinary: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=ordinary, timeout=30, verify=False) as client:
        yield client
