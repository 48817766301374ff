"""Undeclared fields: tokens, their hashes, and the columns that they share."""

import math
from typing import Any

import numpy as np
import pytest

from service.represent.tokens import MAX_TOKENS, add_each, add_own
from tests.represent.builders import MIXED, encoder, row


def test_without_a_schema_everything_is_hashed() -> None:
    e = encoder()
    assert e.d == 32
    x = e.encode({"persona": "a"}, e.items([{}, {"kind": "x"}, {"kind": "y"}]))
    assert x.dtype == np.float32
    assert x.shape == (3, 32)
    assert np.count_nonzero(x[0]) == 2  # bias and one token
    # One token of either side and one pair, all of size ½, wherever they fall.
    assert np.abs(x[1:, 1:]).sum(axis=1) == pytest.approx([1.5, 1.5])


def test_pairs_see_what_single_tokens_cannot() -> None:
    """A linear model of the rows learns "a likes x, b likes y", which no sum of a context and an item part can."""
    e = encoder(hash_dims=64)
    items = e.items([{"kind": "x"}, {"kind": "y"}])
    x = np.concatenate([e.encode({"persona": p}, items) for p in ("a", "b")])
    assert np.linalg.matrix_rank(x) == 4
    additive = x[0] - x[1] - x[2] + x[3]
    assert np.linalg.norm(additive) == pytest.approx(1.0)  # four pairs of length ½ in four columns


def test_undeclared_fields_are_ignored_without_hashed_columns() -> None:
    e = encoder(MIXED, hash_dims=0)
    some, more = ({"persona": "a"}, {"price": 3}), ({"persona": "a", "x": [1, {"y": "z"}]}, {"price": 3, "x": "y"})
    assert row(e, *some) == row(e, *more)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ({"a": {"b": "c"}}, {"a.b": "c"}, True),
        ({"tags": ["x", "y"]}, {"tags": ["y", "x"]}, True),
        ({"flags": [True, None]}, {"flags": [None, True]}, True),
        ({"at": [1, 2]}, {"at": [2, 1]}, False),
        ({"a": True}, {"a": False}, False),
        ({"a": None}, {}, False),
        ({"a": True}, {"a": 1}, False),
        ({"a": 1}, {"a": 2}, False),
        ({"a": -1}, {"a": 1}, False),
        ({"a": []}, {}, True),
    ],
)
def test_what_json_means(one: dict[str, Any], other: dict[str, Any], same: bool) -> None:
    e = encoder(hash_dims=1024)
    items = e.items([{"kind": "x"}])
    equal = np.allclose(e.encode(one, items), e.encode(other, items), atol=1e-7)
    assert equal is same


def test_the_sides_do_not_share_tokens() -> None:
    e = encoder(hash_dims=4096)
    assert not np.array_equal(e.encode({"a": "b"}, e.items([{}])), e.encode({}, e.items([{"a": "b"}])))


def test_pairs_are_spread_evenly_over_columns_and_signs() -> None:
    e = encoder(hash_dims=16)
    items = e.items([{f"i{i}": 0.001} for i in range(60)])  # so small that no row is ever shortened
    contexts = [{"c": str(c)} for c in range(60)]
    x = np.stack([e.encode(context, items) for context in contexts]).astype(np.float64)
    of_item = e.encode({}, items).astype(np.float64)
    of_context = np.stack([e.encode(context, e.items([{}])) for context in contexts]).astype(np.float64)
    pairs = (x - of_item - of_context)[:, :, 1:].reshape(3600, 16)
    hits = np.abs(pairs) > 0.5 * 0.001 / 1.001 - 1e-6
    assert (hits.sum(axis=1) == 1).all()
    # Each of 3 600 pairs falls in one of 16 columns, with one of two signs: binomial counts, 4 standard deviations.
    np.testing.assert_allclose(hits.sum(axis=0), 225, atol=4 * math.sqrt(225 * 15 / 16))
    assert (pairs[hits] > 0).mean() == pytest.approx(0.5, abs=4 * 0.5 / math.sqrt(3600))


def test_many_tokens_in_one_column_stay_short() -> None:
    e = encoder(hash_dims=1)
    many = {"tags": ["same"] * MAX_TOKENS}
    assert np.linalg.norm(e.encode(many, e.items([many]))) == pytest.approx(1.0, abs=1e-6)


def test_many_items_tokens_are_added_as_those_of_one() -> None:
    """Bit for bit, whose sums of float32 depend on their order."""
    rng = np.random.default_rng(1)
    rows = np.sort(rng.integers(0, 50, 2000))
    hashes, values = rng.integers(0, 2**64, 2000, dtype=np.uint64), rng.normal(size=2000)
    one_by_one, together = np.zeros((2, 51, 7), dtype=np.float32)
    for at in range(50):
        add_own(hashes[rows == at].tolist(), values[rows == at].tolist(), one_by_one[at])
    add_each(hashes, values.astype(np.float32), rows, together)
    assert np.array_equal(one_by_one, together)
