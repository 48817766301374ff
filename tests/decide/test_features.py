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
from pydantic import ValidationError

from service.decide.features import MAX_TOKENS, Encoder, ItemBlock
from service.decide.schema import FeatureSchema
from service.errors import InvalidRequest

PERSONA = {"type": "categorical", "levels": ["a", "b"]}
HOUR = {"type": "numeric", "min": 0, "max": 20}
TASTE = {"type": "vector", "size": 2}
SHOP = {"context": {"persona": PERSONA, "hour": HOUR}, "item": {"kind": PERSONA}, "crosses": [["persona", "kind"]]}
MIXED = {"context": {"persona": PERSONA, "taste": TASTE}, "item": {"price": HOUR}, "crosses": [["taste", "price"]]}


def encoder(schema: dict[str, Any] | None = None, **more: Any) -> Encoder:
    return Encoder(FeatureSchema.model_validate({**(schema or {}), **more}))


def row(encoder: Encoder, context: dict[str, Any], item: dict[str, Any]) -> dict[str, float]:
    """The non-zero columns of one candidate, by name."""
    (x,) = encoder.encode(context, encoder.items([item]))
    return {name: pytest.approx(value) for name, value in zip(encoder.columns, x.tolist(), strict=True) if value != 0}


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


def test_an_unseen_level_is_not_a_missing_one() -> None:
    e = encoder(SHOP, hash_dims=0)
    assert row(e, {"persona": "new"}, {"kind": "a"}) == {
        "bias": 0.5,
        "context.persona=<other>": 0.5 / math.sqrt(2),
        "item.kind=a": 0.5,
        "context.persona=<other> × item.kind=a": 0.5,
    }
    assert row(e, {}, {"kind": "a"}) == {"bias": 0.5, "item.kind=a": 0.5}
    assert row(e, {"persona": None}, {"kind": "a"}) == {"bias": 0.5, "item.kind=a": 0.5}


@pytest.mark.parametrize(("hour", "high"), [(0, 0.0), (5, 0.25), (20, 1.0), (-3, 0.0), (1e300, 1.0)])
def test_a_number_is_clipped_to_its_range(hour: float, high: float) -> None:
    e = encoder(context={"hour": HOUR}, hash_dims=0)
    x = e.encode({"hour": hour}, e.items([{}]))
    np.testing.assert_allclose(x, [[0.5, 0.5 * high, 0.5 * (1 - high)]])


@pytest.mark.parametrize(
    ("taste", "seen"),
    [
        ([0.3, -0.4], [0.3, -0.4]),
        ([30, -40], [0.6, -0.8]),
        ([1e308, 1e308], [math.sqrt(0.5)] * 2),
        ([0, 0], [0, 0]),
        ([0.8, 0.8], [math.sqrt(0.5)] * 2),
    ],
)
def test_a_vector_is_shortened_to_length_one(taste: list[float], seen: list[float]) -> None:
    e = encoder(item={"taste": TASTE}, hash_dims=0)
    np.testing.assert_allclose(e.encode({}, e.items([{"taste": taste}])), [[0.5, *(0.5 * v for v in seen)]], rtol=1e-6)


def test_crosses_are_outer_products() -> None:
    e = encoder(MIXED, hash_dims=0)
    got = row(e, {"taste": [0.6, 0.8]}, {"price": 5})
    assert {name: value for name, value in got.items() if "×" in name} == {
        "context.taste[0] × item.price[max]": 0.5 * 0.6 * 0.25,
        "context.taste[0] × item.price[min]": 0.5 * 0.6 * 0.75,
        "context.taste[1] × item.price[max]": 0.5 * 0.8 * 0.25,
        "context.taste[1] × item.price[min]": 0.5 * 0.8 * 0.75,
    }


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


