"""Checks the Bayesian layer against its formulas, the renewal, the items, and what the policy learns."""

from __future__ import annotations

import numpy as np
import pytest

from service.policies.network import NO_ITEM, forward, layers_of
from service.policies.neural_linear import NeuralLinear, NeuralLinearParams
from tests.builders import Array, batch_of, candidates_of, estimates_of, scorer_of

XOR = np.array([[1, a, b] for a in (0, 1) for b in (0, 1)]) / 2


def some_events(size: int, *, seed: int = 0) -> tuple[Array, Array, list[str]]:
    rng = np.random.default_rng(seed)
    x = rng.uniform(-0.5, 0.5, (size, 5)).astype(np.float32)
    return x, rng.random(size) < 0.5 + x[:, 0], [f"item-{i}" for i in rng.integers(0, 4, size)]


def test_the_posterior_is_one_newton_step_from_the_network() -> None:
    """Compare with the formulas of the class, over all events at once, before the reservoir is full."""
    params = NeuralLinearParams(hidden=(16, 8), ridge=0.5, item_ridge=20.0, alpha=1.0)
    policy = NeuralLinear(5, params, seed=1)
    x, reward, item = some_events(600)
    policy.update(batch_of(x, reward, item))
    snapshot = policy.snapshot()
    layers = layers_of(snapshot["network"], 5, (16, 8))
    inputs, f = forward(layers, x.astype(np.float64))
    z = np.column_stack([inputs[-1] / np.sqrt(8), x, np.ones(600)])
    p = 1 / (1 + np.exp(-f))
    k, w = p * (1 - p), np.concatenate([np.sqrt(8) * layers[-1][0][:, 0], np.zeros(5), layers[-1][1]])
    np.testing.assert_allclose(z @ w, f, atol=1e-12)
    P = 0.5 * np.eye(14) + (z.T * k) @ z
    mean = w + np.linalg.solve(P, z.T @ (reward - p) - 0.5 * w)
    np.testing.assert_allclose(snapshot["root"].T @ snapshot["root"] @ P, np.eye(14), atol=1e-9)
    np.testing.assert_allclose(snapshot["mean"], mean, atol=1e-9)
    rows = np.array([one == "item-2" for one in item])
    s = 1 / (20 + k[rows].sum())
    o = s * (reward - p - k * (z @ (mean - w)))[rows].sum()
    logit, width = estimates_of(policy, x[:1], "item-2")[0, 1:3]
    assert logit == pytest.approx(z[0] @ mean + o, abs=1e-5)
    assert width == pytest.approx(np.sqrt(z[0] @ np.linalg.solve(P, z[0]) + s), abs=1e-5)


def test_the_mean_nearly_solves_its_own_equation() -> None:
    """Newton's method would end at Σ (r - σ(mᵀz)) z = ridge m. One step from the network comes close to that."""
    policy = NeuralLinear(5, NeuralLinearParams(hidden=(16, 8)), seed=1)
    x, reward, item = some_events(2000)
    policy.update(batch_of(x, reward, item))
    snapshot = policy.snapshot()
    inputs, _ = forward(layers_of(snapshot["network"], 5, (16, 8)), x.astype(np.float64))
    z = np.column_stack([inputs[-1] / np.sqrt(8), x, np.ones(2000)])
    slope = z.T @ (reward - 1 / (1 + np.exp(-z @ snapshot["mean"]))) - policy.params.ridge * snapshot["mean"]
    step = snapshot["root"].T @ (snapshot["root"] @ slope)
    assert np.sqrt(step @ slope) < 0.3  # of a standard deviation of the posterior


def test_features_change_only_when_the_statistics_are_renewed_with_them() -> None:
    policy = NeuralLinear(5, NeuralLinearParams(), seed=1)
    x, reward, item = some_events(1200)
    networks = []
    for start in range(0, 1200, 8):
        part = slice(start, start + 8)
        policy.update(batch_of(x[part], reward[part], item[part]))
        networks.append(policy.snapshot()["network"].tobytes())
    renewed = [8 * (i + 2) for i in range(len(networks) - 1) if networks[i + 1] != networks[i]]
    assert renewed[:3] == [64, 128, 192]
    gaps = np.diff(renewed)
    assert gaps.min() >= 64
    assert gaps.max() > 100  # an eighth of what came before


def test_an_item_that_nobody_has_seen_is_uncertain_whatever_it_looks_like() -> None:
    policy = NeuralLinear(3, NeuralLinearParams(hidden=(8, 8), item_ridge=4.0, alpha=1.0))
    x = np.full((2000, 3), 0.5)
    policy.update(batch_of(x, np.arange(2000) % 2))
    known, unknown = estimates_of(policy, x[:2], ["a", "b"])[:, 2]
    assert known < 0.1
    assert unknown == pytest.approx(0.5, abs=0.05)


