"""The pet shop is exactly what it is said to be, at any step, in any order."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.shocks import SHOCKS
from simulator.world import WORLDS, Moment
from simulator.world.petshop import CATEGORIES, PERSONAS, RATES, Petshop

STEPS = 20_000


@pytest.fixture(scope="module")
def moments() -> list[Moment]:
    world = Petshop(7)
    return [world.at(step) for step in range(STEPS)]


def same(one: Moment, other: Moment) -> bool:
    return (
        one.visit == other.visit
        and one.catalogue == other.catalogue
        and np.array_equal(one.rates, other.rates)
        and np.array_equal(one.click_draws, other.click_draws)
    )


def test_expected_rates_are_those_of_the_design() -> None:
    by_persona = RATES.max(axis=1)
    assert by_persona.mean() == pytest.approx(0.5125)
    assert RATES.mean() == pytest.approx(0.2105)


def test_a_run_averages_to_them(moments: list[Moment]) -> None:
    # a persona's best rate has a standard deviation of .075 between personas: four standard errors of the mean
    assert np.mean([m.oracle for m in moments]) == pytest.approx(0.5125, abs=4 * 0.075 / STEPS**0.5)
    assert np.mean([m.random for m in moments]) == pytest.approx(0.2105, abs=4 * 0.05 / STEPS**0.5)


def test_the_catalogue_has_ten_products_of_each_category(moments: list[Moment]) -> None:
    items = moments[0].catalogue.items
    assert len({item.id for item in items}) == 50
    assert Counter(item.features["category"] for item in items) == dict.fromkeys(CATEGORIES, 10)


def test_a_moment_shows_persona_and_category_only(moments: list[Moment]) -> None:
    for moment in moments[:100]:
        assert set(moment.visit.context) == {"persona"}
        assert all(set(item.features) == {"category"} for item in moment.catalogue.items)
        persona = PERSONAS.index(moment.visit.context["persona"])
        expected = [RATES[persona, CATEGORIES.index(item.features["category"])] for item in moment.catalogue.items]
        assert moment.rates.tolist() == expected


def test_all_users_come_equally_often(moments: list[Moment]) -> None:
    counts = Counter(m.visit.user_id for m in moments)
    assert len(counts) == 1000  # each is missing from 20 000 draws with a probability of 2e-9
    assert max(counts.values()) < 20 + 7 * 20**0.5
    personas = {m.visit.user_id: m.visit.context["persona"] for m in moments}
    assert Counter(personas.values()) == dict.fromkeys(PERSONAS, 250)


def test_clicks_come_at_the_expected_rate(moments: list[Moment]) -> None:
    outcomes = [moment.outcome("product-45") for moment in moments]
    expected, clicked = np.mean(outcomes, axis=0)
    assert clicked == pytest.approx(expected, abs=4 * 0.5 / STEPS**0.5)


def test_clicks_are_drawn_for_each_item_by_itself(moments: list[Moment]) -> None:
    draws = np.stack([m.click_draws for m in moments])  # (steps, items)
    between = np.corrcoef(draws.T) - np.eye(50)
    assert abs(between).max() < 6 / STEPS**0.5
    assert 0 <= draws.min() < draws.max() < 1


@given(steps=st.lists(st.integers(0, 10**7), min_size=1, max_size=8), seed=st.integers(0, 2**62))
def test_a_step_is_the_same_in_whatever_order_it_is_asked_for(steps: list[int], seed: int) -> None:
    schedule = [(5_000_000, SHOCKS["petshop"]["catalogue-churn"]), (100, SHOCKS["petshop"]["taste-swap"])]
    world = Petshop(seed, schedule)
    found = {step: world.at(step) for step in steps}
    shuffled = list(found)
    random.Random(seed).shuffle(shuffled)
    other = Petshop(seed, schedule)
    assert all(same(other.at(step), found[step]) for step in shuffled)


def test_seeds_differ() -> None:
    one, other = (np.stack([Petshop(seed).at(step).click_draws for step in range(50)]) for seed in (1, 2))
    assert not np.array_equal(one, other)


def test_the_history_is_uniform_and_from_a_stream_of_its_own() -> None:
    world = Petshop(3, [(0, SHOCKS["petshop"]["taste-swap"])])
    rows = list(world.history(20_000))
    assert rows == list(Petshop(3).history(20_000)), "a shock at once must not show in what was before"
    assert len({row["event_id"] for row in rows}) == len(rows)
    shown = Counter(row["item_id"] for row in rows)
    assert len(shown) == 50
    assert max(shown.values()) < 400 + 6 * 400**0.5
    assert np.mean([row["reward"] for row in rows]) == pytest.approx(0.2105, abs=4 * 0.41 / 20_000**0.5)
    assert [row["user_id"] for row in rows[:100]] != [world.at(step).visit.user_id for step in range(100)]


def test_worlds_are_found_by_name() -> None:
    assert WORLDS["petshop"] is Petshop