def test_declared_and_hashed_stand_side_by_side() -> None:
    e = encoder(MIXED, hash_dims=31)
    x = e.encode({"persona": "a", "os": "ios"}, e.items([{"price": 20}]))[0]
    named = dict(zip(e.columns, x.tolist(), strict=True))
    assert named["context.persona=a"] == pytest.approx(0.5 / math.sqrt(3))  # persona, taste, undeclared
    assert named["item.price[max]"] == pytest.approx(0.5 / math.sqrt(2))
    hashed = x[-31:]
    assert np.abs(hashed[hashed != 0]) == pytest.approx([0.5 / math.sqrt(3)])  # "os=ios"; the item has no token to pair


def test_undeclared_fields_are_ignored_without_hashed_columns() -> None:
    e = encoder(MIXED, hash_dims=0)
    some, more = ({"persona": "a"}, {"price": 3}), ({"persona": "a", "x": [1, {"y": "z"}]}, {"price": 3, "x": "y"})
    assert row(e, *some) == row(e, *more)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ({"a": {"b": "c"}}, {"a.b": "c"}, True),
        ({"tags": ["x", "y"]}, {"tags": ["y", "x"]}, True),
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


# -- any JSON ----------------------------------------------------------------------------------------------------------

NUMBERS = st.integers(-(10**30), 10**30) | st.floats(allow_nan=False, allow_infinity=False)
LEAVES = st.none() | st.booleans() | NUMBERS | st.text(max_size=8)
KEYS = st.text(max_size=4)
JSON = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3))
UNDECLARED = st.dictionaries(KEYS, LEAVES | st.lists(LEAVES, max_size=4) | st.dictionaries(KEYS, LEAVES, max_size=3))
CONTEXTS = st.fixed_dictionaries(
    {}, optional={"persona": st.sampled_from(["a", "b", "?"]), "taste": st.lists(NUMBERS, min_size=2, max_size=2)}
).flatmap(lambda declared: UNDECLARED.map(lambda rest: rest | declared))
ITEMS = st.fixed_dictionaries({}, optional={"price": NUMBERS}).flatmap(
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


@settings(max_examples=200, deadline=None)
@given(context=st.dictionaries(KEYS, JSON), item=st.dictionaries(KEYS, JSON))
def test_any_json_gets_a_row_or_a_named_error(context: Any, item: Any) -> None:
    e = ENCODERS[0]
    try:
        x = e.encode(context, e.items([item]))
    except InvalidRequest as error:
        field = error.extra["errors"][0]["field"]
    else:
        field = None
        assert np.linalg.norm(x.astype(np.float64)) <= 1 + 1e-6
    assert field is None or field.startswith(("context", "items.0.features"))


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


def test_many_tokens_in_one_column_stay_short() -> None:
    e = encoder(hash_dims=1)
    many = {"tags": ["same"] * MAX_TOKENS}
    assert np.linalg.norm(e.encode(many, e.items([many]))) == pytest.approx(1.0, abs=1e-6)


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
    assert encoder().version == "8a8fe12fefd4"
    assert encoder(SHOP).version == "d5ee66770266"
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
        "from service.decide.features import Encoder, FeatureSchema\n"
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


# -- errors ------------------------------------------------------------------------------------------------------------

DEEP = {"b": {"c": {"d": {"e": {"f": 1}}}}}


@pytest.mark.parametrize(
    ("features", "field", "message"),
    [
        ({"price": "4"}, "price", "expected a number, got str"),
        ({"price": True}, "price", "expected a number, got bool"),
        ({"price": math.nan}, "price", "finite"),
        ({"price": 10**400}, "price", "finite"),
        ({"kind": 3}, "kind", "expected a string, got int"),
        ({"kind": "x" * 257}, "kind", "257 characters"),
        ({"taste": [1.0]}, "taste", "expected a list of 2 numbers, got 1 values"),
        ({"taste": "ab"}, "taste", "expected a list of 2 numbers, got str"),
        ({"taste": [1.0, None]}, "taste", "expected a number, got NoneType"),
        ({"taste": [1.0, math.inf]}, "taste", "finite"),
        ({"x": math.inf}, "x", "finite"),
        ({"x": {"y": -(10**400)}}, "x.y", "finite"),
        ({"x": {"y": "z" * 257}}, "x.y", "257 characters"),
        ({"x": {"y" * 257: 1}}, "x", "a name of 257 characters"),
        ({"y" * 257: 1}, "", "a name of 257 characters"),
        ({"x": [1, [2, math.nan]]}, "x.1.1", "finite"),
        ({"x": b"z"}, "x", "got bytes"),
        ({"a": DEEP}, "a.b.c.d.e", "nested deeper than 5 levels"),
        ({"a": [[[[[]]]]]}, "a.0.0.0.0", "nested deeper than 5 levels"),
        ({f"k{i}": 1 for i in range(MAX_TOKENS + 1)}, "", "more than 100 undeclared values"),
        ({"x": ["y"] * (MAX_TOKENS + 1)}, "", "more than 100 undeclared values"),
    ],
)
@pytest.mark.parametrize("hash_dims", [0, 31])
def test_errors_name_the_field(features: dict[str, Any], field: str, message: str, hash_dims: int) -> None:
    fields = {"price": HOUR, "kind": PERSONA, "taste": TASTE}
    e = encoder(context=fields, item=fields, hash_dims=hash_dims)

    def expect(call: Any, prefix: str) -> None:
        with pytest.raises(InvalidRequest) as caught:
            call()
        (error,) = caught.value.extra["errors"]
        assert error["field"] == (f"{prefix}.{field}" if field else prefix)
        assert message in error["message"]

    expect(lambda: e.encode(features, e.items([{}])), "context")
    expect(lambda: e.encode(features, e.items([{}]), where="events.2.context"), "events.2.context")
    expect(lambda: e.items([{}, features]), "items.1.features")
    expect(lambda: e.items([{}, features], where="candidates", at=[1, 7]), "candidates.7.features")


def test_what_is_just_within_the_limits_is_served() -> None:
    e = encoder()
    full = {f"k{i}": 1 for i in range(MAX_TOKENS - 1)} | {"a": {"b": {"c": {"d": "x" * 256}}}}
    assert e.encode(full, e.items([full])).shape == (1, 32)


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"context": {"h": {"type": "numeric", "min": 2, "max": 2}}}, "must be greater"),
        ({"context": {"h": {"type": "numeric", "min": -1.7e308, "max": 1.7e308}}}, "finite amount"),
        ({"context": {"h": {"type": "numeric", "min": 0, "max": math.inf}}}, "finite number"),
        ({"item": {"k": {"type": "categorical", "levels": ["a", "b", "a"]}}}, "level 'a' is listed twice"),
        ({"item": {"k": {"type": "categorical", "levels": []}}}, "at least 1"),
        ({"item": {"k": {"type": "vector", "size": 257}}}, "less than or equal to 256"),
        ({"item": {"k": {"type": "word"}}}, "'word'"),
        ({"item": {"": TASTE}}, "at least 1 character"),
        ({**SHOP, "crosses": [["persona", "colour"]]}, "'colour' is not a declared item field"),
        ({**SHOP, "crosses": [["kind", "kind"]]}, "'kind' is not a declared context field"),
        ({**SHOP, "crosses": [["persona", "kind"], ["persona", "kind"]]}, "listed twice"),
        ({"hash_dims": -1}, "greater than or equal to 0"),
        ({"hash_dims": 4097}, "less than or equal to 4096"),
        ({**SHOP, "hash_dims": 4096}, "4113 columns; at most 4096"),
        (
            {
                "context": {"t": {"type": "vector", "size": 64}},
                "item": {"t": {"type": "vector", "size": 64}},
                "crosses": [["t", "t"]],
            },
            "4255 columns; at most 4096",
        ),
        ({"fields": {}}, "Extra inputs"),
    ],
)
def test_a_wrong_schema_says_why(schema: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        FeatureSchema.model_validate(schema)
