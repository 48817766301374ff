"""The encoder: rows by hand, and what must hold for any JSON."""

import math
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.represent.encoder import Encoder, ItemBlock
from service.represent.schema import FeatureSchema
from tests.represent.builders import HOUR, KEYS, LEAVES, MISFITS, MIXED, NUMBERS, PERSONA, SHOP, encoder, row

# -- rows by hand ------------------------------------------------------------------------------------------------------


def test_declared_fields_have_columns_of_their_own() -> None:
    e = encoder(SHOP, hash_dims=0)
    assert e.columns == (
        "bias",
        *("context.hour[max]", "context.hour[min]"),
        *("context.persona=a", "context.persona=b", "context.persona=<other>"),
        *("item.kind=a", "item.kind=b", "item.kind=<other>"),
        *(f"context.persona={c} × item.kind={i}" for c in ("a", "b", "<other>") for i in ("a", "b", "<other>")),
    )
    assert row(e, {"persona": "b", "hour": 15}, {"kind": "a"}) == {
        "bias": 0.5,
        "context.hour[max]": 0.5 * 0.75 / math.sqrt(2),  # two context fields share the group's length
        "context.hour[min]": 0.5 * 0.25 / math.sqrt(2),
        "context.persona=b": 0.5 / math.sqrt(2),
        "item.kind=a": 0.5,
        "context.persona=b × item.kind=a": 0.5,
    }


def test_crosses_are_outer_products() -> None:
    e = encoder(MIXED, hash_dims=0)
    got = row(e, {"taste": [0.6, 0.8]}, {"price": 5})
    assert {name: value for name, value in got.items() if "×" in name} == {
        "context.taste[0] × item.price[max]": 0.5 * 0.6 * 0.25,
        "context.taste[0] × item.price[min]": 0.5 * 0.6 * 0.75,
        "context.taste[1] × item.price[max]": 0.5 * 0.8 * 0.25,
        "context.taste[1] × item.price[min]": 0.5 * 0.8 * 0.75,
    }


def test_declared_and_hashed_stand_side_by_side() -> None:
    e = encoder(MIXED, hash_dims=31)
    x = e.encode({"persona": "a", "os": "ios"}, e.items([{"price": 20}]))[0]
    named = dict(zip(e.columns, x.tolist(), strict=True))
    assert named["context.persona=a"] == pytest.approx(0.5 / math.sqrt(3))  # persona, taste, undeclared
    assert named["item.price[max]"] == pytest.approx(0.5 / math.sqrt(2))
    hashed = x[-31:]
    assert np.abs(hashed[hashed != 0]) == pytest.approx([0.5 / math.sqrt(3)])  # "os=ios"; the item has no token to pair


# -- any JSON ----------------------------------------------------------------------------------------------------------

VALUES = LEAVES | MISFITS
UNDECLARED = st.dictionaries(KEYS, VALUES | st.lists(VALUES, max_size=4) | st.dictionaries(KEYS, VALUES, max_size=3))
PERSONAS = st.sampled_from(["a", "b", "?"]) | VALUES
TASTES = st.lists(NUMBERS, min_size=2, max_size=2) | st.lists(VALUES, max_size=3) | VALUES
CONTEXTS = st.fixed_dictionaries({}, optional={"persona": PERSONAS, "taste": TASTES}).flatmap(
    lambda declared: UNDECLARED.map(lambda rest: rest | declared)
)
ITEMS = st.fixed_dictionaries({}, optional={"price": NUMBERS | VALUES}).flatmap(
    lambda declared: UNDECLARED.map(lambda rest: rest | declared)
)
ENCODERS = [encoder(), encoder(hash_dims=1), encoder(hash_dims=2), encoder(MIXED), encoder(MIXED, hash_dims=0)]


@pytest.mark.parametrize("e", ENCODERS, ids=lambda e: f"d{e.d}")
@settings(max_examples=60, deadline=None)
@given(context=CONTEXTS, features=st.lists(ITEMS, min_size=1, max_size=6), data=st.data())
def test_rows_are_short_finite_and_alone(e: Encoder, context: Any, features: Any, data: st.DataObject) -> None:
    items = e.items(features)
    x = e.encode(context, items)
    assert x.shape == (len(features), e.d)
    assert x.dtype == np.float32
    assert np.isfinite(x).all()
    assert np.linalg.norm(x.astype(np.float64), axis=1).max() <= 1 + 1e-6
    assert e.encode(context, e.items(features)).tobytes() == x.tobytes()
    for i, item in enumerate(features):
        assert e.encode(context, e.items([item])).tobytes() == x[i].tobytes()
    some = data.draw(st.lists(st.integers(0, len(features) - 1)))
    assert e.encode(context, items.take(some)).tobytes() == x[some].tobytes()
    cut = data.draw(st.integers(0, len(features)))
    joined = ItemBlock.concat([e.items(features[:cut]), e.items(features[cut:])])
    assert e.encode(context, joined).tobytes() == x.tobytes()


