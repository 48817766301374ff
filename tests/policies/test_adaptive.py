"""Checks the posterior of the default policy, and that what is learned of one item serves another."""

from __future__ import annotations

import numpy as np
import pytest

from service.policies import part
from service.policies.adaptive import Adaptive
from service.policies.adaptive_layers import AdaptiveParams
from service.policies.information import REFRESH, WAITING, Information
from tests.builders import Array, batch_of, candidates_of, estimates_of, parts_of, scorer_of


def logistic(size: int, *, seed: int = 0) -> tuple[Array, Array, Array]:
    """Draw rows (size, 4), clicks (size,), and the weights (4,) that they follow."""
    rng = np.random.default_rng(seed)
    x, w = rng.uniform(-0.5, 0.5, (size, 4)), np.array([1.0, -2.0, 0.5, 3.0])
    return x, (rng.random(size) < 1 / (1 + np.exp(-x @ w))).astype(np.float64), w


def test_the_posterior_is_that_of_a_whole_laplace_fit() -> None:
    x, clicks, w = logistic(4000)
    policy = Adaptive(4, AdaptiveParams(ridge=0.5, item_ridge=1e9))
    policy.update(batch_of(x, clicks))
    mean = np.zeros(4)
    for _ in range(20):  # Newton's method on all events at once
        p = 1 / (1 + np.exp(-x @ mean))
        precision = 0.5 * np.eye(4) + (x * (p * (1 - p))[:, None]).T @ x
        mean = mean + np.linalg.solve(precision, x.T @ (clicks - p) - 0.5 * mean)
    found, sd = policy.snapshot(), np.sqrt(np.diag(np.linalg.inv(precision)))
    assert (np.abs(found["mean"] - mean) < 0.3 * sd).all()  # one look at each event, in order, loses little
    np.testing.assert_allclose(np.sqrt(np.diag(found["root"].T @ found["root"])), sd, rtol=0.05)
    assert (np.abs(mean - w) < 4 * sd).all()


def matrices(policy: Adaptive) -> tuple[Array, Array]:
    """Return precision and covariance."""
    information = Information(np.eye(policy.d), np.eye(policy.d))
    information.load(policy.state())
    return information.matrix, information.inverse


@pytest.mark.parametrize("size", [1, WAITING - 1, WAITING, 5 * WAITING + 3])
def test_learns_as_its_docstring_says(size: int) -> None:
    """Compare with the formulas of the class, computed event by event."""
    rng = np.random.default_rng(3)
    x, item, reward = rng.uniform(-1, 1, (size, 5)).astype(np.float32), rng.integers(0, 3, size), rng.random(size)
    m, S, P = np.zeros(5), np.eye(5) / 0.1, 0.1 * np.eye(5)
    o, s = np.zeros(3), np.full(3, 1 / 200.0)
    for row, i, r in zip(x.astype(np.float64), item.tolist(), reward.tolist(), strict=True):
        p, v = 1 / (1 + np.exp(-m @ row - o[i])), row @ S @ row + s[i]
        h = p * (1 - p)
        g = 1 / (1 + h * v)
        m += g * (r - p) * S @ row
        S -= g * h * S @ np.outer(row, row) @ S
        P += h / (1 + h * s[i]) * np.outer(row, row)
        o[i] += g * (r - p) * s[i]
        s[i] -= g * h * s[i] ** 2
    policy = Adaptive(5, AdaptiveParams())
    policy.update(batch_of(x, reward, [str(i) for i in item]))
    np.testing.assert_allclose(policy.state()["mean"], m, rtol=1e-9)
    for found, plain in zip(matrices(policy), (P, S), strict=True):
        np.testing.assert_allclose(found, plain, rtol=1e-9, atol=1e-9)


def test_covariance_times_precision_stays_the_identity() -> None:
    """The refresh removes accumulated rounding errors, also where features are far apart in size."""
    rng = np.random.default_rng(0)
    x = rng.uniform(-0.5, 0.5, (3 * REFRESH - 1, 6)) * np.array([1, 1, 1e-3, 1e-3, 1, 0])
    policy = Adaptive(6, AdaptiveParams())
    policy.update(batch_of(x, rng.random(len(x)), ["abc"[i % 3] for i in range(len(x))]))
    precision, covariance = matrices(policy)
    solved = np.linalg.solve(precision, np.eye(6))
    assert np.abs(covariance - solved).max() <= 1e-9 * np.abs(solved).max()


