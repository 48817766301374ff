"""Each shock changes what it says and nothing else."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.errors import UsageError
from simulator.shocks import SHOCKS, derangement, find_shock
from simulator.world import WORLDS, TrafficEffect
from simulator.world.petshop import CATEGORIES, NEW_CATEGORY, PERSONAS, RATES, Petshop

AT = 1000
OF_TRAFFIC = ["feedback-blackout", "delay-spike", "bot-flood"]
OF_TASTES = [name for name in SHOCKS["petshop"] if name not in OF_TRAFFIC]


def shocked(name: str, seed: int = 1) -> Petshop:
    return Petshop(seed, [(AT, find_shock("petshop", name))])


@given(n=st.integers(2, 12), seed=st.integers(0, 2**32))
def test_in_a_derangement_nothing_keeps_its_place(n: int, seed: int) -> None:
    found = derangement(n, np.random.default_rng(seed))
    assert sorted(found) == list(range(n))
    assert all(place != i for i, place in enumerate(found))


def test_all_derangements_come_equally_often() -> None:
    generator = np.random.default_rng(0)
    counts = Counter(tuple(derangement(4, generator)) for _ in range(9000))
    assert len(counts) == 9  # !4
    assert all(abs(count - 1000) < 5 * 1000**0.5 for count in counts.values())


@pytest.mark.parametrize("name", OF_TASTES)
def test_nothing_changes_before_the_shock(name: str) -> None:
    calm, world = Petshop(1), shocked(name)
    assert np.array_equal(world.at(AT - 1).rates, calm.at(AT - 1).rates)
    assert world.catalogue(AT - 1).items == calm.catalogue(AT - 1).items
    assert not np.array_equal(world.state(AT + 500).of_items, calm.state(AT + 500).of_items)


@pytest.mark.parametrize("name", SHOCKS["petshop"])
def test_users_and_draws_are_the_same_after_it(name: str) -> None:
    calm, world = Petshop(1).at(AT + 5), shocked(name).at(AT + 5)
    assert world.visit == calm.visit
    stayed = [item.id for item in calm.catalogue.items if item.id in world.catalogue.row]
    assert stayed
    assert all(world.click_draws[world.catalogue.row[i]] == calm.click_draws[calm.catalogue.row[i]] for i in stayed)


@pytest.mark.parametrize("seed", range(5))
def test_taste_swap_deranges_each_persona(seed: int) -> None:
    before, after = shocked("taste-swap", seed).state(0), shocked("taste-swap", seed).state(AT)
    for persona, (old, new) in enumerate(zip(before.rates, after.rates, strict=True)):
        assert sorted(old) == sorted(new)
        for category, rate in enumerate(old):
            if Counter(RATES[persona])[rate] == 1:  # equal rates may change places with each other
                assert new[category] != rate


def test_taste_swap_is_another_for_each_persona_and_seed() -> None:
    def places(seed: int) -> list[tuple[int, ...]]:
        ranked = Petshop.initial(Petshop(0)).rates + np.arange(5) * 1e-9  # equal rates can be told apart
        market = find_shock("petshop", "taste-swap").change(
            replace(Petshop(0).initial(), rates=ranked), np.random.default_rng(seed), 0
        )
        return [
            tuple(int(np.flatnonzero(old == rate)[0]) for rate in new)
            for old, new in zip(ranked, market.rates, strict=True)
        ]

    assert any(len(set(places(seed))) == 4 for seed in range(5))
    assert places(1) != places(2)


def test_bestseller_collapse() -> None:
    rates = shocked("bestseller-collapse").state(AT).rates
    food, toy = CATEGORIES.index("Cat Food"), CATEGORIES.index("Cat Toy")
    assert rates[:, food] == pytest.approx(RATES[:, food] * 0.2)
    assert rates[:, toy].tolist() == pytest.approx([0.10, 0.80, 0.40, 0.16])
    others = [i for i in range(5) if i not in (food, toy)]
    assert np.array_equal(rates[:, others], RATES[:, others])


def test_catalogue_churn() -> None:
    world = shocked("catalogue-churn")
    old, new = world.catalogue(AT - 1), world.catalogue(AT)
    left = [item.features["category"] for item in old.items if item.id not in new.row]
    came = [item for item in new.items if item.id not in old.row]
    assert Counter(left) == dict.fromkeys(CATEGORIES, 3)
    assert len(came) == 15
    assert {item.features["category"] for item in came} == {NEW_CATEGORY}
    rates = world.state(AT).of_items[:, [new.row[item.id] for item in came]]
    assert np.array_equal(rates, np.repeat([[0.65], [0.30], [0.60], [0.15]], 15, axis=1))
    levels = world.schema["item"]["category"]["levels"]
    assert NEW_CATEGORY in levels


def test_shocks_add_up_and_slots_are_never_used_again() -> None:
    churn, swap = find_shock("petshop", "catalogue-churn"), find_shock("petshop", "taste-swap")
    world = Petshop(1).with_shock(churn, 100).with_shock(swap, 200).with_shock(churn, 300)
    assert [len(world.catalogue(step).items) for step in (0, 100, 200, 300)] == [50, 50, 50, 47]  # 3 of 6 leave, then
    slots: dict[int, str] = {}
    for step in (0, 100, 300):
        for item in world.catalogue(step).items:
            assert slots.setdefault(item.slot, item.id) == item.id
    assert len(slots) == 80
    assert world.at(300).rates.shape == (47,)


def test_gradual_drift_goes_straight_to_a_taste_swap() -> None:
    world, target = shocked("gradual-drift"), shocked("taste-swap").state(AT).rates
    for age, share in ((0, 0.0), (1, 1e-4), (2500, 0.25), (5000, 0.5), (10_000, 1.0), (50_000, 1.0)):
        assert world.state(AT + age).rates == pytest.approx(RATES + share * (target - RATES))


def test_seasons_swap_neighbours_tastes_and_swap_them_back() -> None:
    world = shocked("seasonality")
    swapped = RATES[[1, 0, 3, 2]]
    for age, mixed in ((0, 0.0), (2500, 0.5), (5000, 1.0), (7500, 0.5), (10_000, 0.0), (1_005_000, 1.0)):
        assert world.state(AT + age).rates == pytest.approx(RATES + mixed * (swapped - RATES), abs=1e-9)
    quarter = (1 - np.cos(np.pi / 4)) / 2
    assert world.state(AT + 1250).rates == pytest.approx(RATES + quarter * (swapped - RATES))


def test_a_price_war_halves_the_best_seller_for_a_while() -> None:
    world = shocked("price-war")
    food = CATEGORIES.index("Cat Food")
    assert RATES.mean(axis=0).argmax() == food
    for age in (0, 1500, 2999):
        rates = world.state(AT + age).rates
        assert rates[:, food].tolist() == pytest.approx([0.05, 0.275, 0.2, 0.05])
        assert np.array_equal(np.delete(rates, food, axis=1), np.delete(RATES, food, axis=1))
    assert np.array_equal(world.state(AT + 3000).rates, RATES)


@pytest.mark.parametrize("name", ["gradual-drift", "seasonality", "price-war"])
def test_while_rates_move_the_catalogue_is_one_and_the_same(name: str) -> None:
    world = shocked(name).with_shock(find_shock("petshop", "catalogue-churn"), AT + 10)
    before = {id(world.at(step).catalogue) for step in range(AT - 5, AT + 10)}
    moments = [world.at(step) for step in range(AT + 10, AT + 30)]
    assert len(before) == 1
    assert len({id(moment.catalogue) for moment in moments}) == 1
    assert len(moments[0].catalogue.row.keys() - shocked(name).catalogue(0).row.keys()) == 15


@given(steps=st.lists(st.integers(0, 30_000), min_size=1, max_size=8), seed=st.integers(0, 2**62))
def test_a_moving_world_is_the_same_in_whatever_order_it_is_asked_for(steps: list[int], seed: int) -> None:
    names = ["seasonality", "gradual-drift", "catalogue-churn", "price-war", "taste-swap"]
    schedule = [(4000 * place, find_shock("petshop", name)) for place, name in enumerate(names)]
    world = Petshop(seed, schedule)
    found = {step: world.at(step) for step in steps}
    for step in sorted(found, reverse=True):
        fresh = Petshop(seed, schedule).at(step)
        assert np.array_equal(found[step].rates, fresh.rates)
        assert np.array_equal(found[step].click_draws, fresh.click_draws)
        assert found[step].catalogue.items == fresh.catalogue.items
        assert np.array_equal(world.at(step).rates, fresh.rates)


@pytest.mark.parametrize("world", ["petshop", "digits"])
@pytest.mark.parametrize("name", OF_TRAFFIC)
def test_shocks_of_traffic_leave_tastes_and_people_alone(world: str, name: str) -> None:
    shock = find_shock(world, name)
    calm, shaken = WORLDS[world](1), WORLDS[world](1, [(AT, shock)])
    for step in (AT - 1, AT, AT + shock.span // 2, AT + shock.span):
        one, other = calm.at(step), shaken.at(step)
        assert one.visit == other.visit
        assert np.array_equal(one.rates, other.rates)
        assert np.array_equal(one.click_draws, other.click_draws)
        running = AT <= step < AT + shock.span
        assert (shaken.traffic_effect(step) == calm.traffic_effect(step)) != running
        assert len(shaken.bots(step)) == (1 if running and name == "bot-flood" else 0)


def test_bots_look_like_users_and_are_all_different() -> None:
    world = shocked("bot-flood").with_shock(find_shock("petshop", "bot-flood"), AT + 10)
    bots = [bot for step in range(AT, AT + 500) for bot in world.bots(step)]
    assert len({bot.user_id for bot in bots}) == len(bots) == 10 + 2 * 490
    looks = Counter(bot.context["persona"] for bot in bots)
    assert set(looks) == set(PERSONAS)
    assert max(looks.values()) < 250 + 5 * 14
    assert not {bot.user_id for bot in bots} & {f"user-{user}" for user in range(1000)}


def test_shocks_of_traffic_add_up() -> None:
    world = shocked("feedback-blackout").with_shock(find_shock("petshop", "delay-spike"), AT + 1000)
    assert world.traffic_effect(AT) == TrafficEffect(silent=True)
    assert world.traffic_effect(AT + 1500) == TrafficEffect(silent=True, delay=2000)
    assert world.traffic_effect(AT + 2500) == TrafficEffect(delay=2000)
    assert world.traffic_effect(AT + 3000) == TrafficEffect()


def test_a_later_shock_is_not_made_anew_while_traffic_is_shaken() -> None:
    world = shocked("bot-flood").with_shock(find_shock("petshop", "taste-swap"), AT + 10)
    assert world.state(AT + 20) is world.state(AT + 30)


@pytest.mark.parametrize("world", SHOCKS)
def test_every_world_has_shocks_with_descriptions(world: str) -> None:
    assert SHOCKS[world]
    assert all(name == shock.name and shock.description for name, shock in SHOCKS[world].items())


def test_an_unknown_shock_says_which_there_are() -> None:
    with pytest.raises(UsageError, match=r"taste-swop.*taste-swap"):
        find_shock("petshop", "taste-swop")
