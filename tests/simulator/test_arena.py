"""The arena against the real service: same luck for all, what happened is what is reported, errors stop it."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from simulator.arena import Plan, play
from simulator.client import Service
from simulator.contestants import parse_contestants
from simulator.errors import Refused, Unplayable
from simulator.progress import Stages
from simulator.shocks import SHOCKS, find_shock
from simulator.world import Shock, Traffic
from simulator.world.petshop import Petshop
from tests.simulator.servers import reply, serving

pytestmark = pytest.mark.anyio


def stages() -> Stages:
    return Stages(Console(file=io.StringIO()))


async def loops_of(client: Service) -> dict[str, Any]:
    status = await client._call("GET", "/status")
    return {name: loop for name, loop in status["loops"].items() if name.startswith("arena-")}


async def test_a_change_that_a_policy_noticed_is_told_with_its_step(service: str) -> None:
    plan = Plan(parse_contestants(["adaptive", "popularity"], None), steps=2400)
    async with Service(service) as client:
        [run] = await play(client, plan, stages())
    adaptive, popularity = run.tracks
    [alarm] = adaptive.alarms
    assert alarm["policy"] == "adaptive"
    assert alarm["reaction"] == "reset"
    assert 1200 < alarm["step"] < 1800  # the tastes changed at 1 200
    assert popularity.alarms == []


async def test_policies_meet_the_same_users_and_a_swap_happens_under_traffic(service: str) -> None:
    contestants = parse_contestants(
        ["random", "popularity", "embedding_mlp", "linucb:alpha=1.5"], "popularity,linucb@0.25"
    )
    plan = Plan(contestants, steps=640, seeds=(5,), history=10_000, keep=True)
    async with Service(service) as client:
        before = set(await loops_of(client))
        [run] = await play(client, plan, stages())
        kept = {name: loop for name, loop in (await loops_of(client)).items() if name not in before}
        for name in kept:
            await client.delete_loop(name)
    world = Petshop(5, [(320, find_shock("petshop", "taste-swap"))])
    moments = [world.at(step) for step in range(640)]
    assert run.oracle.tolist() == [moment.oracle for moment in moments]
    assert len(kept) == 5
    for track in run.tracks:
        assert kept[track.loop]["decisions"] == kept[track.loop]["joined"] == 640
        for moment, expected in zip(moments, track.expected.tolist(), strict=True):
            assert expected in moment.rates
        assert (track.latency_ms > 0).all()
    of = {track.contestant.label: track for track in run.tracks}
    assert abs(of["random"].expected.mean() - run.random.mean()) < 5 * 0.2 / 640**0.5
    assert of["embedding_mlp"].expected[:320].mean() > 0.4, "trained on the history"
    assert of["embedding_mlp"].expected[320:].mean() < 0.3, "and lost after the shock"
    assert set(of["embedding_mlp"].version.tolist()) == {1}
    assert of["linucb"].version.max() >= 2, "learned on the way"
    swapped = of["swapped"]
    assert swapped.swapped_at is not None
    assert 160 <= swapped.swapped_at < 640
    assert swapped.policy[:160] == ["popularity"] * 160
    assert swapped.policy[-1] == "linucb"
    assert swapped.adopted_at is not None


async def test_the_churned_catalogue_is_served(service: str) -> None:
    plan = Plan(
        parse_contestants(["random"], None), steps=600, seeds=(1,), shocks=(("catalogue-churn", 0.5),), window=7
    )
    async with Service(service) as client:
        before = set(await loops_of(client))
        [run] = await play(client, plan, stages())
        assert set(await loops_of(client)) == before, "the loops are deleted"
    assert set(run.tracks[0].expected[:300].tolist()) <= {
        0.02,
        0.05,
        0.08,
        0.1,
        0.15,
        0.2,
        0.25,
        0.4,
        0.45,
        0.5,
        0.55,
        0.6,
    }
    assert {0.65, 0.3} & set(run.tracks[0].expected[300:].tolist()), "newcomers are shown"
    assert run.random[300:].mean() > run.random[:300].mean()


async def test_an_unknown_kind_stops_it_and_nothing_is_left(service: str) -> None:
    async with Service(service) as client:
        before = set(await loops_of(client))
        with pytest.raises(Refused, match="no-such-kind"):
            await play(client, Plan(parse_contestants(["no-such-kind"], None), steps=100), stages())
        assert set(await loops_of(client)) == before


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"degraded": True}, "from memory"),
        ({"items": [{"id": "gone"}]}, "not on offer"),
        ({"policy": "other"}, "served by 'other'"),
        ({"status": "late"}, "not accepted"),
    ],
)
async def test_what_would_spoil_the_figures_is_an_error(change: dict[str, Any], why: str) -> None:
    import orjson

    decision = {
        "decision_id": "d",
        "policy": "random",
        "version": 0,
        "degraded": False,
        "items": [{"id": "product-00"}],
        "status": "accepted",
        **change,
    }

    async def spoilt(head: bytes, body: bytes) -> bytes:
        n = len(orjson.loads(body)["feedback"]) if b"/feedback" in head else 0
        return reply(orjson.dumps({**decision, "adopted": True, "results": [{"status": decision["status"]}] * n}))

    async with serving(spoilt) as (url, _), Service(url) as client:
        with pytest.raises(Unplayable, match=why):
            await play(client, Plan(parse_contestants(["random"], None), steps=100), stages())


async def test_rates_are_expected_ones_not_clicks(service: str) -> None:
    plan = Plan(parse_contestants(["popularity"], None), steps=200, shocks=())
    async with Service(service) as client:
        [run] = await play(client, plan, stages())
    track = run.tracks[0]
    assert np.isin(track.clicks, (0, 1)).all()
    assert abs(track.clicks.mean() - track.expected.mean()) < 5 * 0.45 / 200**0.5
    assert (track.expected <= run.oracle + 1e-12).all()


@pytest.mark.parametrize(("world", "shock"), [("latent", "taste-redraw"), ("digits", "label-permutation")])
async def test_worlds_with_vectors_are_played(service: str, world: str, shock: str) -> None:
    plan = Plan(parse_contestants(["random"], None), world=world, steps=120, shocks=((shock, 60),), keep=True)
    async with Service(service) as client:
        [run] = await play(client, plan, stages())
        [track] = run.tracks
        kept = await client.get_loop(track.loop)
        await client.delete_loop(track.loop)
    assert kept is not None
    assert kept["schema"]["crosses"]
    assert (track.expected <= run.oracle).all()
    assert track.expected.mean() < run.oracle.mean()


@pytest.mark.parametrize(
    ("traffic", "decisions", "joined"),
    [
        (Traffic(silent=True), 300, 250),
        (Traffic(delay=100), 300, 300),
        (Traffic(delay=1000), 300, 250),
        (Traffic(bots=2), 400, 400),
    ],
)
async def test_shocks_of_traffic_reach_the_service(
    service: str, monkeypatch: pytest.MonkeyPatch, traffic: Traffic, decisions: int, joined: int
) -> None:
    shake = Shock[Any]("shake", "traffic was shaken", lambda state, generator, age: state, 50, traffic)
    monkeypatch.setitem(SHOCKS["petshop"], "shake", shake)
    plan = Plan(parse_contestants(["random"], None), steps=300, shocks=(("shake", 105),), window=10, keep=True)
    async with Service(service) as client:
        [run] = await play(client, plan, stages())
        found = (await loops_of(client))[run.tracks[0].loop]
        await client.delete_loop(run.tracks[0].loop)
    assert (found["decisions"], found["joined"]) == (decisions, joined)
    assert run.oracle.tolist() == [Petshop(1).at(step).oracle for step in range(300)]
    assert (run.tracks[0].latency_ms > 0).all()
