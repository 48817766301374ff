"""What fields and pairs of fields write into a row: with nothing left over, whatever the schema and the request."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.represent.learned import LearnedEncoder
from service.represent.parts import Pair, Parts
from service.represent.stored import AnyEncoder
from tests.represent.builders import JSON, KEYS, MISFITS, MIXED, SHOP, encoder
from tests.represent.test_learned import CONTEXT, ITEM, SCHEMA

NAMES = KEYS | st.sampled_from(["persona", "hour", "kind", "taste", "price", "seg", "user", "likes", "v"])
OBJECTS = st.dictionaries(NAMES, JSON | MISFITS | st.sampled_from(["a", "b", 7, [0.6, 0.8]]), max_size=6)
ENCODERS: list[AnyEncoder] = [
    encoder(),
    encoder(SHOP),
    encoder(SHOP, hash_dims=0),
    encoder(MIXED, hash_dims=3),
    encoder(hash_dims=1, item_ids=False),
    LearnedEncoder(SCHEMA),
]


def by_fields(parts: Parts, weights: Any) -> dict[Pair, float]:
    """The values of the first item that are not 0."""
    (values,) = parts.values(np.asarray(weights, dtype=np.float64))
    return {pair: value for pair, value in zip(parts.pairs, values, strict=True) if value}


@settings(max_examples=40)
@given(
    at=st.integers(0, len(ENCODERS) - 1),
    context=OBJECTS,
    items=st.lists(OBJECTS, min_size=1, max_size=4),
    seed=st.integers(0, 99),
)
def test_parts_add_up_to_the_product_of_the_row(
    at: int, context: dict[str, Any], items: list[dict[str, Any]], seed: int
) -> None:
    found = ENCODERS[at]
    ids = [f"i{number}" for number in range(len(items))]
    x = found.encode(context, found.items(items, ids)).astype(np.float64)
    weights = 10 * np.random.default_rng(seed).standard_normal((len(items), found.d))
    parts = found.parts(context, items, ids)
    np.testing.assert_array_equal(parts.x, x)
    values = parts.values(weights)
    assert values.shape == (len(items), len(parts.pairs))
    np.testing.assert_allclose(values.sum(axis=1), np.vecdot(x, weights), rtol=0, atol=1e-11)
    alone = found.parts(context, items[-1:], ids[-1:])
    assert by_fields(alone, weights[-1]) == pytest.approx(
        {pair: value for pair, value in zip(parts.pairs, values[-1], strict=True) if value}, abs=1e-11
    ), "an item's parts do not depend on the items beside it"


def test_a_declared_field_and_a_cross_write_their_own_columns() -> None:
    found = encoder(SHOP, hash_dims=0)
    parts = found.parts({"persona": "a", "hour": 10}, [{"kind": "b"}], ["i"])
    columns = dict(zip(found.columns, parts.x[0].tolist(), strict=True))
    assert by_fields(parts, np.ones(found.d)) == pytest.approx(
        {
            (None, None): columns["bias"],
            ("persona", None): columns["context.persona=a"],
            ("hour", None): sum(value for name, value in columns.items() if name.startswith("context.hour")),
            (None, "kind"): columns["item.kind=b"],
            ("persona", "kind"): columns["context.persona=a × item.kind=b"],
        }
    )


def test_undeclared_fields_that_share_columns_are_told_apart() -> None:
    found = encoder(hash_dims=1, item_ids=False)
    both = found.parts({"a": "x", "b": {"c": 1}}, [{"kind": "y"}], ["i"])
    assert [*both.pairs] == [
        *((None, None), ("a", None), ("b", None)),
        *((None, "kind"), ("a", "kind"), ("b", "kind")),
    ]
    assert np.count_nonzero(both.values(np.ones(found.d))) == 6


def test_an_items_id_is_a_field_where_it_is_all_that_is_known() -> None:
    found = encoder()
    assert (None, "@item") in found.parts({}, [{}], ["i0"]).pairs
    assert (None, "@item") not in found.parts({}, [{"kind": "b"}], ["i0"]).pairs


def test_fields_of_a_learned_schema_are_named_by_their_paths() -> None:
    found = LearnedEncoder(SCHEMA)
    shared = by_fields(found.parts(CONTEXT, [ITEM], ["i0"]), np.ones(11))
    assert set(shared) == {(None, None), ("seg", "price"), ("user.age", "v")}
    every = by_fields(found.parts(CONTEXT, [ITEM], ["i0"]), np.ones(found.d))
    assert set(every) - set(shared) == {("likes", None), (None, "@item")}
