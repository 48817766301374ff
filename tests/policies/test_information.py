"""Checks that an information matrix and its inverse stay what they are, through saving and loading."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from service.policies.information import WAITING, Information

Array = NDArray[Any]


def learn(one: Information, x: Array, a: list[float], *, part: int) -> None:
    """Learn rows x (B, d), weighed by a, in parts of so many; the mean learns a target of 1 by least squares."""
    done = 0
    while done < len(x):
        rows = next(one.parts(min(part, len(x) - done), done))
        one.enter(x[done : done + rows.stop])
        for weight in a[done : done + rows.stop]:
            value, variance = one.look()
            c = weight / (1.0 + weight * variance)
            one.learn(c * (1.0 - value), c, weight)
        one.leave()
        done += rows.stop


@pytest.mark.parametrize("size", [0, 1, WAITING - 1, WAITING, 3 * WAITING + 2])
def test_information_and_its_inverse_through_a_restart(size: int) -> None:
    rng, d = np.random.default_rng(0), 4
    one, other = (Information(2.0 * np.eye(d), np.eye(d) / 2.0) for _ in range(2))
    A = 2.0 * np.eye(d)
    x, weights = rng.normal(size=(size, d)), rng.random(size).tolist()
    for row, a in zip(x, weights, strict=True):
        A += a * np.outer(row, row)
        for each in (one, other):
            learn(each, row[None], [a], part=1)
        restarted = Information(np.eye(d), np.eye(d))
        restarted.load(other.state())
        restarted.mean = other.mean
        other = restarted
    np.testing.assert_allclose(one.matrix, A, rtol=1e-12)
    np.testing.assert_allclose(one.inverse, np.linalg.inv(A), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(one.mean, np.linalg.solve(A, x.T @ np.array(weights)), rtol=1e-9, atol=1e-12)
    assert (one.matrix == one.matrix.T).all()
    assert one.mean.tobytes() == other.mean.tobytes()
    for name, array in one.state().items():
        assert array.tobytes() == other.state()[name].tobytes(), name


@pytest.mark.parametrize("d", [1, 7, 33, 64, 225])
def test_the_parts_in_which_a_block_comes_do_not_matter(d: int) -> None:
    """Products of matrices round by their shapes: so those of a block have one shape, however much of it there is."""
    rng, size = np.random.default_rng(1), 5 * WAITING + 7
    x, weights = rng.normal(size=(size, d)), rng.random(size).tolist()
    found = []
    for part in (1, 3, WAITING, size):
        one = Information(0.5 * np.eye(d), np.eye(d) / 0.5)
        learn(one, x, weights, part=part)
        found.append({**one.state(), "mean": one.mean})
    for name, array in found[0].items():
        assert [each[name].tobytes() == array.tobytes() for each in found] == [True] * 4, name
    assert (one.inverse == one.inverse.T).all()


def test_a_state_whose_events_waited_each_for_itself_goes_on() -> None:
    """So did those of versions before events came in blocks."""
    rng, d = np.random.default_rng(2), 3
    now, before = (Information(np.eye(d), np.eye(d)) for _ in range(2))
    x, weights = rng.normal(size=(WAITING + 9, d)), rng.random(WAITING + 9).tolist()
    learn(now, x[: WAITING + 5], weights[: WAITING + 5], part=WAITING)
    before.load({name: array for name, array in now.state().items() if not name.startswith("block")})
    before.mean = now.mean.copy()
    for one in (now, before):
        learn(one, x[WAITING + 5 :], weights[WAITING + 5 :], part=WAITING)
    for found, plain in ((before.matrix, now.matrix), (before.inverse, now.inverse), (before.mean, now.mean)):
        np.testing.assert_allclose(found, plain, rtol=1e-12, atol=1e-14)
