"""Intervals: the formulas' figures, and that they hold as often as they say."""

from __future__ import annotations

import math

import numpy as np
import pytest

from service.evaluate.intervals import (
    LAMBDAS,
    MOST_CLUSTERS,
    PSI,
    bootstrap,
    empirical_bernstein,
    lower_sequence,
)
from service.policies import Array


def mean(sums: Array) -> Array:
    return sums[:, :1] / sums[:, 1:]


def columns(values: Array) -> Array:
    return np.stack([values, np.ones_like(values)], axis=1)


def test_the_bernstein_bound_is_that_of_the_paper() -> None:
    values = np.array([0.0, 1.0, 0.5, 0.25] * 50)
    found = empirical_bernstein(values, least=0, most=1, confidence=0.95)
    log = math.log(4 / 0.05)
    width = math.sqrt(2 * np.var(values, ddof=1) * log / 200) + 7 * log / (3 * 199)
    assert found == pytest.approx((values.mean(), values.mean() - width, values.mean() + width))
    scaled = empirical_bernstein(10 * values - 3, least=-3, most=7, confidence=0.95)
    assert scaled == pytest.approx([10 * end - 3 for end in found])


def test_the_bernstein_bound_needs_the_range_and_two_terms() -> None:
    with pytest.raises(ValueError, match="outside"):
        empirical_bernstein(np.array([0.0, 2.0]), least=0, most=1, confidence=0.95)
    with pytest.raises(ValueError, match="1 terms"):
        empirical_bernstein(np.array([0.0]), least=0, most=1, confidence=0.95)


def test_the_bootstrap_is_seeded_and_close_to_the_normal_interval() -> None:
    values = np.random.default_rng(1).random(800)
    [found] = bootstrap(columns(values), mean, np.arange(800), confidence=0.95, seed=5)
    [again] = bootstrap(columns(values), mean, np.arange(800), confidence=0.95, seed=5)
    [other] = bootstrap(columns(values), mean, np.arange(800), confidence=0.95, seed=6)
    assert found == again != other
    width = 1.96 * values.std(ddof=1) / math.sqrt(800)
    assert found == pytest.approx((values.mean(), values.mean() - width, values.mean() + width), abs=width / 8)


def test_a_user_s_decisions_are_resampled_together() -> None:
    """Ten copies of every decision tell nothing new."""
    values = np.random.default_rng(1).random(200)
    [once] = bootstrap(columns(values), mean, np.arange(200), confidence=0.95)
    [copies] = bootstrap(columns(np.repeat(values, 10)), mean, np.repeat(np.arange(200), 10), confidence=0.95)
    assert copies == pytest.approx(once)


def test_more_users_than_are_resampled_are_put_together() -> None:
    B = 2 * MOST_CLUSTERS + 1
    values = np.random.default_rng(1).random(B)
    [found] = bootstrap(columns(values), mean, np.arange(B), confidence=0.95)
    assert found.half_width == pytest.approx(1.96 * values.std() / math.sqrt(B), rel=0.1)
    assert found.estimate == pytest.approx(values.mean(), abs=1e-12)


def test_the_sequence_s_bound_is_where_the_mixture_reaches_the_level() -> None:
    """Put into the supermartingale of the paper, the bound gives 1 / error."""
    values = np.random.default_rng(2).exponential(size=300)
    found = lower_sequence(values, least=0, error=0.01)
    before, variance = 0.0, 0.0
    for number, value in enumerate(values, start=1):
        guess = min(max((before + 0.5) / number, 0.0), 1.0)
        before, variance = before + value, variance + (value - guess) ** 2
        s = before - number * found[number - 1]
        assert np.exp(LAMBDAS * s - PSI * variance).mean() == pytest.approx(100, rel=1e-6)


def test_the_sequence_moves_with_the_lower_end_of_its_terms() -> None:
    values = np.random.default_rng(2).exponential(size=300)
    moved = lower_sequence(values - 1, least=-1, error=0.01)
    assert moved == pytest.approx(lower_sequence(values, least=0, error=0.01) - 1)
    with pytest.raises(ValueError, match="below"):
        lower_sequence(values - 1, least=0, error=0.01)


def test_the_sequence_looks_back_only() -> None:
    values = np.random.default_rng(2).exponential(size=300)
    assert lower_sequence(values[:100], least=0, error=0.01) == pytest.approx(
        lower_sequence(values, least=0, error=0.01)[:100]
    )


@pytest.mark.parametrize("rare", [0.5, 0.02])
def test_the_sequence_seldom_fails_at_any_look(rare: float) -> None:
    """Rewards of 1 / rare with probability rare, as weighted rewards are; their mean is 1."""
    rng = np.random.default_rng(4)
    failed = sum(
        bool((lower_sequence((rng.random(500) < rare) / rare, least=0, error=0.1) > 1).any()) for _ in range(300)
    )
    assert failed <= 30  # 10 %


def test_the_sequence_closes_in() -> None:
    values = (np.random.default_rng(4).random(20_000) < 0.1) / 0.1
    assert lower_sequence(values, least=0, error=0.025)[-1] > 0.9
