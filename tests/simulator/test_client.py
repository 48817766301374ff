"""The client says what went wrong and what to do, and takes replies with nulls and new fields."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterator
from typing import Any
from urllib.parse import unquote

import pytest

from simulator.client import ServiceClient
from simulator.errors import Failing, Refused, TooSlow, Unreachable
from simulator.replies import Alarm, PolicyState, Recommendation
from simulator.world import Item
from tests.simulator.builders import DECISION, StandIn, client_of
from tests.simulator.servers import reply

pytestmark = pytest.mark.anyio


def nobody() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


async def test_unreachable_says_how_to_start_the_service() -> None:
    async with ServiceClient(nobody()) as service:
        with pytest.raises(Unreachable, match="rebound serve"):
            await service.recommend("default", "u", {})
        with pytest.raises(Unreachable, match="rebound serve"):
            await service.policies("default")
        with pytest.raises(Unreachable):
            await service.wait_ready(0)


async def test_refusals_carry_code_and_detail(service: str) -> None:
    async with ServiceClient(service) as client:
        with pytest.raises(Refused, match="no-such-loop") as refused:
            await client.recommend("no-such-loop", "u", {})
    assert refused.value.status == 404
    assert refused.value.code == "unknown_loop"


async def test_a_missing_key_says_how_to_give_one() -> None:
    async def closed(head: bytes, body: bytes) -> bytes:
        assert b"x-api-key" not in head.lower()
        return reply(b'{"code": "unauthorized", "detail": "a key is needed"}', "401 Unauthorized")

    async with client_of(closed) as client:
        with pytest.raises(Refused, match="--api-key"):
            await client.recommend("default", "u", {})


async def test_the_key_is_sent_on_both_ways() -> None:
    async def closed(head: bytes, body: bytes) -> bytes:
        assert b"x-api-key: secret" in head.lower()
        return reply(b'{"policies": [], "results": []}')

    async with client_of(closed, api_key="secret") as client:
        assert await client.feedback("default", []) == []
        assert await client.policies("default") == []


async def test_trouble_and_nonsense_are_failures() -> None:
    async def trouble(head: bytes, body: bytes) -> bytes:
        return reply(b"busy", "503 Service Unavailable") if b"recommend" in head else reply(b"<html>")

    async with client_of(trouble) as client:
        with pytest.raises(Failing, match="503"):
            await client.recommend("default", "u", {})
        with pytest.raises(Failing, match="no JSON"):
            await client.feedback("default", [])


async def test_no_answer_in_time_is_too_slow() -> None:
    async def never(head: bytes, body: bytes) -> bytes:
        await asyncio.Event().wait()
        return b""

    async with client_of(never, timeout_s=0.05) as client:
        with pytest.raises(TooSlow, match=r"0\.05 s"):
            await client.recommend("default", "u", {})
        with pytest.raises(TooSlow):
            await client.policies("default")


# ---- replies


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"explanation": {"parts": []}, "slate": None, "served_at": 1.5},
        {"items": [{"id": "product-00", "score": None, "rank": 1}, {"id": "product-01"}]},
    ],
)
async def test_new_fields_and_nulls_change_nothing(more: dict[str, Any]) -> None:
    expected = Recommendation("d", "product-00", "random", 0, degraded=False)
    for nothing in ({}, {"version": None, "degraded": None}):
        async with client_of(StandIn({"POST /recommend": {**DECISION, **nothing, **more}})) as client:
            assert await client.recommend("default", "u", {}) == expected


async def test_a_policy_is_read_with_the_least_that_it_says() -> None:
    alarm = {"events": 3, "number": 1, "at": None}
    for found, expected in (
        ({"name": "a"}, PolicyState("a", 0.0, 0, ())),
        ({"name": "a", "share": None, "version": None, "alarms": None, "pinned": None}, PolicyState("a", 0.0, 0, ())),
        ({"name": "a", "share": 1, "version": 7, "alarms": [alarm]}, PolicyState("a", 1.0, 7, (Alarm(3, None),))),
    ):
        async with client_of(StandIn({"GET /policies/a": found, "GET /policies": {"policies": [found]}})) as client:
            assert await client.policy("default", "a") == expected
            assert await client.policies("default") == [expected]


@pytest.mark.parametrize(
    ("route", "body"),
    [
        ("POST /recommend", {}),
        ("POST /recommend", []),
        ("POST /recommend", {**DECISION, "decision_id": 7}),
        ("POST /recommend", {**DECISION, "items": None}),
        ("POST /recommend", {**DECISION, "items": [{"id": None}]}),
        ("POST /recommend", {**DECISION, "version": "new"}),
        ("POST /feedback", {"results": [None]}),
        ("GET /items", {"items": [{}]}),
        ("GET /items", []),
        ("POST /events", []),
        ("GET /policies", {"policies": [{}]}),
        ("GET /policies/a", None),
        ("POST /policies/a/activate", None),
    ],
)
async def test_a_reply_that_lacks_what_is_needed_is_a_failure(route: str, body: Any) -> None:
    async with client_of(StandIn({route: body})) as client:
        asked: dict[str, Callable[[], Awaitable[Any]]] = {
            "POST /recommend": lambda: client.recommend("default", "u", {}),
            "POST /feedback": lambda: client.feedback("default", []),
            "GET /items": lambda: client.items("default"),
            "POST /events": lambda: client.import_events("default", [{}]),
            "GET /policies": lambda: client.policies("default"),
            "GET /policies/a": lambda: client.policy("default", "a"),
            "POST /policies/a/activate": lambda: client.activate("default", "a"),
        }
        with pytest.raises(Failing, match="the reply cannot be used"):
            await asked[route]()


async def test_pages_of_items_are_put_together() -> None:
    service = StandIn({"GET /items": {"items": [{"id": "a", "features": None}, {"id": "b"}], "version": 3}})
    async with client_of(service) as client:
        assert await client.items("default") == ["a", "b"], "no `next` is the last page"
    pages: Iterator[dict[str, Any]] = iter(
        [{"items": [{"id": "a"}], "next": "a"}, {"items": [{"id": "b"}], "next": None}]
    )
    async with client_of(StandIn({"GET /items": lambda body: next(pages)})) as client:
        assert await client.items("default") == ["a", "b"]


async def test_a_policy_that_is_not_adopted_everywhere_is_a_failure() -> None:
    for reply_body in ({"adopted": False, "missing": ["api-1"]}, {"adopted": None, "missing": None}, {}):
        async with client_of(StandIn({"POST /policies/a/activate": reply_body})) as client:
            with pytest.raises(Failing, match="a does not serve everywhere"):
                await client.activate("default", "a")


@pytest.mark.parametrize("item", ["a/", "/", "a b", "a?b=c", "a#b", "%2F", "é", "a+b"])
async def test_any_id_is_one_segment_of_the_path(item: str) -> None:
    paths = []

    async def listening(head: bytes, body: bytes) -> bytes:
        paths.append(head.split(b" ")[1].decode())
        return reply(b"", "204 No Content")

    async with client_of(listening) as client:
        await client.delete_item("default", item)
        await client.put_items("default", [Item(item, 0, {})])
    path, _, query = paths[0].partition("?")
    assert path.count("/") == 2
    assert unquote(path) == f"/items/{item}"
    assert query == "loop=default"