def test_what_is_expected_is_what_an_update_would_say_whatever_the_batch() -> None:
    x, clicks, _ = logistic(300)
    policy, item = Adaptive(4, AdaptiveParams()), ["a", "b", "c"] * 100
    policy.update(batch_of(x[:200], clicks[:200], item[:200]))
    rest = batch_of(x[200:], clicks[200:], [*item[200:-1], "never-seen"])
    before = policy.state()
    together = policy.expected(rest)
    assert together.tolist() == [policy.expected(event)[0] for event in parts_of(rest, 1)]
    assert all((before[name] == array).all() for name, array in policy.state().items())
    assert together[0] == pytest.approx(policy.update(part(rest, slice(0, 1)))[0])


def test_a_new_item_is_served_from_its_features_on_its_first_request() -> None:
    rng = np.random.default_rng(1)
    good = rng.random(600) < 0.5
    x = np.where(good[:, None], [0.5, 0.5, 0.0], [0.5, 0.0, 0.5])
    clicks = (rng.random(600) < np.where(good, 0.7, 0.1)).astype(np.float64)
    policy = Adaptive(3, AdaptiveParams())
    policy.update(batch_of(x, clicks, [f"item-{i % 20}" for i in range(600)]))
    scorer = scorer_of(policy)
    new = [[0.5, 0.5, 0.0], [0.5, 0.0, 0.5]]
    estimates = scorer.estimate(candidates_of(new, ["never-seen-good", "never-seen-bad"]))
    assert estimates[0, 0] == pytest.approx(0.7, abs=0.08)
    assert estimates[1, 0] == pytest.approx(0.1, abs=0.05)
    assert scorer.pmf(estimates)[0] > 0.99


def test_an_item_that_its_features_do_not_explain_gets_an_intercept_of_its_own() -> None:
    rng = np.random.default_rng(2)
    item = [("star", "plain", "dull")[i] for i in rng.integers(0, 3, 4000)]
    clicks = (rng.random(4000) < [{"star": 0.6, "plain": 0.4, "dull": 0.2}[i] for i in item]).astype(np.float64)
    policy = Adaptive(1, AdaptiveParams(item_ridge=20.0))
    policy.update(batch_of(np.full((4000, 1), 0.5), clicks, item))
    scores = estimates_of(policy, np.full((3, 1), 0.5), ["star", "plain", "dull"])[:, 0]
    np.testing.assert_allclose(scores, [0.6, 0.4, 0.2], atol=0.06)


def test_uncertainty_counts_features_and_item() -> None:
    policy = Adaptive(2, AdaptiveParams(alpha=2.0, ridge=4.0, item_ridge=25.0))
    estimates = estimates_of(policy, [[0.6, 0.8]])
    assert estimates[0, 2] == pytest.approx(2.0 * np.sqrt(1 / 4 + 1 / 25))


def test_rewards_out_of_range_count_as_its_ends() -> None:
    x = np.full((50, 2), 0.5)
    wild, tame = Adaptive(2, AdaptiveParams()), Adaptive(2, AdaptiveParams())
    wild.update(batch_of(x, np.tile([7.0, -3.0], 25)))
    tame.update(batch_of(x, np.tile([1.0, 0.0], 25)))
    assert (wild.snapshot()["mean"] == tame.snapshot()["mean"]).all()


def test_a_forgotten_item_loses_its_intercept_and_no_other_changes() -> None:
    rng = np.random.default_rng(6)
    policy, x, item = Adaptive(3, AdaptiveParams(item_ridge=2.0)), rng.uniform(-0.5, 0.5, (300, 3)), ["a", "b", "c"]
    policy.update(batch_of(x, rng.integers(0, 2, 300), item * 100))
    before, shown = policy.state(), estimates_of(policy, x[:3], item)
    policy.forget_items(["b"])
    after = policy.state()
    for name in before.keys() - {"items", "intercept", "variance"}:
        assert after[name].tobytes() == before[name].tobytes(), name
    for name in ("intercept", "variance"):
        assert after[name].tolist() == before[name][[0, 2]].tolist()
    found = estimates_of(policy, x[:3], item)
    assert (found[[0, 2]] == shown[[0, 2]]).all()
    assert found[1, 2] > 1.5 * shown[1, 2]  # as uncertain as an item never seen
