"""Intervals and tests that may be looked at any time: the formulas' figures, and that they hold."""

from __future__ import annotations

import math

import numpy as np
import pytest

from service.evaluate.sequential import half_width, information_needed, mismatch, planned_for


def test_the_half_width_is_that_of_the_paper() -> None:
    """Waudby-Smith et al. 2024, equation 11, with ρ² = 1 / r at unit variance, after t observations."""
    t, rho, error = 500, 0.07, 0.05
    said = math.sqrt(2 * (t * rho**2 + 1) / (t * rho) ** 2 * math.log(math.sqrt(t * rho**2 + 1) / error))
    assert half_width(1 / t, error=error, planned=1 / rho**2) == pytest.approx(said)
    assert half_width(math.inf, error=error, planned=1.0) == math.inf
    assert half_width(0.0, error=error, planned=1.0) == 0.0


@pytest.mark.parametrize("error", [0.01, 0.05, 0.2])
@pytest.mark.parametrize("effect", [0.02, 0.5])
def test_it_is_narrowest_where_it_settles_the_effect(error: float, effect: float) -> None:
    planned = planned_for(effect, error=error)
    settled = information_needed(effect, error=error, power=0.5, planned=planned)
    assert half_width(1 / settled, error=error, planned=planned) == pytest.approx(effect)
    for other in (planned / 1.5, planned * 1.5):
        assert half_width(1 / settled, error=error, planned=other) > effect
    # As wide as so many of an interval for one look.
    assert 1.3 < math.sqrt(settled) * effect / {0.01: 2.576, 0.05: 1.96, 0.2: 1.282}[error] < 2.0


def test_more_power_needs_more() -> None:
    planned = planned_for(0.1, error=0.05)
    needed = [information_needed(0.1, error=0.05, power=power, planned=planned) for power in (0.5, 0.8, 0.95)]
    assert needed == sorted(needed)
    width = half_width(1 / needed[1], error=0.05, planned=planned)
    assert width + 0.8416 / math.sqrt(needed[1]) == pytest.approx(0.1, rel=1e-4)


def test_a_walk_leaves_its_bounds_as_seldom_as_is_said() -> None:
    """1 000 random walks of 2 000 steps, looked at after each: at most 5 % leave, and not far fewer."""
    rng, steps = np.random.default_rng(3), 2000
    walks = rng.normal(size=(1000, steps)).cumsum(axis=1) / np.arange(1, steps + 1)
    bound = np.array([half_width(1 / t, error=0.05, planned=20.0) for t in range(1, steps + 1)])
    left = float((np.abs(walks) > bound).any(axis=1).mean())
    assert 0.01 < left <= 0.05


def test_the_p_value_of_a_split_is_that_of_a_beta_binomial() -> None:
    """With one prior of concentration a: B(a/2 + x, a/2 + y) / B(a/2, a/2) · 2^(x + y); here the mean of two."""

    def factor(a: float, x: int, y: int) -> float:
        beta = math.lgamma(a / 2 + x) + math.lgamma(a / 2 + y) - math.lgamma(a + x + y)
        return math.exp(beta - 2 * math.lgamma(a / 2) + math.lgamma(a) + (x + y) * math.log(2))

    mean = (factor(100, 900, 700) + factor(10_000, 900, 700)) / 2
    assert mismatch([900, 700], [0.5, 0.5]) == pytest.approx(1 / mean)
    assert mismatch([0, 0], [0.5, 0.5]) == 1.0
    assert mismatch([1000, 1000, 2000], [0.25, 0.25, 0.5]) == 1.0


def test_a_split_that_loses_units_is_found_and_a_clean_one_is_not() -> None:
    """Looked at after every 1 000 units. 1 % of one arm is lost: found among a million; 10 %: among 20 000."""
    rng = np.random.default_rng(5)
    for lost, most in ((0.01, 1_000_000), (0.1, 20_000)):
        arms = rng.multinomial(1000, [0.5, 0.5 * (1 - lost), 0.5 * lost], size=most // 1000)[:, :2].cumsum(axis=0)
        assert mismatch(arms[-1].tolist(), [0.5, 0.5]) < 0.01
    clean = rng.multinomial(1000, [0.5, 0.3, 0.2], size=(200, 20)).cumsum(axis=1)
    found = [min(mismatch(look, [0.5, 0.3, 0.2]) for look in run) < 0.01 for run in clean.tolist()]
    assert sum(found) <= 2
