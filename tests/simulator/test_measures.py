"""The measures on series made by hand."""

from __future__ import annotations

import numpy as np
import pytest

from simulator.measures import (
    between_versions,
    gain,
    half_gain_at,
    last_fifth,
    locked_in,
    overtaking,
    recovery,
    regained_after,
    regret,
    rolling,
)


def test_rolling() -> None:
    assert rolling(np.array([1.0, 2, 3, 6]), 2).tolist() == [1.5, 2.5, 4.5]


def test_regret_is_cumulative() -> None:
    assert regret(np.array([0.2, 0.5, 0.1]), np.array([0.5, 0.5, 0.5])) == pytest.approx([0.3, 0.3, 0.7])


@pytest.mark.parametrize(
    ("expected", "at"),
    [
        ([2, 1, 1, 1], 0),  # never behind
        ([1, 1, 1, 1], 0),  # level is not behind
        ([0, 1, 2, 1], 2),  # behind after steps 0 and 1, level after step 2
        ([0, 3, 0, 0, 9], 4),  # ahead, behind again, ahead for good
        ([1, 1, 1, 0], None),  # behind at the end
    ],
)
def test_overtaking(expected: list[float], at: int | None) -> None:
    assert overtaking(np.array(expected, float), np.ones(len(expected))) == at


def test_rounding_is_not_being_behind() -> None:
    rates = np.random.default_rng(0).random(10_000)
    assert overtaking(rates, rates[::-1][::-1]) == 0
    assert overtaking(np.full(30_000, 0.1), np.full(30_000, 0.3) / 3) == 0


def test_recovery_is_the_end_of_the_first_good_window() -> None:
    oracle = np.full(3000, 0.5)
    expected = oracle.copy()
    expected[1000:1200] = 0.0  # a window holds 90 % as soon as it has 50 bad steps at most
    assert recovery(expected, oracle, shock=1000, share=0.90) == 650
    assert recovery(expected, oracle, shock=1000, share=1.0) == 700
    assert recovery(oracle, oracle, shock=1000, share=0.95) == 500, "the least there is"


def test_recovery_looks_at_what_lies_wholly_after_the_shock() -> None:
    oracle = np.full(2000, 0.5)
    expected = np.where(np.arange(2000) < 1000, 0.5, 0.2)
    assert recovery(expected, oracle, shock=1000, share=0.9) is None
    assert recovery(expected, oracle, shock=500, share=0.9) == 500
    assert recovery(expected, oracle, shock=1000, share=0.4) == 500


def test_recovery_ends_at_the_next_shock() -> None:
    oracle = np.ones(3000)
    expected = np.where(np.arange(3000) < 2000, 0.0, 1.0)
    assert recovery(expected, oracle, shock=1000, share=0.9) == 1450
    assert recovery(expected, oracle, shock=1000, share=0.9, until=2000) is None
    assert recovery(expected, oracle, shock=2700, share=0.9) is None, "no window fits"


def test_recovery_follows_a_moving_oracle() -> None:
    oracle = np.where(np.arange(2000) < 1500, 0.5, 1.0)
    expected = np.full(2000, 0.45)
    assert recovery(expected, oracle, shock=0, share=0.9) == 500
    assert recovery(expected, oracle, shock=1300, share=0.9) is None


def test_decisions_between_versions() -> None:
    version = np.array([0, 0, 1, 1, 0, 3, 3])  # two workers: an old version may still be seen
    assert between_versions(["a"] * 7, version).tolist() == [2, 3]
    assert between_versions(["a", "a", "a", "b", "b", "b", "b"], np.array([5, 5, 6, 1, 1, 2, 2])).tolist() == [2, 1, 2]
    assert between_versions(["a"] * 3, np.array([4, 4, 4])).tolist() == []


def test_gain_is_the_share_of_what_was_possible() -> None:
    best, chance = np.array([1.0, 0.6]), np.array([0.2, 0.4])
    assert gain(np.array([0.6, 0.5]), best, chance) == pytest.approx(0.5)
    assert np.isnan(gain(chance, chance, chance))
    assert last_fifth(np.arange(12)).tolist() == [10, 11]


def test_half_of_the_gain_is_reached_at_the_end_of_a_window() -> None:
    expected, best, chance = np.array([0.2, 0.2, 0.6, 0.6, 0.2]), np.full(5, 0.8), np.full(5, 0.2)
    assert half_gain_at(expected, best, chance, window=2) == 4
    assert half_gain_at(expected, best, chance, window=3) is None
    assert half_gain_at(expected, best, chance, window=6) is None


def test_a_gain_is_regained_at_the_end_of_a_window() -> None:
    expected = np.array([0.8] * 4 + [0.2, 0.2, 0.5, 0.8, 0.8])
    best, chance = np.full(9, 0.8), np.full(9, 0.2)
    assert regained_after(expected, best, chance, at=4, window=2) == 5
    assert regained_after(expected[:7], best[:7], chance[:7], at=4, window=2) is None
    assert regained_after(chance, best, chance, at=4, window=2) is None, "nothing was lost"


def test_a_run_far_below_the_median_is_locked_in() -> None:
    assert locked_in(np.array([0.9, 0.8, 0.39, 0.41, 0.85])) == 1
    assert locked_in(np.array([0.05, -0.1, 0.0])) == 0
