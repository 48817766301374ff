"""Sessions: what a user did before a visit decides what he wants, and is sent to the service."""

from __future__ import annotations

import httpx
import numpy as np
import pytest

from service.records import Event
from simulator.arena import ArenaPlan, run_arena
from simulator.client import ServiceClient
from simulator.contestants import parse_contestants
from simulator.shocks import find_shock
from simulator.world.sessions import BASE, CATEGORIES, HOME, PER_CATEGORY, TYPES, WANTED, Sessions
from tests.benchmarks.in_process import run_in_process
from tests.simulator.builders import stages

SHOCK = 300


@pytest.fixture(scope="module")
def world() -> Sessions:
    return Sessions(7, [(SHOCK, find_shock("sessions", "habits-change"))])


def test_the_last_deed_decides_what_is_wanted(world: Sessions) -> None:
    for step in (*range(100), *range(SHOCK, SHOCK + 100)):
        moment = world.at(step)
        assert [deed.type for deed in moment.visit.deeds] == list(TYPES)
        of_items = {item.id: item.features["category"] for item in moment.catalogue.items}
        last = CATEGORIES.index(of_items[moment.visit.deeds[-1].item_id])
        wanted = world.state(step).follows[last]
        home = int(moment.visit.user_id.removeprefix("user-")) % len(CATEGORIES)
        expected = [BASE + WANTED * (c == wanted) + HOME * (c == home) for c in range(len(CATEGORIES))]
        assert moment.rates[::PER_CATEGORY].tolist() == pytest.approx(expected)


def test_steps_can_be_asked_for_in_any_order(world: Sessions) -> None:
    again = Sessions(7, world.schedule)
    for step in (SHOCK + 5, 3, SHOCK - 1):
        one, other = world.at(step), again.at(step)
        assert one.visit == other.visit
        assert np.array_equal(one.rates, other.rates)


def test_the_shock_changes_what_follows_every_category(world: Sessions) -> None:
    before, after = world.state(SHOCK - 1).follows, world.state(SHOCK).follows
    assert sorted(after) == list(range(len(CATEGORIES)))
    assert all(one != other for one, other in zip(before, after, strict=True))


def test_the_benchmark_learns_from_the_parts_of_the_state_that_it_shows(world: Sessions) -> None:
    run = run_in_process(
        "popularity", {}, world=world, steps=40, snapshot_period=10, reward_delay=10, states=("last_item", "count")
    )
    events = [entry for entry in run.log if isinstance(entry, Event)]
    assert len(events) == 20
    for event in events:
        visit = world.at(event.slate_position or 0).visit
        assert event.context["@user"].keys() == {"last_item", "count"}
        assert event.context["@user"]["last_item"] == visit.deeds[-1].item_id
        assert event.context["device"] == visit.context["device"]


@pytest.mark.anyio
async def test_the_arena_sends_what_users_did(service: str) -> None:
    plan = ArenaPlan(parse_contestants(["popularity"], None), world="sessions", steps=20, shocks=(), keep=True)
    async with ServiceClient(service) as client:
        [run] = (await run_arena(client, plan, stages())).runs
        [trajectory] = run.trajectories
        with httpx.Client(base_url=service, timeout=30, verify=False) as http:
            told = http.get("/status").json()["loops"][trajectory.loop]
        await client.delete_loop(trajectory.loop)
    assert told["activity"] == 20 * len(TYPES)
    assert told["decisions"] == 20
