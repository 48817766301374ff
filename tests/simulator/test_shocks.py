"""Each shock changes what it says and nothing else."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.errors import UnknownName
from simulator.shocks import SHOCKS, derangement, find_shock
from simulator.world import Shock
from simulator.world.petshop import CATEGORIES, NEW_CATEGORY, RATES, Market, Petshop

AT = 1000


def struck(name: str, seed: int = 1) -> Petshop:
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


@pytest.mark.parametrize("name", SHOCKS["petshop"])
def test_nothing_changes_before_the_shock(name: str) -> None:
    calm, world = Petshop(1), struck(name)
    assert np.array_equal(world.at(AT - 1).rates, calm.at(AT - 1).rates)
    assert world.catalogue(AT - 1) == calm.catalogue(AT - 1)
    assert not np.array_equal(world.state(AT).of_items, calm.state(AT).of_items)


@pytest.mark.parametrize("name", SHOCKS["petshop"])
def test_users_and_luck_are_the_same_after_it(name: str) -> None:
    calm, world = Petshop(1).at(AT + 5), struck(name).at(AT + 5)
    assert world.visit == calm.visit
    stayed = [item.id for item in calm.catalogue.items if item.id in world.catalogue.row]
    assert stayed
    assert all(world.luck[world.catalogue.row[i]] == calm.luck[calm.catalogue.row[i]] for i in stayed)


@pytest.mark.parametrize("seed", range(5))
def test_taste_swap_deranges_each_persona(seed: int) -> None:
    before, after = struck("taste-swap", seed).state(0), struck("taste-swap", seed).state(AT)
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
    rates = struck("bestseller-collapse").state(AT).rates
    food, toy = CATEGORIES.index("Cat Food"), CATEGORIES.index("Cat Toy")
    assert rates[:, food] == pytest.approx(RATES[:, food] * 0.2)
    assert rates[:, toy].tolist() == pytest.approx([0.10, 0.80, 0.40, 0.16])
    others = [i for i in range(5) if i not in (food, toy)]
    assert np.array_equal(rates[:, others], RATES[:, others])


def test_catalogue_churn() -> None:
    world = struck("catalogue-churn")
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
    world = Petshop(1).struck(churn, 100).struck(swap, 200).struck(churn, 300)
    assert [len(world.catalogue(step).items) for step in (0, 100, 200, 300)] == [50, 50, 50, 47]  # 3 of 6 leave, then
    slots: dict[int, str] = {}
    for step in (0, 100, 300):
        for item in world.catalogue(step).items:
            assert slots.setdefault(item.slot, item.id) == item.id
    assert len(slots) == 80
    assert world.at(300).rates.shape == (47,)


def test_a_gradual_shock_is_one_more_entry() -> None:
    def drift(market: Market, generator: np.random.Generator, age: int) -> Market:
        target = market.rates[:, derangement(5, generator)]
        return replace(market, rates=market.rates + (target - market.rates) * age / 100)

    world = Petshop(1, [(AT, Shock("drift", "tastes drift", drift, span=100))])
    assert np.array_equal(world.state(AT).rates, RATES)
    moved = [abs(world.state(AT + age).rates - RATES).sum() for age in (0, 50, 100, 5000)]
    assert moved[0] < moved[1] < moved[2] == moved[3]
    steps = [world.state(AT + age).rates for age in range(5)]
    assert all(not np.array_equal(one, other) for one, other in pairwise(steps))


def test_an_unknown_shock_says_which_there_are() -> None:
    with pytest.raises(UnknownName, match=r"taste-swop.*taste-swap"):
        find_shock("petshop", "taste-swop")
