"""Checks the network against PyTorch's, and the reservoir of events."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from service.policies.network import (
    BLOCK,
    NO_ITEM,
    NetworkParams,
    OnlineNetwork,
    backward,
    forward,
    gradient,
    layers_of,
)
from tests.builders import Array
from tests.policies import jacobians
from tests.policies.jacobians import SHAPES, at_random


@SHAPES
def test_the_network_is_pytorchs(d: int, hidden: tuple[int, ...]) -> None:
    theta, _, x = at_random(d, hidden)
    layers = layers_of(theta, d, hidden)
    _, f = forward(layers, x)
    np.testing.assert_allclose(f, jacobians.forward(jacobians.network(layers), x), rtol=1e-12)


@SHAPES
def test_the_gradient_of_the_loss_is_pytorchs(d: int, hidden: tuple[int, ...]) -> None:
    theta, _, x = at_random(d, hidden)
    layers = layers_of(theta, d, hidden)
    inputs, f = forward(layers, x)
    slope = np.linspace(-1, 1, len(f))
    ours = gradient(inputs, backward(layers, inputs, slope))
    theirs = torch.from_numpy(slope) @ jacobians.jacobian(jacobians.network(layers), x)
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-9, atol=1e-12)


def test_the_reservoir_is_a_uniform_sample_and_follows_fading_evidence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.policies.network.STEPS", 0)  # the sample does not depend on what is learned

    def ages(half_life: float | None) -> Array:
        learner = OnlineNetwork(1, NetworkParams(hidden=(2,), buffer=256), seed=3)
        for event in range(16_000):
            block = learner.add(np.zeros(1), 0.5, event)
            if block is not None:
                learner.learn(block)
                if half_life:
                    learner.fade(0.5 ** (BLOCK / half_life))
        assert len(learner.kept.row) == 256
        return 15_999 - learner.kept.row

    assert ages(None).mean() == pytest.approx(8000, rel=0.15)  # four standard errors
    faded = ages(1000)
    assert faded.mean() == pytest.approx(1000 / np.log(2), rel=0.3)
    assert np.median(faded) == pytest.approx(1000, rel=0.35)


def test_the_reservoir_holds_no_more_events_than_there_is_evidence_for() -> None:
    learner = OnlineNetwork(1, NetworkParams(hidden=(2,)), seed=3)
    for event in range(1000):
        block = learner.add(np.zeros(1), 0.5, event)
        if block is not None:
            learner.learn(block)
    learner.fade(0.25)
    assert learner.kept.row.tolist() == list(range(750, 1000))
    learner.fade(1e-6)
    assert len(learner.kept.row) == 0


def test_forgotten_items_keep_their_events_without_a_row() -> None:
    learner = OnlineNetwork(1, NetworkParams(hidden=(2,)), seed=3)
    for event in range(2 * BLOCK + 3):
        block = learner.add(np.zeros(1), 0.5, event % 3)
        if block is not None:
            learner.learn(block)
    for new_row in ([0, NO_ITEM, 1], [NO_ITEM, 0]):
        learner.renumber(np.array(new_row))
    assert learner.kept.row.tolist() == [{0: NO_ITEM, 1: NO_ITEM, 2: 0}[event % 3] for event in range(2 * BLOCK)]
    assert learner.state()["waiting_row"].tolist() == [{0: NO_ITEM, 1: NO_ITEM, 2: 0}[e % 3] for e in (16, 17, 18)]
