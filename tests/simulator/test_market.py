"""The market: rates by hand, births and deaths, shocks, and that a million items take no more than their arrays."""

from __future__ import annotations

from itertools import pairwise

import httpx
import numpy as np
import pytest

from simulator.arena import ArenaPlan, run_arena
from simulator.client import ServiceClient
from simulator.contestants import parse_contestants
from simulator.shocks import find_shock
from simulator.world import MARKETS, WORLDS
from simulator.world.market import BASE, CLUSTERS, DIMS, LIKING, TURNOVER, Market, sized
from tests.simulator.builders import stages

N = 1000
MOVE, RENEWAL = 15, 24  # days of 10 steps


@pytest.fixture(scope="module")
def world() -> Market:
    schedule = [(MOVE, find_shock("market", "taste-move")), (RENEWAL, find_shock("market", "renewal"))]
    return sized(N)(3, schedule)


def ids(world: Market, step: int) -> list[str]:
    return [item.id for item in world.catalogue(step).items]


def test_a_rate_by_hand(world: Market) -> None:
    people = world.population
    for step in (0, 5, MOVE, RENEWAL + 20):
        moment, shelf, user = world.at(step), world.stock(step).shelf, world.user_at(step)
        assert moment.visit.user_id == f"user-{user}"
        of = world.state(step).of
        taste = 0.8 * people.centres[of[people.favourite[user]]] + 0.4 * people.centres[of[people.second[user]]]
        taste = taste + people.own[user]
        taste /= np.linalg.norm(taste)
        for row in (0, 17, N - 1):
            logit = BASE + LIKING * taste @ shelf.vectors[row] + shelf.quality[row]
            assert moment.rates[row] == pytest.approx(1 / (1 + np.exp(-logit)), rel=1e-5)


def test_bounds_are_those_of_all_items_scored(world: Market, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simulator.world.market.AT_ONCE", 300)
    best, chance = world.bounds(5, 40)
    moments = [world.at(step) for step in range(5, 40)]
    assert best == pytest.approx([moment.best(10) for moment in moments], rel=1e-5)
    assert chance == pytest.approx([moment.random for moment in moments], rel=1e-5)
    assert [moment.oracle for moment in moments] == [moment.best(1) for moment in moments]


def test_steps_can_be_asked_for_in_any_order(world: Market) -> None:
    again = type(world)(world.seed, world.schedule)
    for step in (33, 3, RENEWAL - 1, 33):
        one, other = world.at(step), again.at(step)
        assert one.visit == other.visit
        assert ids(world, step) == ids(again, step)
        assert np.array_equal(one.rates, other.rates)
        assert np.array_equal(one.click_draws, other.click_draws)


def test_items_are_born_and_die_each_day() -> None:
    world = sized(N)(3)
    days = [ids(world, day * world.day) for day in range(10)]
    assert len(days[0]) == N
    for before, after in pairwise(days):
        new, gone = set(after) - set(before), set(before) - set(after)
        assert len(new) == len(gone) == N // TURNOVER
    assert len(set().union(*days)) == N + 9 * (N // TURNOVER), "nobody comes back"
    assert ids(world, 0) == sorted(ids(world, 0))
    assert world.catalogue(3) is world.catalogue(4), "one catalogue a day"
    assert world.day == N // TURNOVER


def test_what_the_service_sees(world: Market) -> None:
    seen, shelf = world.visit_of(7), world.stock(0).shelf
    people = world.population
    assert seen.context["segment"] == f"s{people.favourite[7]:02}"
    blur = np.array(seen.context["taste"]) - people.tastes(np.array([7]), world.state(0))[0]
    assert 0.1 < np.linalg.norm(blur) < 0.3
    item = world.catalogue(0).items[5]
    assert item.features["category"] == f"c{shelf.cluster[5]:02}"
    assert item.features["vector"] == pytest.approx(shelf.vectors[5].tolist(), abs=1e-4)
    assert len(item.features["vector"]) == len(seen.context["taste"]) == DIMS


def test_tastes_move_between_clusters_and_nothing_else_does(world: Market) -> None:
    before, after = world.state(MOVE - 1), world.state(MOVE)
    assert sorted(after.of) == list(range(CLUSTERS))
    assert all(one != other for one, other in zip(before.of, after.of, strict=True))
    calm = sized(N)(3).at(MOVE)
    moved = world.at(MOVE)
    assert calm.visit == moved.visit
    assert [item.id for item in calm.catalogue.items] == ids(world, MOVE)
    best = calm.rates.argmax()
    assert moved.rates[best] < calm.rates[best] / 2, "what was liked best is not any more"


def test_a_renewal_replaces_a_tenth(world: Market) -> None:
    before, after = set(ids(world, RENEWAL - 1)), set(ids(world, RENEWAL))
    assert len(before - after) == N // 10
    assert not (before - after) & set(ids(world, RENEWAL + 50)), "who left does not come back"


def test_few_sell_well() -> None:
    made = sized(5000)(1)
    rates = np.mean([made.at(step).rates for step in range(200)], axis=0)
    rates = np.sort(rates)[::-1]
    assert rates[:50].mean() > 2 * rates.mean()
    best, chance = made.bounds(0, 200)
    assert best.mean() > 5 * chance.mean()


def test_sizes() -> None:
    assert {name: of.n for name, of in MARKETS.items()} == {
        "market": 100_000,
        "market-10000": 10_000,
        "market-1000000": 1_000_000,
    }
    assert MARKETS["market-10000"].day == 100


@pytest.mark.anyio
async def test_the_arena_sends_no_candidates(service: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(WORLDS, "market", sized(N))
    plan = ArenaPlan(parse_contestants(["popularity"], None), world="market", steps=30, shocks=(), keep=True)
    async with ServiceClient(service) as client:
        [run] = (await run_arena(client, plan, stages())).runs
        [trajectory] = run.trajectories
        with httpx.Client(base_url=service, timeout=30, verify=False) as http:
            settings = http.get(f"/loops/{trajectory.loop}").json()["settings"]
            page = http.get("/items", params={"loop": trajectory.loop, "limit": 1}).json()
        await client.delete_loop(trajectory.loop)
    assert [source["source"] for source in settings["funnel"]["sources"]] == ["popular", "fresh", "random", "ann"]
    assert page["count"] == N
    assert run.oracle[29] == pytest.approx(sized(N)(1).at(29).oracle)
