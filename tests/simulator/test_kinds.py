"""Kinds of policies come from the service, once in each run."""

from __future__ import annotations

import ast
import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import simulator
from simulator.arena import run_arena
from simulator.contestants import PolicySpec
from simulator.errors import Failing, UsageError
from simulator.kinds import Kind, check_kinds, parameters, table
from simulator.load import LoadPlan, run_load
from tests.simulator.builders import DECISION, KINDS, StandIn, client_of, plan_of, stages
from tests.simulator.servers import reply

pytestmark = pytest.mark.anyio


async def test_kinds_are_read_whatever_else_the_reply_holds() -> None:
    async with client_of(StandIn()) as client:
        kinds = await client.kinds()
    assert list(kinds) == ["linucb", "offline", "random"]
    assert kinds["offline"] == Kind("offline", "Trained on a history.", batch_trained=True)
    assert kinds["random"] == Kind("random"), "null means not given"
    assert kinds["linucb"].params == KINDS[0]["params"]


@pytest.mark.parametrize("body", [{}, {"kinds": None}, {"kinds": [{}]}, {"kinds": [None]}, []])
async def test_a_reply_without_kinds_is_a_failure(body: Any) -> None:
    async with client_of(StandIn({"GET /kinds": body})) as client:
        with pytest.raises(Failing, match="GET /kinds"):
            await client.kinds()


async def test_a_service_that_cannot_list_its_kinds_is_told_to_update() -> None:
    async def old(head: bytes, body: bytes) -> bytes:
        return reply(b'{"code": "not_found", "detail": "no such route"}', "404 Not Found")

    async with client_of(old) as client:
        with pytest.raises(Failing, match="update it"):
            await client.kinds()


async def test_an_unknown_kind_is_told_with_those_of_the_service_before_anything_is_made() -> None:
    service = StandIn()
    async with client_of(service) as client:
        for plan in (plan_of("linucb", "greedy"), plan_of("random", swap="linucb,greedy@0.5")):
            with pytest.raises(UsageError, match="'greedy'; it has: linucb, offline, random"):
                await run_arena(client, plan, stages())
        with pytest.raises(UsageError, match="'greedy'; it has: linucb, offline, random"):
            await run_load(client, LoadPlan(PolicySpec("greedy")), stages())
    assert [route for route, _ in service.requests] == ["GET /kinds"] * 3


async def test_kinds_are_asked_for_once_in_a_run_of_several_seeds() -> None:
    service = StandIn()
    async with client_of(service) as client:
        await run_arena(client, plan_of("random", steps=4, seeds=(1, 2, 3)), stages())
        assert service.count("GET /kinds") == 1
        await run_load(client, LoadPlan(PolicySpec("random"), rate=20, seconds=0.1), stages())
    assert service.count("GET /kinds") == 2


async def test_the_service_says_who_is_trained_in_batches() -> None:
    service = StandIn({"POST /recommend": {**DECISION, "policy": "offline"}})
    async with client_of(service) as client:
        result = await run_arena(client, plan_of("offline", steps=4, history=1500), stages())
    routes = [route for route, _ in service.requests]
    assert [len(body["events"]) for route, body in service.requests if route == "POST /events"] == [1000, 500]
    assert (
        routes.index("POST /events") < routes.index("POST /policies") < routes.index("POST /policies/offline/activate")
    )
    assert result.baseline == "offline"


def test_every_parameter_is_described() -> None:
    assert parameters(KINDS[0]["params"]) == [
        "alpha=1.0  number, > 0",
        "half_life=null  number, ≥ 1 | null",
        "mode  plain | hybrid",
    ]
    assert parameters({"properties": None}) == parameters({}) == []
    assert parameters({"properties": {"x": None, "y": {"const": 3}}}) == ["x", "y  3"]


def test_the_table_shows_all() -> None:
    console = Console(file=io.StringIO(), width=140)
    console.print(table({record["kind"]: Kind.parse(record) for record in KINDS}))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    for text in ("linucb", "offline", "yes", "random", "Trained on a history.", "alpha=1.0  number, > 0"):
        assert text in shown


def test_a_policy_of_a_known_kind_passes_the_check() -> None:
    check_kinds([PolicySpec("random"), PolicySpec("random", {"x": 1})], {"random": Kind("random")})


def test_the_simulator_knows_the_service_by_http_alone() -> None:
    files = sorted(Path(simulator.__file__).parent.rglob("*.py"))
    assert len(files) > 20
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not [name for name in names if name.split(".")[0] == "service"], file
