"""Checks LinTS against float64 solves, and its probabilities against those of a joint Gaussian in closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest

from service.policies.ensemble import MEMBERS
from service.policies.information import REFRESH
from service.policies.lin_ts import LinTS, LinTSParams
from tests.builders import Array, batch_of, estimates_of, pmf_of


def taught(d: int, B: int, *, seed: int = 0, v: float = 0.3, ridge: float = 1.0) -> tuple[LinTS, Array, Array]:
    """Teach a policy B events. Return it, and A (d, d) and b (d,) of the events."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(-0.5, 0.5, (B, d)).astype(np.float32)
    reward = rng.integers(0, 2, B).astype(float)
    policy = LinTS(d, LinTSParams(v=v, ridge=ridge), seed=seed)
    policy.update(batch_of(x, reward))
    x64 = x.astype(np.float64)
    return policy, ridge * np.eye(d) + x64.T @ x64, x64.T @ reward


def test_estimates_are_the_means_and_covariances_of_the_rewards() -> None:
    policy, A, b = taught(5, 300, v=0.7, ridge=2.0)
    x = np.random.default_rng(1).uniform(-0.5, 0.5, (9, 5)).astype(np.float32)
    estimates = estimates_of(policy, x)
    np.testing.assert_allclose(estimates[:, 0], x @ np.linalg.solve(A, b), rtol=1e-5)
    covariance = 0.7**2 * x @ np.linalg.solve(A, x.T.astype(np.float64))
    np.testing.assert_allclose(estimates[:, 1:] @ estimates[:, 1:].T, covariance, rtol=1e-4, atol=1e-7)


def test_expected_rewards_are_those_of_a_solve_over_the_events_before_whatever_was_forgotten() -> None:
    """The events go beyond the first refresh of the inverse, and have different weights."""
    rng = np.random.default_rng(2)
    B = REFRESH + 300
    policy = LinTS(3, LinTSParams(ridge=0.5))
    x = rng.uniform(-0.5, 0.5, (B, 3)).astype(np.float32)
    reward = rng.uniform(0, 1, B)
    expected = policy.update(batch_of(x[:100], reward[:100]))
    policy.forget(0.25)
    expected = np.append(expected, policy.update(batch_of(x[100:], reward[100:])))
    for event in (0, 1, 50, 100, 101, 500, REFRESH, B - 1):
        past, weight = x[:event].astype(np.float64), np.ones(event)
        if event >= 100:
            weight[:100] = 0.25
        theta = np.linalg.solve(0.5 * np.eye(3) + (past.T * weight) @ past, (past.T * weight) @ reward[:event])
        assert expected[event] == pytest.approx(x[event] @ theta, rel=1e-9, abs=1e-12)


def test_over_ensembles_two_correlated_candidates_win_as_the_joint_gaussian_says() -> None:
    """P(1 beats 2) = Φ(difference of the means / standard deviation of the difference), which includes the correlation.

    Of 400 snapshots with MEMBERS draws each, in pairs, the mean has a standard error below .5 / √(400 · 128) = .0022.
    """
    policy, A, b = taught(3, 60, v=0.5)
    x = np.array([[0.5, 0.5, 0.1], [0.5, 0.4, 0.2]])
    shares = []
    for seed in range(400):
        policy.seed = seed
        shares.append(pmf_of(policy, x)[0])
    gap = (x[0] - x[1]).astype(np.float32).astype(np.float64)
    z = gap @ np.linalg.solve(A, b) / (0.5 * math.sqrt(gap @ np.linalg.solve(A, gap)))
    spread = [0.5 * math.sqrt(row @ np.linalg.solve(A, row)) for row in x]
    independent = gap @ np.linalg.solve(A, b) / math.hypot(*spread)
    wanted = 0.5 * math.erfc(-z / math.sqrt(2))
    assert abs(wanted - 0.5 * math.erfc(-independent / math.sqrt(2))) > 0.02  # else this could not fail
    assert np.mean(shares) == pytest.approx(wanted, abs=4 * 0.0022)


def test_probabilities_are_the_shares_of_the_ensemble() -> None:
    policy, _, _ = taught(4, 40)
    snapshot = policy.snapshot()
    x = np.random.default_rng(3).uniform(-0.5, 0.5, (6, 4)).astype(np.float32)
    wins = np.zeros(6)
    for noise in snapshot["noise"]:
        theta = snapshot["mean"] + policy.params.v * snapshot["root"].T @ noise
        wins[np.argmax(x @ theta)] += 1 / MEMBERS
    assert 0 < wins.max() < 1
    np.testing.assert_allclose(pmf_of(policy, x), wins, atol=1e-12)


def test_the_ensemble_is_centred_and_new_with_every_event() -> None:
    policy, _, _ = taught(4, 40)
    before = policy.snapshot()["noise"]
    assert (policy.snapshot()["noise"] == before).all()
    np.testing.assert_allclose(before.mean(axis=0, dtype=np.float64), 0.0, atol=1e-15)
    policy.update(batch_of(np.full((1, 4), 0.5), np.ones(1)))
    assert (policy.snapshot()["noise"] != before).any()


def test_equal_candidates_share_and_a_crowd_of_them_is_no_likelier() -> None:
    policy, _, _ = taught(4, 40)
    x = np.random.default_rng(4).uniform(-0.5, 0.5, (2, 4)).astype(np.float32)
    pair, crowd = pmf_of(policy, x), pmf_of(policy, x[[0, *[1] * 37]])
    assert crowd[0] == pytest.approx(pair[0])
    np.testing.assert_allclose(crowd[1:], pair[1] / 37)


def test_without_width_it_is_greedy() -> None:
    policy, A, b = taught(4, 40, v=0.0)
    x = np.random.default_rng(5).uniform(-0.5, 0.5, (8, 4)).astype(np.float32)
    assert pmf_of(policy, x).tolist() == np.eye(8)[np.argmax(x @ np.linalg.solve(A, b))].tolist()
