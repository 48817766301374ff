"""Checks the shared functions of `service/policies/base.py`."""

from __future__ import annotations

import math

import numpy as np
import pytest

from service.policies import Arrays, NumericalError, expect, finite_batch, greedy_pmf, part
from service.policies.base import fade, sigmoid
from tests.builders import batch_of


def test_part_selects_rows_of_every_column() -> None:
    batch = batch_of(
        [[1.0], [2.0], [3.0]], [0.1, 0.2, 0.3], ["a", "b", "c"], user=["u", None, "w"], propensity=[0.5, 0.6, 0.7]
    )
    middle = part(batch, slice(1, 2))
    assert [*map(list, middle)] == [[[2.0]], ["b"], [None], [0.2], [0.6]]


def test_features_are_checked_and_returned_in_float64() -> None:
    assert finite_batch(batch_of([[0.5, 0.25]]), 2).dtype == np.float64
    with pytest.raises(ValueError, match=r"\(2, 3\), expected \(B, 4\)"):
        finite_batch(batch_of(np.zeros((2, 3))), 4)
    for bad in (batch_of([[np.nan]]), batch_of([[0.0]], np.inf)):
        with pytest.raises(NumericalError):
            finite_batch(bad, 1)


def test_an_array_of_a_snapshot_is_returned_only_if_it_is_right() -> None:
    snapshot: Arrays = {"theta": np.zeros((3, 2)), "ids": np.zeros(4, np.uint8), "bad": np.array([0.0, np.inf])}
    assert expect(snapshot, "theta", (3, 2)) is snapshot["theta"]
    assert expect(snapshot, "ids", (None,)) is snapshot["ids"]
    with pytest.raises(ValueError, match="lacks array 'beta'"):
        expect(snapshot, "beta", (2,))
    for shape in ((3,), (2, 3), (3, 2, 1)):
        with pytest.raises(ValueError, match=r"'theta': shape \(3, 2\), expected"):
            expect(snapshot, "theta", shape)
    with pytest.raises(ValueError, match="'bad' is not finite"):
        expect(snapshot, "bad", (2,))


def test_greedy_shares_ties() -> None:
    assert greedy_pmf(np.array([0.1, 0.5, 0.5, 0.2])).tolist() == [0, 0.5, 0.5, 0]


def test_sigmoid_of_a_number_and_of_an_array() -> None:
    f = np.array([-800.0, -2.0, 0.0, 0.5, 800.0])
    wanted = [0.0, 1 / (1 + math.exp(2)), 0.5, 1 / (1 + math.exp(-0.5)), 1.0]
    np.testing.assert_allclose(sigmoid(f), wanted, rtol=1e-15)
    np.testing.assert_allclose([sigmoid(one) for one in f.tolist()], wanted, rtol=1e-15)


def test_fading_keeps_the_ratio_of_old_and_new_evidence() -> None:
    """The factors multiply to less than the smallest float."""
    weight, total, wanted = 1.0, 0.0, 0.0
    for keep in (0.5, 0.9, 1e-70, 1e-60, 0.3, 1.0 - 1e-9):
        total += weight
        wanted = keep * (wanted + 1.0)
        weight, scale = fade(weight, keep)
        total *= scale
        assert weight < 1e100
        assert total / weight == pytest.approx(wanted, rel=1e-12)
    assert fade(weight, 0.0) == (1.0, 0.0)
