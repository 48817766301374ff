"""Checks the measure of the widths at which each candidate wins against a brute search over widths."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from service.policies.envelope import random_width_pmf
from tests.builders import Array

CELLS = 20_000  # intervals of widths, all of one probability; each is represented by its median
Z = -np.log1p(-(np.arange(CELLS) + 0.5) / CELLS)


def searched(mean: Array, spread: Array) -> Array:
    """Compute the share of the intervals of widths in which each line is the highest."""
    best, winner = np.full(CELLS, -np.inf), np.zeros(CELLS, dtype=np.intp)
    for i, (m, s) in enumerate(zip(mean, spread, strict=True)):
        index = m + Z * s
        winner[index > best] = i
        best = np.maximum(best, index)
    return np.bincount(winner, minlength=len(mean)) / CELLS


@settings(deadline=None)
@given(
    lines=st.lists(st.tuples(st.floats(-5, 5), st.floats(0, 3)), min_size=1, max_size=12),
    scale=st.sampled_from([0.01, 0.3, 1.0]),
)
def test_it_is_the_measure_of_the_widths_at_which_a_candidate_wins(
    lines: list[tuple[float, float]], scale: float
) -> None:
    mean, spread = scale * np.array(lines).T[0], np.array(lines).T[1]
    pmf = random_width_pmf(mean, spread)
    assert abs(pmf.sum() - 1) < 1e-12
    # Equal or nearly equal lines share in one and not in the other: compare the sums over such lines.
    found, expected = pmf, searched(mean, spread)
    for i in range(len(mean)):
        alike = (np.abs(mean - mean[i]) < 1e-3) & (np.abs(spread - spread[i]) < 1e-3)
        assert abs(found[alike].sum() - expected[alike].sum()) < 1e-3


def test_three_lines_by_hand() -> None:
    # The second wins from z = 1 on, the third from z = 3 on, the fourth never: at z = 1 it is just as good.
    pmf = random_width_pmf(np.array([1.0, 0.0, -3.0, 0.4]), np.array([0.0, 1.0, 2.0, 0.6]))
    np.testing.assert_allclose(pmf, [1 - np.exp(-1), np.exp(-1) - np.exp(-3), np.exp(-3), 0], atol=1e-15)


def test_equal_candidates_share() -> None:
    pmf = random_width_pmf(np.array([0.0, 1.0, 0.0, 1.0, 0.0]), np.array([2.0, 1.0, 2.0, 1.0, 1.0]))
    np.testing.assert_allclose(pmf, [np.exp(-1) / 2, (1 - np.exp(-1)) / 2] * 2 + [0], atol=1e-15)
    assert random_width_pmf(np.zeros(4), np.ones(4)).tolist() == [0.25] * 4


def test_among_certain_candidates_the_best_wins() -> None:
    assert random_width_pmf(np.array([0.1, 0.3, 0.2]), np.zeros(3)).tolist() == [0, 1, 0]


def test_the_order_of_the_candidates_does_not_matter() -> None:
    rng = np.random.default_rng(0)
    mean, spread = rng.normal(size=500), rng.random(500)
    order = rng.permutation(500)
    assert (random_width_pmf(mean, spread)[order] == random_width_pmf(mean[order], spread[order])).all()
