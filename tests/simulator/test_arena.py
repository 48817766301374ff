"""The arena: all policies meet the same users and draws, its figures tell what happened, and errors stop it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from simulator.arena import run_arena
from simulator.client import ServiceClient
from simulator.errors import Failing, InvalidExperiment, UsageError
from simulator.shocks import SHOCKS, find_shock
from simulator.world import TrafficEffect
from simulator.world.petshop import RATES, Petshop
from tests.simulator.builders import DECISION, StandIn, client_of, loops_of, plan_of, stages, traffic_shock

pytestmark = pytest.mark.anyio

# ---- against the real service


async def test_a_change_that_a_policy_noticed_is_told_with_its_step(service: str) -> None:
    plan = plan_of("adaptive", steps=1500, seeds=(1,), shocks=(("taste-swap", 0.5),))
    async with ServiceClient(service) as client:
        [run] = (await run_arena(client, plan, stages())).runs
    [alarm] = run.trajectories[0].alarms
    assert (alarm["policy"], alarm["reaction"]) == ("adaptive", "reset")
    assert 750 < alarm["step"] < 1500


async def test_policies_meet_the_same_users_and_a_swap_happens_under_traffic(service: str) -> None:
    steps, shock = 400, 200
    plan = plan_of(
        *("random", "embedding_mlp"),
        swap="popularity,linucb:alpha=1.5@0.25",
        **{"steps": steps, "seeds": (5,), "shocks": (("taste-swap", 0.5),), "history": 6000, "keep": True},
    )
    async with ServiceClient(service) as client:
        before = set(await loops_of(client, "arena-"))
        result = await run_arena(client, plan, stages())
        kept = {name: loop for name, loop in (await loops_of(client, "arena-")).items() if name not in before}
        for name in kept:
            await client.delete_loop(name)
    [run] = result.runs
    world = Petshop(5, [(shock, find_shock("petshop", "taste-swap"))])
    moments = [world.at(step) for step in range(steps)]
    assert run.oracle.tolist() == [moment.oracle for moment in moments]
    assert len(kept) == 3
    for one in run.trajectories:
        assert kept[one.loop]["decisions"] == kept[one.loop]["joined"] == steps
        for moment, expected in zip(moments, one.expected.tolist(), strict=True):
            assert expected in moment.rates
        assert (one.latency_ms > 0).all()
    of = {one.contestant.label: one for one in run.trajectories}
    assert abs(of["random"].expected.mean() - run.random.mean()) < 5 * 0.2 / steps**0.5
    assert result.baseline == "embedding_mlp"
    assert of["embedding_mlp"].expected[:shock].mean() > 0.35, "trained on the history"
    assert of["embedding_mlp"].expected[shock:].mean() < 0.3, "and lost after the shock"
    assert set(of["embedding_mlp"].version.tolist()) == {1}
    swapped = of["swapped"]
    assert swapped.swapped_at is not None
    assert 100 <= swapped.swapped_at < steps
    assert swapped.policy[:100] == ["popularity"] * 100
    assert swapped.policy[-1] == "linucb"
    assert swapped.version[-1] >= 2, "learned on the way"
    assert swapped.adopted_at is not None


async def test_the_churned_catalogue_is_served(service: str) -> None:
    plan = plan_of("random", steps=200, shocks=(("catalogue-churn", 0.5),), window=7)
    async with ServiceClient(service) as client:
        before = set(await loops_of(client, "arena-"))
        [run] = (await run_arena(client, plan, stages())).runs
        assert set(await loops_of(client, "arena-")) == before, "the loops are deleted"
    expected = run.trajectories[0].expected
    assert set(expected[:100].tolist()) <= set(RATES.ravel().tolist())
    assert {0.65, 0.3} & set(expected[100:].tolist()), "newcomers are shown"
    assert run.random[100:].mean() > run.random[:100].mean()


async def test_an_unknown_kind_stops_it_and_nothing_is_left(service: str) -> None:
    async with ServiceClient(service) as client:
        before = set(await loops_of(client, "arena-"))
        with pytest.raises(UsageError, match=r"'no-such-kind'; it has: .*linucb"):
            await run_arena(client, plan_of("no-such-kind"), stages())
        assert set(await loops_of(client, "arena-")) == before


async def test_rates_are_expected_ones_not_clicks(service: str) -> None:
    async with ServiceClient(service) as client:
        [run] = (await run_arena(client, plan_of("popularity", steps=150), stages())).runs
    [one] = run.trajectories
    assert np.isin(one.rewards, (0, 1)).all()
    assert abs(one.rewards.mean() - one.expected.mean()) < 5 * 0.45 / 150**0.5
    assert (one.expected <= run.oracle + 1e-12).all()


@pytest.mark.parametrize(("world", "shock"), [("latent", "taste-redraw"), ("digits", "label-permutation")])
async def test_worlds_with_vectors_are_played(service: str, world: str, shock: str) -> None:
    plan = plan_of("random", world=world, steps=60, shocks=((shock, 30),), keep=True)
    async with ServiceClient(service) as client:
        [run] = (await run_arena(client, plan, stages())).runs
        [one] = run.trajectories
        kept = await client.get_loop(one.loop)
        await client.delete_loop(one.loop)
    assert kept is not None
    assert kept["schema"]["crosses"]
    assert (one.expected <= run.oracle).all()
    assert one.expected.mean() < run.oracle.mean()


@pytest.mark.parametrize(
    ("effect", "decisions", "joined"),
    [
        (TrafficEffect(silent=True), 120, 100),
        (TrafficEffect(delay=40), 120, 120),
        (TrafficEffect(delay=1000), 120, 100),
        (TrafficEffect(bots=2), 160, 160),
    ],
)
async def test_shocks_of_traffic_reach_the_service(
    service: str, monkeypatch: pytest.MonkeyPatch, effect: TrafficEffect, decisions: int, joined: int
) -> None:
    monkeypatch.setitem(SHOCKS["petshop"], "shake", traffic_shock(effect, span=20))
    plan = plan_of("random", steps=120, shocks=(("shake", 45),), window=10, keep=True)
    async with ServiceClient(service) as client:
        [run] = (await run_arena(client, plan, stages())).runs
        [one] = run.trajectories
        found = (await loops_of(client, one.loop))[one.loop]
        await client.delete_loop(one.loop)
    assert (found["decisions"], found["joined"]) == (decisions, joined)
    assert run.oracle.tolist() == [Petshop(1).at(step).oracle for step in range(120)]
    assert (one.latency_ms > 0).all()


# ---- against a stand-in


@pytest.mark.parametrize(
    ("route", "change", "error", "why"),
    [
        ("POST /recommend", {"degraded": True}, InvalidExperiment, "from memory"),
        ("POST /recommend", {"items": [{"id": "gone"}]}, InvalidExperiment, "not on offer"),
        ("POST /recommend", {"policy": "other"}, InvalidExperiment, "served by 'other'"),
        ("POST /recommend", {"policy": None}, InvalidExperiment, "served by None"),
        ("POST /recommend", {"items": []}, Failing, "cannot be used"),
        ("POST /recommend", {"decision_id": None}, Failing, "decision_id is None"),
        ("POST /feedback", {"results": [{"status": "late"}]}, InvalidExperiment, "not accepted, but late"),
        ("POST /feedback", {"results": None}, Failing, "cannot be used"),
    ],
)
async def test_what_would_spoil_the_figures_is_an_error(
    route: str, change: dict[str, Any], error: type[Exception], why: str
) -> None:
    async with client_of(StandIn({route: {**DECISION, **change}})) as client:
        with pytest.raises(error, match=why):
            await run_arena(client, plan_of("random"), stages())


async def test_a_successor_that_does_not_serve_after_its_adoption_is_an_error() -> None:
    async with client_of(StandIn()) as client:
        with pytest.raises(InvalidExperiment, match="served by the old policy after the swap"):
            await run_arena(client, plan_of(swap="random,linucb@0.25", window=5), stages())


async def test_steps_of_alarms_do_not_count_the_history() -> None:
    alarms: list[dict[str, Any]] = [
        {"events": 1250, "reaction": "reset", "number": 1},
        {"events": 1900, "reaction": None},
    ]
    service = StandIn(
        {
            "POST /recommend": {**DECISION, "policy": "offline"},
            "GET /policies/offline": {"name": "offline", "version": 1, "alarms": alarms, "share": None},
        }
    )
    async with client_of(service) as client:
        [run] = (await run_arena(client, plan_of("offline", steps=4, history=1200), stages())).runs
    assert run.trajectories[0].alarms == [
        {"policy": "offline", "step": 50, "reaction": "reset"},
        {"policy": "offline", "step": 700, "reaction": None},
    ]


async def test_a_policy_that_noticed_nothing_has_no_alarms() -> None:
    nothing: list[Any] | None
    for nothing in ([], None):
        service = StandIn({"GET /policies/random": {"name": "random", "alarms": nothing}})
        async with client_of(service) as client:
            [run] = (await run_arena(client, plan_of("random", steps=4), stages())).runs
        assert run.trajectories[0].alarms == []
