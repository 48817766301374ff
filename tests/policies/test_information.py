"""Checks that an information matrix and its inverse stay what they are, through saving and loading."""

from __future__ import annotations

import numpy as np
import pytest

from service.policies.information import WAITING, Information


@pytest.mark.parametrize("size", [0, 1, WAITING - 1, WAITING, 3 * WAITING + 2])
def test_information_and_its_inverse_through_a_restart(size: int) -> None:
    rng, d = np.random.default_rng(0), 4
    one, other = (Information(2.0 * np.eye(d), np.eye(d) / 2.0) for _ in range(2))
    A = 2.0 * np.eye(d)
    for x, a in zip(rng.normal(size=(size, d)), rng.random(size).tolist(), strict=True):
        A += a * np.outer(x, x)
        for each in (one, other):
            Sx = each.inverse_times(x)
            each.add(x, a, Sx, a / (1.0 + a * float(x @ Sx)))
        restarted = Information(np.eye(d), np.eye(d))
        restarted.load(other.state())
        other = restarted
    np.testing.assert_allclose(one.matrix, A, rtol=1e-12)
    np.testing.assert_allclose(one.inverse, np.linalg.inv(A), rtol=1e-10, atol=1e-12)
    assert (one.matrix == one.matrix.T).all()
    for name, array in one.state().items():
        assert array.tobytes() == other.state()[name].tobytes(), name
