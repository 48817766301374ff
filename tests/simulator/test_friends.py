"""Friends: what a visitor wants can be told from the triangle alone, and ties are sent to the service."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping

import httpx
import numpy as np
import pytest

from service.records import Event
from simulator.arena import ArenaPlan, run_arena
from simulator.client import ServiceClient
from simulator.contestants import parse_contestants
from simulator.shocks import FASHION_STEPS, find_shock
from simulator.world.friends import BASE, CATEGORIES, N_BLOCKS, PER_BLOCK, PER_CATEGORY, WANTED, Friends
from tests.benchmarks.in_process import run_in_process
from tests.benchmarks.test_friends import fields_of
from tests.simulator.builders import stages

SHOCK = 300


@pytest.fixture(scope="module")
def world() -> Friends:
    return Friends(7, [(SHOCK, find_shock("friends", "ties-cut"))])


def neighbours(world: Friends, step: int) -> dict[str, set[str]]:
    found = defaultdict(set)
    for tie in world.ties(step):
        found[tie.user].add(tie.to)
    return found


def wanted_at(world: Friends, step: int) -> tuple[str, int]:
    """Return who visits, and the category that he wants."""
    moment = world.at(step)
    rates = moment.rates[::PER_CATEGORY]
    assert sorted(rates.tolist()) == pytest.approx([BASE] * (len(CATEGORIES) - 1) + [BASE + WANTED])
    return moment.visit.user_id, int(rates.argmax())


@pytest.mark.parametrize("step", [0, SHOCK])
def test_a_visitor_wants_what_those_friends_take_who_know_each_other(world: Friends, step: int) -> None:
    knows = neighbours(world, step)
    for at in range(step, step + 60):
        user, wanted = wanted_at(world, at)
        closed = {one for one in knows[user] if knows[one] & knows[user]}
        assert len(closed) == 2
        block = int(user.removeprefix("user-")) // PER_BLOCK
        tastes = world.tastes(world.state(at), at, block // 2)
        of_friend = {f"friend-{block}-{name}": tastes["abcd".index(name) // 2] for name in "abcd"}
        assert knows[user] == of_friend.keys()
        assert {of_friend[one] for one in closed} == {wanted}
        assert {of_friend[one] for one in knows[user] - closed} == {*tastes} - {wanted}


def colours(world: Friends, step: int, rounds: int) -> dict[str, Hashable]:
    """Colour every user as message passing could: by his taste and the colours of his neighbours, again and again."""
    knows = neighbours(world, step)
    found: Mapping[str, Hashable] = {user: None for user in knows}
    for block in range(N_BLOCKS):
        tastes = world.tastes(world.state(step), step, block // 2)
        found = {**found, **{f"friend-{block}-{name}": tastes["abcd".index(name) // 2] for name in "abcd"}}
    for _ in range(rounds):
        names: dict[Hashable, int] = {}
        found = {
            user: names.setdefault(
                (found[user], tuple(sorted(Counter(map(repr, (found[o] for o in others))).items()))), len(names)
            )
            for user, others in knows.items()
        }
    return dict(found)


def test_no_message_passing_tells_visitors_apart_who_want_different_things(world: Friends) -> None:
    """Colour refinement is as strong as any message passing without ids (Xu et al. 2019)."""
    found = colours(world, 0, rounds=4)
    wants = defaultdict(set)
    for block in range(N_BLOCKS):
        crossed, tastes = world.state(0).crossed[block // 2], world.tastes(world.state(0), 0, block // 2)
        wants[found[f"user-{block * PER_BLOCK}"]].add((frozenset(tastes), tastes[crossed]))
    by_tastes = defaultdict(set)
    for options in wants.values():
        for both, wanted in options:
            by_tastes[both].add(wanted)
    ambiguous = [options for options in wants.values() if len(options) > 1]
    assert ambiguous, "some visitors of one colour want different things"
    for options in wants.values():
        [both] = {both for both, _ in options}
        assert {wanted for _, wanted in options} == by_tastes[both], "the colour says nothing beyond the two tastes"


def test_steps_can_be_asked_for_in_any_order(world: Friends) -> None:
    again = Friends(7, world.schedule)
    for step in (SHOCK + 5, 3, SHOCK - 1):
        one, other = world.at(step), again.at(step)
        assert one.visit == other.visit
        assert np.array_equal(one.rates, other.rates)
        assert world.ties(step) == again.ties(step)
    assert world.ties(0) is world.ties(SHOCK - 1)


def test_ties_are_cut_and_others_tied_in_half_of_the_circles(world: Friends) -> None:
    before, after = world.state(SHOCK - 1).crossed, world.state(SHOCK).crossed
    assert sum(one != other for one, other in zip(before, after, strict=True)) == len(before) // 2
    assert len(world.ties(SHOCK)) == len(world.ties(0))


def test_a_fashion_is_wanted_by_half_of_the_circles_in_the_end() -> None:
    world = Friends(3, [(0, find_shock("friends", "fashion-spreads"))])
    shares = []
    for step in (0, FASHION_STEPS // 2, FASHION_STEPS):
        society = world.state(step)
        assert society.fashion is not None
        wanted = [world.tastes(society, 0, pair)[society.crossed[pair]] for pair in range(N_BLOCKS // 2)]
        both = [world.tastes(society, 0, pair) for pair in range(N_BLOCKS // 2)]
        assert all(one != other for one, other in both)
        shares.append(wanted.count(society.fashion[0]) / len(wanted))
    assert shares[0] < shares[1] < shares[2]
    assert 0.35 < shares[2] < 0.75


def test_the_benchmark_shows_the_fields_of_the_last_refresh() -> None:
    world = Friends(7, [(20, find_shock("friends", "ties-cut"))])
    run = run_in_process(
        "popularity", {}, world=world, steps=40, snapshot_period=10, reward_delay=10, describe=fields_of
    )
    events = [entry for entry in run.log if isinstance(entry, Event)]
    assert len(events) == 20
    for event in events:
        graph = event.context["@graph"]
        assert (graph["friends"], graph["triangles"], graph["clustering"]) == (4, 1, 0.1667)
    assert not any("took" in event.context["@graph"] for event in events[:10])
    assert any("circle" in event.context["@graph"] for event in events[10:])


@pytest.mark.anyio
async def test_the_arena_sends_ties_and_what_friends_took(service: str) -> None:
    shocks = (("ties-cut", 0.5),)
    plan = ArenaPlan(parse_contestants(["popularity"], None), world="friends", steps=6, shocks=shocks, keep=True)
    async with ServiceClient(service) as client:
        [run] = (await run_arena(client, plan, stages())).runs
        [trajectory] = run.trajectories
        with httpx.Client(base_url=service, timeout=30, verify=False) as http:
            told = http.get("/status").json()["loops"][trajectory.loop]
        await client.delete_loop(trajectory.loop)
    ties = Friends(plan.seeds[0]).ties(0)
    assert (told["edges"], told["edge_users"]) == (len(ties), len({tie.user for tie in ties}))
    assert told["activity"] == 6 * 4
