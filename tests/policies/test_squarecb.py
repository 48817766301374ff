"""Checks SquareCB against its formula, and its regression against a float64 solve."""

from __future__ import annotations

import numpy as np
import pytest

from service.policies import Scorer
from service.policies.squarecb import SquareCB, SquareCBParams
from tests.builders import batch_of, estimates_of, scorer_of


def after(events: int, *, gamma: float = 10.0, rho: float = 0.5, keep: float = 1.0) -> Scorer:
    """Make the scorer of a policy that has learned so many equal events."""
    policy = SquareCB(1, SquareCBParams(gamma=gamma, rho=rho))
    policy.update(batch_of(np.full((events, 1), 0.5), 1.0))
    if keep < 1:
        policy.forget(keep)
    return scorer_of(policy)


def test_probabilities_by_hand() -> None:
    # 16 events: γ = 10 √4 √16 = 80; gaps of 0, .2, .4 and .7 from the best.
    pmf = after(16).pmf(np.array([[0.5], [0.7], [0.3], [0.0]]))
    others = [1 / (4 + 80 * 0.2), 1 / (4 + 80 * 0.4), 1 / (4 + 80 * 0.7)]
    np.testing.assert_allclose(pmf, [others[0], 1 - sum(others), *others[1:]])


def test_the_best_share_what_the_others_leave() -> None:
    pmf = after(16).pmf(np.array([[0.5], [0.1], [0.5], [0.5]]))
    other = 1 / (4 + 80 * 0.4)
    np.testing.assert_allclose(pmf, [(1 - other) / 3, other, (1 - other) / 3, (1 - other) / 3])


def test_the_less_is_known_the_more_is_explored() -> None:
    estimates = np.array([[0.6], [0.4], [0.1]])
    assert after(0).pmf(estimates) == pytest.approx([1 / 3] * 3)
    best = [after(events).pmf(estimates)[0] for events in (0, 1, 10, 100, 1000)]
    assert best == sorted(best)
    assert best[-1] > 0.98
    np.testing.assert_allclose(after(100, keep=0.25).pmf(estimates), after(25).pmf(estimates))
    assert after(100, keep=0.0).pmf(estimates) == pytest.approx([1 / 3] * 3)


def test_a_schedule_may_stand_still() -> None:
    estimates = np.array([[0.6], [0.4]])
    np.testing.assert_array_equal(after(3, rho=0.0).pmf(estimates), after(300, rho=0.0).pmf(estimates))


@pytest.mark.parametrize("n", [1, 2, 10_000])
def test_everybody_has_a_chance_and_the_better_the_more(n: int) -> None:
    estimates = np.random.default_rng(n).uniform(0, 1, (n, 1))
    pmf = after(5000).pmf(estimates)
    assert (pmf > 0).all()
    assert abs(pmf.sum() - 1) <= 1e-12
    by_score = pmf[np.argsort(estimates[:, 0])]
    assert (np.diff(by_score) > 0).all()


def test_the_oracle_is_ridge_regression_over_all_items() -> None:
    rng = np.random.default_rng(1)
    x = rng.uniform(-0.5, 0.5, (500, 6)).astype(np.float32)
    reward = rng.integers(0, 2, 500).astype(float)
    policy = SquareCB(6, SquareCBParams(ridge=3.0))
    expected = policy.update(batch_of(x, reward))
    x64 = x.astype(np.float64)
    theta = np.linalg.solve(3.0 * np.eye(6) + x64.T @ x64, x64.T @ reward)
    shown = estimates_of(policy, x[:9])
    np.testing.assert_allclose(shown[:, 0], x64[:9] @ theta, rtol=1e-6)
    before = np.linalg.solve(3.0 * np.eye(6) + x64[:-1].T @ x64[:-1], x64[:-1].T @ reward[:-1])
    assert expected[-1] == pytest.approx(x64[-1] @ before)


def test_summary_says_how_much_is_known() -> None:
    summary = after(100, gamma=2.0).summary()
    assert (summary["events"], summary["gamma"]) == (100, 20)
