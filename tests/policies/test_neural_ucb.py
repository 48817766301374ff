"""Checks the closed form against three ways with a Jacobian, and what the policy learns."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from service.policies.network import (
    BLOCK,
    backward,
    forward,
    gradient,
    initial,
    layers_of,
)
from service.policies.neural_ucb import Bounds, NeuralUCB, NeuralUCBParams
from tests.builders import batch_of, estimates_of, pmf_of, scorer_of
from tests.policies import jacobians

XOR = np.array([[1, a, b, (1 - a) * (1 - b)] for a in (0, 1) for b in (0, 1)], dtype=np.float32) / 2


@jacobians.SHAPES
def test_closed_form_is_the_diagonal_bonus_of_each_way_with_a_jacobian(d: int, hidden: tuple[int, ...]) -> None:
    """Compare with K passes and the Jacobian on the same diagonal, and with a p × p matrix that is diagonal."""
    theta, variance, x = jacobians.at_random(d, hidden)
    layers = layers_of(theta, d, hidden)
    net = jacobians.network(layers)
    _, bonus = Bounds(layers, layers_of(variance, d, hidden))(x)
    np.testing.assert_allclose(bonus, jacobians.k_passes(net, x, variance), rtol=1e-10)
    np.testing.assert_allclose(bonus, jacobians.vectorised(net, x, variance), rtol=1e-10)
    Z = torch.diag(torch.from_numpy(1.0 / variance))
    np.testing.assert_allclose(bonus, jacobians.full_matrix(net, x, torch.linalg.inv(Z)), rtol=1e-10)


def test_scores_are_those_of_the_parameters_in_the_snapshot() -> None:
    """Compare in float32, after learning. Logit and width are rounded to 1e-4."""
    rng = np.random.default_rng(0)
    policy = NeuralUCB(6, NeuralUCBParams(hidden=(16, 8), alpha=0.7))
    policy.update(batch_of(rng.uniform(-0.4, 0.4, (400, 6)), rng.integers(0, 2, 400)))
    snapshot, x = policy.snapshot(), rng.uniform(-0.4, 0.4, (50, 6)).astype(np.float32)
    net = jacobians.network(layers_of(snapshot["theta"], 6, (16, 8)))
    estimates = estimates_of(policy, x)
    f = jacobians.forward(net, x)
    np.testing.assert_allclose(estimates[:, 1], f, atol=1e-4)
    np.testing.assert_allclose(estimates[:, 0], 1 / (1 + np.exp(-f)), atol=1e-4)
    width = 0.7 * np.sqrt(jacobians.vectorised(net, x, 1 / snapshot["precision"]))
    np.testing.assert_allclose(estimates[:, 2], width, atol=1e-4)


@pytest.mark.parametrize("d", [3, 300])
def test_at_first_every_logit_is_0_and_every_layer_has_its_share_of_the_variance(d: int) -> None:
    hidden = (64, 64)
    theta, scale = initial(d, hidden, 5)
    rng = np.random.default_rng(d)
    x = rng.normal(size=(200, d))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    layers = layers_of(theta, d, hidden)
    f, variance = Bounds(layers, layers_of(scale**2, d, hidden))(x)
    np.testing.assert_allclose(f, 0, atol=1e-12)
    for layer in range(3):
        share = scale**2 * np.concatenate(
            [np.full(W.size + b.size, at == layer) for at, (W, b) in enumerate(layers_of(scale, d, hidden))]
        )
        part = Bounds(layers, layers_of(share, d, hidden))(x)[1] / variance
        assert 0.1 < part.mean() < 0.6, layer


def test_an_event_leaves_its_own_direction_the_variance_that_the_full_matrix_leaves() -> None:
    """After 8 equal events the full matrix leaves v / (1 + 8 h v) (Sherman & Morrison), a plain diagonal much more."""
    params = NeuralUCBParams(prior=20.0)
    policy = NeuralUCB(4, params)
    x = np.full((1, 4), 0.5)
    learner = policy._online
    layers, prior = learner.layers, learner.scale**2 / params.prior
    inputs, f = forward(layers, x)
    g = gradient(inputs, backward(layers, inputs, np.ones(1)))
    v, h = (g * g) @ prior, 0.25
    assert f[0] == pytest.approx(0, abs=1e-12)
    policy.update(batch_of(x.repeat(BLOCK, axis=0), np.ones(BLOCK)))
    exact = v / (1 + BLOCK * h * v)
    assert (g * g) @ (1 / policy._Z) == pytest.approx(exact, rel=0.1)
    plain = (g * g) @ (1 / (1 / prior + BLOCK * h * g * g))
    assert plain > exact + 0.8 * (v - exact)


def test_learns_xor() -> None:
    """No linear model of two inputs can: the rate is .9 where they differ, .1 where not."""
    rng = np.random.default_rng(1)
    rows = rng.integers(0, 4, 4000)
    x = XOR[:, :3]
    policy = NeuralUCB(3, NeuralUCBParams(hidden=(32, 32)))
    rates = np.array([0.1, 0.9, 0.9, 0.1])
    expected = policy.update(batch_of(x[rows], rng.random(4000) < rates[rows]))
    np.testing.assert_allclose(estimates_of(policy, x)[:, 0], rates, atol=0.07)
    np.testing.assert_allclose(expected[-200:], rates[rows[-200:]], atol=0.15)
    assert (expected[:BLOCK] == 0.5).all()  # as it was before learning


def test_what_was_seen_is_less_uncertain_than_what_was_not() -> None:
    policy = NeuralUCB(5, NeuralUCBParams())
    seen, unseen = np.array([[0.5, 0.5, 0, 0, 0]]), np.array([[0.5, 0, 0, 0, 0.5]])
    x = np.concatenate([seen, unseen])
    before = estimates_of(policy, x)[:, 2]
    policy.update(batch_of(seen.repeat(400, axis=0), np.tile([1.0, 0.0], 200)))
    after = estimates_of(policy, x)[:, 2]
    assert after[0] < 0.2 * before[0]
    assert after[1] > 2 * after[0]


def test_a_new_item_whose_features_were_never_seen_gets_its_chance() -> None:
    """It competes with two known items of rate .5 and has other features than they."""
    rng = np.random.default_rng(2)
    policy = NeuralUCB(4, NeuralUCBParams())
    x = np.eye(4)[:3] / 2 + np.array([0, 0, 0, 0.5])
    policy.update(batch_of(x[rng.integers(0, 2, 2000)], rng.integers(0, 2, 2000)))
    assert pmf_of(policy, x)[2] > 0.2


def test_summary() -> None:
    policy = NeuralUCB(3, NeuralUCBParams(hidden=(4,)))
    policy.update(batch_of(np.zeros((11, 3)), np.zeros(11)))
    assert scorer_of(policy).summary() == {"events": 11, "parameters": 3 * 4 + 4 + 4 + 1}
