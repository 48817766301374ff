"""Rows that are not multiplied out: what they are when they are, and products of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.layout import Layout, Rows
from tests.represent.builders import SHOP, encoder


@given(n=st.integers(0, 9), p=st.integers(1, 6), q=st.integers(0, 12), more=st.integers(0, 4), seed=st.integers(0, 99))
def test_a_row_is_the_products_of_its_pairs_and_then_the_plain_columns(
    n: int, p: int, q: int, more: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    z = rng.standard_normal((n, p + more)).astype(np.float32)
    right, weight = rng.integers(0, p, q), (rng.standard_normal(q) * (rng.random(q) < 0.5)).astype(np.float32)
    rows = Rows(z.astype(np.float64), right, weight, p)
    x = np.concatenate([z[:, right] * weight, z[:, p:]], axis=1)  # products of float32 numbers, rounded to float32
    assert rows.dense().dtype == np.float32
    assert rows.dense().tobytes() == x.tobytes()
    at = np.arange(n)[::-2]
    assert rows.dense(at).tobytes() == x[at].tobytes()
    weights = rng.standard_normal((q + more, 3))
    np.testing.assert_allclose(rows.z @ rows.fold(weights), x @ weights, rtol=1e-5, atol=1e-5)


def test_layers_are_columns_of_the_rows() -> None:
    x = np.random.default_rng(0).standard_normal((4, 7)).astype(np.float32)
    rows, layout = Rows.of(x), Layout(3, 2, 2)
    for layer, expected in zip(rows.layers(layout), layout.split(x), strict=True):
        np.testing.assert_array_equal(layer.dense(), expected)
        assert layer.same() is None
    hashed = encoder(SHOP, hash_dims=4)
    whole = hashed.rows({"persona": "a"}, hashed.items([{"kind": "b"}]))
    assert whole.columns(0, None) is whole
    with pytest.raises(ValueError, match="no layers"):
        whole.columns(0, 3)


def test_rows_of_the_context_alone_are_all_the_same() -> None:
    weight = np.array([1.0, 0.0, 2.0], dtype=np.float32)
    same = Rows(np.ones((5, 2)), np.zeros(3, dtype=np.intp), weight, 2).same()
    assert same is not None
    assert same.tolist() == [1, 0, 2]
