"""No input, however malformed, gets a 500: schemathesis sends what the OpenAPI page allows, and what it does not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode

from service.run.embedded import EmbeddedRedis
from service.settings import Settings
from tests.conftest import Worker


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a service with a Redis of its own: what is sent makes and deletes loops and policies."""
    with (
        EmbeddedRedis(tmp_path_factory.mktemp("redis")) as redis,
        Worker(Settings(redis_url=redis.url), learner=True) as url,
    ):
        yield url


def check(case: Any) -> None:
    reply = case.call(timeout=60)
    assert reply.status_code < 500, f"{case.operation.label}: {reply.status_code} {reply.text}"
    if reply.status_code >= 400:
        assert reply.headers["content-type"] == ["application/problem+json"]
        assert reply.json()["code"]


def property_of(operation: Any, mode: GenerationMode, examples: int) -> Callable[[], None]:
    """A hypothesis test of one operation."""
    fixed = settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    test: Callable[[], None] = fixed(given(case=operation.as_strategy(generation_mode=mode))(check))
    return test


@pytest.mark.slow
@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_no_server_errors(alone: str, mode: GenerationMode, size: float) -> None:
    schema = schemathesis.openapi.from_url(f"{alone}/openapi.json")
    operations: list[Any] = [found.ok() for found in schema.get_all_operations()]  # type: ignore[union-attr]
    if mode is GenerationMode.NEGATIVE:
        operations = [o for o in operations if o.body]  # any text is a valid name in a path
    assert len(operations) >= 9
    for operation in operations:
        property_of(operation, mode, max(4, int(100 * size)))()
    assert httpx.get(f"{alone}/status").status_code == 200
