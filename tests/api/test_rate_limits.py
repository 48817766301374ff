"""Rate limits: how often a key may call, what it is told when it calls more often, and that others do not notice."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.api.keys import InvalidKeys, KeyRing
from service.api.token_bucket import TokenBucket
from service.settings import Settings
from tests.api.test_keys import digest, file_of
from tests.conftest import Worker

BURST = 3
ENTRIES = f"""
[slow]
role = "client"
sha256 = ["{digest("slow-1")}", "{digest("slow-2")}"]
rate = 0.01
burst = {BURST}
[free]
role = "admin"
sha256 = ["{digest("free")}"]
"""


@pytest.fixture(scope="module")
def limited(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a worker with a key that may call three times, and then once in 100 s."""
    keys_file = file_of(tmp_path_factory.mktemp("keys"), ENTRIES)
    with Worker(Settings(redis_url=redis_url, keys_file=keys_file), learner=False) as url:
        yield url


def test_a_key_that_calls_too_often_is_told_when_to_come_again(limited: str) -> None:
    def call(secret: str, path: str = "/recommend") -> httpx.Response:
        return httpx.post(limited + path, json={"candidates": ["a"]}, headers={"X-API-Key": secret})

    # What is refused for other reasons counts, too: both digests are one key.
    statuses = [call("slow-1").status_code, call("slow-2").status_code, call("slow-1", "/items").status_code]
    assert statuses == [200, 200, 403]
    refused = call("slow-2")
    assert (refused.status_code, refused.json()["code"]) == (429, "rate_limited")
    assert refused.headers["content-type"] == "application/problem+json"
    assert 90 <= int(refused.headers["retry-after"]) <= 100
    assert "slow" in refused.json()["detail"]
    assert refused.json()["request_id"] == refused.headers["x-request-id"]
    assert call("slow-1", "/feedback").status_code == 429
    assert [call("free").status_code for _ in range(2 * BURST)] == [200] * 2 * BURST
    assert httpx.get(f"{limited}/healthz", headers={"X-API-Key": "slow-1"}).status_code == 200, "needs no key"
    metrics = httpx.get(f"{limited}/metrics", headers={"X-API-Key": "free"}).text
    assert 'rebound_rate_limited_total{key="slow"} 2.0' in metrics


@settings(max_examples=40)
@given(
    rate=st.floats(0.01, 1e4),
    burst=st.integers(1, 50),
    pauses=st.lists(st.floats(0, 2), min_size=1, max_size=100),
)
def test_never_more_than_the_rate_and_a_burst(rate: float, burst: int, pauses: list[float]) -> None:
    bucket, now, taken = TokenBucket(rate, burst), 1000.0, 0
    for pause in pauses:
        now += pause
        wait_s = bucket.take(now)
        taken += wait_s == 0
        assert taken <= burst + rate * (now - 1000.0) + 1e-6
        if wait_s:
            assert wait_s <= 1 / rate
    if wait_s:
        assert bucket.take(now + wait_s + 1e-6) == 0, "whoever waits as long as he was told is let in"


def test_a_rest_gathers_a_burst_and_no_more() -> None:
    bucket = TokenBucket(10.0, 3)
    assert [bucket.take(0.0) for _ in range(4)] == [0, 0, 0, pytest.approx(0.1)]
    assert [bucket.take(1e6) == 0 for _ in range(4)] == [True, True, True, False]


@pytest.mark.parametrize(
    ("text", "says"),
    [("rate = 0", "rate"), ("rate = '5'", "rate"), ("rate = inf", "rate"), ("burst = 3", "burst needs a rate")],
)
def test_limits_are_checked(tmp_path_factory: pytest.TempPathFactory, text: str, says: str) -> None:
    entry = f"[a]\nrole = 'client'\nsha256 = ['{digest('x')}']\n{text}"
    with pytest.raises(InvalidKeys, match=says):
        KeyRing.of(Settings(keys_file=file_of(tmp_path_factory.mktemp("keys"), entry)))
