"""Digits: the right arm earns one, all others nothing; the shock gives every label another arm."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from sklearn.datasets import load_digits

from simulator.errors import InvalidExperiment
from simulator.shocks import find_shock
from simulator.world import digits
from simulator.world.digits import ARMS, Digits

AT = 1000


@pytest.fixture(scope="module")
def world() -> Digits:
    return Digits(2, [(AT, find_shock("digits", "label-permutation"))])


def test_the_context_is_the_image_and_the_right_arm_its_label(world: Digits) -> None:
    pixels, labels = load_digits(return_X_y=True)
    for step in range(200):
        moment = world.at(step)
        image = int(moment.visit.user_id.removeprefix("image-"))
        assert moment.visit.context == {"pixels": (pixels[image] / 16).tolist()}
        assert moment.rates.tolist() == np.eye(10)[labels[image]].tolist()
        assert moment.outcome(f"arm-{labels[image]}") == (1.0, True)
        assert moment.outcome(f"arm-{(labels[image] + 1) % 10}") == (0.0, False)
        assert (moment.oracle, moment.random) == (1.0, 0.1)


def test_items_say_no_more_than_which_they_are(world: Digits) -> None:
    items = world.catalogue(0).items
    assert [(item.id, item.features) for item in items] == [(arm, {"arm": arm}) for arm in ARMS]


def test_all_images_come(world: Digits) -> None:
    users = {world.at(step).visit.user_id for step in range(20_000)}
    assert len(users) > 1790  # each of 1 797 is missing with a probability of 1.5e-5


@pytest.mark.parametrize("seed", range(5))
def test_no_label_keeps_its_arm(seed: int) -> None:
    world = Digits(seed, [(AT, find_shock("digits", "label-permutation"))])
    before, after = world.state(AT - 1), world.state(AT)
    assert sorted(after.arm) == list(range(10))
    assert all(old != new for old, new in zip(before.arm, after.arm, strict=True))
    assert np.array_equal(after.rates.sum(axis=0), np.ones(10))
    assert world.at(AT).visit == Digits(seed).at(AT).visit


def test_without_scikit_learn_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    digits._images.cache_clear()
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(InvalidExperiment, match=r"rebound\[digits\]"):
        Digits(1)


def test_the_simulator_does_not_load_it_unasked() -> None:
    import subprocess

    code = "import sys, simulator.cli, simulator.arena, simulator.world; sys.exit('sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