def test_an_item_of_a_kind_never_seen_keeps_the_uncertainty_of_its_features() -> None:
    """The network's features alone would collapse."""
    policy = NeuralLinear(4, NeuralLinearParams())
    rng = np.random.default_rng(2)
    x = np.eye(4)[:3] / 2 + np.array([0, 0, 0, 0.5])
    policy.update(batch_of(x[rng.integers(0, 2, 2000)], rng.integers(0, 2, 2000)))
    scorer = scorer_of(policy)
    estimates = scorer.estimate(candidates_of(x, ["a", "a", "new"]))
    assert estimates[2, 2] > 5 * estimates[:2, 2].max()
    assert scorer.pmf(estimates)[2] > 0.2


def test_tells_items_apart_that_look_the_same() -> None:
    rng = np.random.default_rng(3)
    item = [("good", "bad")[i] for i in rng.integers(0, 2, 4000)]
    rates = np.array([0.7 if one == "good" else 0.3 for one in item])
    policy = NeuralLinear(2, NeuralLinearParams(hidden=(8, 8), item_ridge=10.0))
    policy.update(batch_of(np.full((4000, 2), 0.5), rng.random(4000) < rates, item))
    good, bad = estimates_of(policy, np.full((2, 2), 0.5), ["good", "bad"])[:, 0]
    assert good == pytest.approx(0.7, abs=0.05)
    assert bad == pytest.approx(0.3, abs=0.05)


def test_learns_xor() -> None:
    """No linear model of two inputs can: the rate is .9 where they differ, .1 where not."""
    rng = np.random.default_rng(1)
    rows = rng.integers(0, 4, 4000)
    rates = np.array([0.1, 0.9, 0.9, 0.1])
    policy = NeuralLinear(3, NeuralLinearParams(hidden=(32, 32)))
    policy.update(batch_of(XOR[rows], rng.random(4000) < rates[rows]))
    np.testing.assert_allclose(estimates_of(policy, XOR, "a")[:, 0], rates, atol=0.05)


def test_evidence_outlives_the_reservoir() -> None:
    """The rows of the reservoir stand for all events, so the uncertainty falls on after it is full."""
    policy = NeuralLinear(2, NeuralLinearParams(hidden=(4,), buffer=64))
    x = np.full((6400, 2), 0.5)
    widths = []
    for start in range(0, 6400, 1600):
        policy.update(batch_of(x[start : start + 1600], np.arange(1600) % 2))
        widths.append(estimates_of(policy, x[:1], "a")[0, 2])
    assert widths[3] == pytest.approx(widths[0] / 2, rel=0.2)  # four times the events, half the standard deviation


def test_summary() -> None:
    policy = NeuralLinear(2, NeuralLinearParams(hidden=(4,)))
    policy.update(batch_of(np.zeros((3, 2)), np.zeros(3), ["a", "b", "a"]))
    assert scorer_of(policy).summary() == {"events": 3, "items": 2}


def test_a_forgotten_item_loses_its_intercept_and_its_events_still_teach_the_shared_layer() -> None:
    params = NeuralLinearParams(hidden=(8,), item_ridge=5.0)
    policy, other = NeuralLinear(5, params, seed=1), NeuralLinear(5, params, seed=1)
    x, reward, item = some_events(203)  # three events wait for their block
    for each in (policy, other):
        each.update(batch_of(x, reward, item))
    policy.forget_items(["item-1"])
    shown, before = (estimates_of(each, x[:4], [f"item-{i}" for i in range(4)]) for each in (policy, other))
    assert (shown[[0, 2, 3]] == before[[0, 2, 3]]).all()
    assert shown[1, 2] > 1.2 * before[1, 2]  # as uncertain as an item never seen
    assert NO_ITEM in policy.state()["kept_row"]
    assert NO_ITEM in policy.state()["waiting_row"]
    for each in (policy, other):  # to beyond the next renewal, at 256 events
        each.update(batch_of(x[:80], reward[:80], "item-0"))
    mine, theirs = policy.snapshot(), other.snapshot()
    for name in ("network", "mean", "root", "noise"):
        assert mine[name].tobytes() == theirs[name].tobytes(), name
    shown, before = (estimates_of(each, x[:4], [f"item-{i}" for i in range(4)]) for each in (policy, other))
    assert (shown[[0, 2, 3]] == before[[0, 2, 3]]).all()
    assert shown[1].tolist() == estimates_of(policy, x[:4], "new")[1].tolist() != before[1].tolist()
