"""Builders of the simulator's tests: a stand-in for the service, plans and results with defaults."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any
from urllib.parse import unquote, urlsplit
from uuid import uuid4

import numpy as np
import orjson
from rich.console import Console

from simulator.arena import ArenaPlan, ArenaResult, SeedRun, Trajectory
from simulator.client import ServiceClient
from simulator.contestants import PolicySpec, parse_contestants
from simulator.progress import Stages
from simulator.summary import Report, summarise
from simulator.traffic import TrafficGenerator
from simulator.world import Shock, TrafficEffect
from tests.simulator.servers import Answer, reply, serving

# ---- a stand-in for the service

KINDS: list[dict[str, Any]] = [
    {
        "kind": "linucb",
        "summary": "Linear upper confidence bounds.",
        "batch_trained": False,
        "comparable": True,
        "params": {
            "type": "object",
            "properties": {
                "alpha": {"type": "number", "default": 1.0, "exclusiveMinimum": 0},
                "half_life": {"anyOf": [{"type": "number", "minimum": 1}, {"type": "null"}], "default": None},
                "mode": {"$ref": "#/$defs/Mode"},
            },
            "required": ["mode"],
            "$defs": {"Mode": {"enum": ["plain", "hybrid"], "type": "string"}},
        },
    },
    {"kind": "offline", "summary": "Trained on a history.", "batch_trained": True, "comparable": False, "params": {}},
    {"kind": "random", "summary": None, "batch_trained": None, "comparable": None, "params": None, "since": "1.0"},
]
DECISION = {"decision_id": "d", "policy": "random", "version": 0, "degraded": False, "items": [{"id": "product-00"}]}
Reply = Mapping[str, Any] | Callable[[Any], Mapping[str, Any]]  # a body, or a function of the request's body


class StandIn:
    """Replies of a service that accepts everything.

    Args:
        replies: "METHOD /path" → the reply to use instead of the default.
    """

    def __init__(self, replies: Mapping[str, Reply] | None = None) -> None:
        self.requests: list[tuple[str, Any]] = []  # ("METHOD /path", body)
        self.replies: dict[str, Reply] = {
            "GET /kinds": {"kinds": KINDS},
            "POST /recommend": DECISION,
            "POST /feedback": lambda body: {"results": [{"status": "accepted"} for _ in body["feedback"]]},
            "POST /events": lambda body: {"imported": len(body["events"])},
            **(replies or {}),
        }

    async def __call__(self, head: bytes, body: bytes) -> bytes:
        method, target, _ = head.split(b"\r\n")[0].decode().split(" ")
        route = f"{method} {urlsplit(target).path}"
        asked = orjson.loads(body) if body else None
        self.requests.append((unquote(route), asked))
        if route.endswith("/activate"):
            default: Reply = {"adopted": True, "missing": []}
        elif route.startswith("GET /policies/"):
            default = {"name": route.rpartition("/")[2], "version": 1, "share": 1.0, "alarms": []}
        else:
            default = {}
        found = self.replies.get(route, default)
        return reply(orjson.dumps(found(asked) if callable(found) else found))

    def count(self, route: str) -> int:
        """Number of requests to a route."""
        return sum(found == route for found, _ in self.requests)


@asynccontextmanager
async def client_of(answer: Answer, **options: Any) -> AsyncIterator[ServiceClient]:
    """A client of a stand-in."""
    async with serving(answer) as (url, _), ServiceClient(url, **options) as client:
        yield client


# ---- the real service


async def loops_of(client: ServiceClient, prefix: str) -> dict[str, Any]:
    """The status of all loops whose names begin with `prefix`."""
    status = await client._call("GET", "/status")
    return {name: loop for name, loop in status["loops"].items() if name.startswith(prefix)}


def loop_name() -> str:
    return f"live-{uuid4().hex[:8]}"


# ---- what is run


def stages() -> Stages:
    return Stages(Console(file=io.StringIO()))


def plan_of(*policies: str, swap: str | None = None, **settings: Any) -> ArenaPlan:
    """A plan of 100 steps without shocks, unless the settings say otherwise."""
    return ArenaPlan(parse_contestants(policies, swap), **{"steps": 100, "shocks": (), **settings})


def generator_of(client: ServiceClient, loop: str, *kinds: str, rate: float = 300) -> TrafficGenerator:
    policies = [PolicySpec(kind) for kind in kinds or ("popularity", "linucb")]
    return TrafficGenerator(client, loop=loop, world="petshop", rate=rate, seed=1, policies=policies)


def traffic_shock(effect: TrafficEffect, span: int) -> Shock[Any]:
    """A shock that has this effect on the traffic and none on the click rates."""
    return Shock("shake", "traffic was shaken", lambda state, generator, age: state, span, effect)


# ---- what is reported

STEPS, SHOCK = 4000, 2000
SHOCKS = (("taste-swap", 0.5),)


def report_of(seeds: int = 1, *, shocks: Sequence[tuple[str, float]] = SHOCKS) -> Report:
    """A report with known figures: offline is perfect until the shock, linucb recovers after 450 steps."""
    at = np.arange(STEPS)
    return _summarised(
        parse_contestants(["random", "offline", "linucb:alpha=1.5"], "popularity,linucb@0.25"),
        {
            "random": np.full(STEPS, 0.2),
            "offline": np.where(at < SHOCK, 0.5, 0.1),
            "linucb": np.where(at < 400, 0.2, np.where((at >= SHOCK) & (at < SHOCK + 450), 0.2, 0.5)),
            "swapped": np.where(at < 1000, 0.3, 0.45),
        },
        seeds,
        shocks,
        baseline="offline",
    )


def wide_report() -> Report:
    """A report that is hard to lay out: 12 contestants with long names, two seeds, two shocks, alarms, a swap."""
    policies = [
        "random",
        "embedding_mlp",
        "linucb:alpha=1.5,ridge=2",
        "linucb:alpha=0.5,ridge=2",
        "popularity:half_life=null",
        "adaptive",
        "neural_ucb:alpha=0.5,learning_rate=0.01",
        "squarecb:gamma=30,rho=0.5",
        "lin_ts:v=0.25,ridge=1.0",
        "vw:explore=regcb,mellowness=0.01,learning_rate=0.5,power_t=0.5",
        "neural_linear",
    ]
    contestants = parse_contestants(policies, "popularity:epsilon=0.1,linucb:alpha=1.5,ridge=2@0.25")
    at = np.arange(STEPS)
    expected = {
        c.label: np.where((at > 1200) & (at < 1200 + 100 * n), 0.6, 1) * (0.2 if n == 0 else 0.28 + 0.02 * n)
        for n, c in enumerate(contestants)
    }
    shocks = (("bestseller-collapse", 0.3), ("catalogue-churn", 0.8))
    return _summarised(contestants, expected, 2, shocks, baseline="embedding_mlp")


def _summarised(
    contestants: Any, expected: Mapping[str, Any], seeds: int, shocks: Any, *, baseline: str | None
) -> Report:
    """Summarise runs in which each contestant has the expected rates (steps,), .01 lower for each further seed."""
    plan = ArenaPlan(contestants, steps=STEPS, seeds=range(seeds), shocks=shocks)
    runs = []
    for seed in range(seeds):
        run = SeedRun(seed, np.full(STEPS, 0.5), np.full(STEPS, 0.2), [], seconds=10.0)
        for contestant in contestants:
            one = Trajectory.empty(contestant, "loop", STEPS)
            one.expected = expected[contestant.label] - 0.01 * seed
            one.rewards = np.arange(STEPS) % 2 == 0
            one.latency_ms = np.linspace(1, 100, STEPS)
            one.version = np.arange(STEPS) // 40
            one.policy = [contestant.policy.kind] * STEPS
            if contestant.successor:
                one.policy = [contestant.policy.kind] * 1000 + [contestant.successor.kind] * 3000
                one.swapped_at = one.adopted_at = 1000
            if contestant.label == "adaptive":
                one.alarms = [{"policy": "adaptive", "step": 3300, "reaction": "reset"}]
            run.trajectories.append(one)
        runs.append(run)
    result = ArenaResult(plan, runs, baseline)
    return summarise(result, command="rebound-sim arena", started=datetime(2026, 1, 1, tzinfo=UTC))