@pytest.mark.parametrize("n", [1, 7, 10_000])
def test_a_row_is_the_same_in_a_large_catalogue(n: int) -> None:
    """Large enough for several chunks of pairs; one neighbour has many tokens, so that every row is padded."""
    e = encoder()
    context = {f"k{i}": i for i in range(12)}
    features = [{"kind": f"c{i % 7}", "price": i} for i in range(n)]
    features[n // 2] = {f"k{i}": f"v{i}" for i in range(40)}
    x = e.encode(context, e.items(features))
    for i in {0, n // 2, n - 1, n // 3}:
        assert e.encode(context, e.items([features[i]])).tobytes() == x[i].tobytes()


def test_no_items() -> None:
    e = encoder()
    assert e.encode({"a": "b"}, e.items([])).shape == (0, 32)
    assert len(e.items([{}]).take([])) == 0
    assert e.encode({"a": "b"}, ItemBlock.concat([e.items([]), e.items([{"c": "d"}])])).shape == (1, 32)


def test_blocks_are_read_only_and_of_one_encoder() -> None:
    e, other = encoder(), encoder(hash_dims=30)
    items = e.items([{"a": "b"}])
    for array in (items.columns, items.hashed, items.tokens, items.values, items.take([0]).tokens):
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0
    with pytest.raises(ValueError, match=f"items of encoder {e.version} given to encoder {other.version}"):
        other.encode({}, items)
    with pytest.raises(ValueError, match="blocks of one encoder"):
        ItemBlock.concat([items, other.items([])])
    with pytest.raises(ValueError, match="got none"):
        ItemBlock.concat([])


# -- versions ----------------------------------------------------------------------------------------------------------


def test_the_version_is_pinned() -> None:
    """If this fails, what is stored under the old version no longer fits: raise CODE on purpose, then pin anew."""
    assert encoder({"item_ids": False}).version == "8a8fe12fefd4"
    assert encoder({**SHOP, "item_ids": False}).version == "d5ee66770266"
    x = encoder().encode({"persona": "a", "hour": 3}, encoder().items([{"kind": "x"}]))
    found = {int(i): round(float(x[0, i]), 4) for i in np.flatnonzero(x)}
    assert found == {0: 0.5, 4: -0.2652, 9: 0.3536, 10: -0.5, 15: -0.2652, 21: 0.3536}


@pytest.mark.parametrize(
    "change",
    [
        {"hash_dims": 30},
        {"crosses": []},
        {"item": {"kind": {"type": "categorical", "levels": ["b", "a"]}}},
        {"context": {"persona": PERSONA, "hour": {**HOUR, "max": 21}}},
    ],
)
def test_the_version_changes_with_the_schema(change: dict[str, Any]) -> None:
    assert encoder(SHOP, **change).version != encoder(SHOP).version


def test_the_order_of_fields_does_not_matter() -> None:
    swapped = encoder(SHOP, context={"hour": HOUR, "persona": PERSONA})
    assert swapped.version == encoder(SHOP).version
    assert swapped.columns == encoder(SHOP).columns


def test_rows_are_the_same_in_every_process() -> None:
    program = (
        "from service.represent.encoder import Encoder, FeatureSchema\n"
        "e = Encoder(FeatureSchema())\n"
        "print(e.version, e.encode({'a': {'b': ['x', 1]}}, e.items([{'c': 'd', 'e': 2}])).tobytes().hex())"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
            timeout=60,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1
    assert outputs.pop()


def test_items_without_features_are_told_apart_by_their_ids() -> None:
    encoder = Encoder(FeatureSchema())
    x = encoder.encode({"seg": "a"}, encoder.items([{}, {}, {"kind": "k"}], ["i0", "i1", "i2"]))
    assert not np.array_equal(x[0], x[1])
    # An item with features is encoded by these alone: nothing that it shares with others is diluted.
    plain = encoder.encode({"seg": "a"}, encoder.items([{"kind": "k"}], ["another id"]))
    assert np.array_equal(x[2], plain[0])
    # The id of one is no feature of another: a field that is called and spelt like it makes another row.
    assert not np.array_equal(x[0], encoder.encode({"seg": "a"}, encoder.items([{"": "i0"}], ["i2"]))[0])


@pytest.mark.parametrize("schema", [FeatureSchema(item_ids=False), FeatureSchema(hash_dims=0)])
def test_ids_are_left_out_where_the_schema_says_so(schema: FeatureSchema) -> None:
    encoder = Encoder(schema)
    x = encoder.encode({"seg": "a"}, encoder.items([{}, {}], ["i0", "i1"]))
    assert np.array_equal(x[0], x[1])


def test_a_schema_without_ids_has_the_version_of_before() -> None:
    """Loops of version 0.1 keep their encoder: their logged rows and their policies stay theirs."""
    assert Encoder(FeatureSchema(item_ids=False)).version == "8a8fe12fefd4"
    assert Encoder(FeatureSchema()).version != "8a8fe12fefd4"
