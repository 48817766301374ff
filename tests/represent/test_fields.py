"""Declared fields: what each type writes into its columns."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from service.represent.fields import Categorical, Numeric
from tests.represent.builders import HOUR, NUMBERS, SHOP, TASTE, encoder, row


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
        ([1.7e308, -1.7e308], [math.sqrt(0.5), -math.sqrt(0.5)]),  # their length is beyond the floats
        ([0, 0], [0, 0]),
        ([0.8, 0.8], [math.sqrt(0.5)] * 2),
    ],
)
def test_a_vector_is_shortened_to_length_one(taste: list[float], seen: list[float]) -> None:
    e = encoder(item={"taste": TASTE}, hash_dims=0)
    np.testing.assert_allclose(e.encode({}, e.items([{"taste": taste}])), [[0.5, *(0.5 * v for v in seen)]], rtol=1e-6)


CODES = {
    "type": "categorical",
    "levels": ["1", "-3", "1.5", "true", "false", "9007199254740993", "10000000000000000", ""],
}


@pytest.mark.parametrize(
    ("value", "level"),
    [
        (1, "1"),
        (1.0, "1"),
        (-3, "-3"),
        (-3.0, "-3"),
        (1.5, "1.5"),
        (True, "true"),
        (False, "false"),
        (2**53 + 1, "9007199254740993"),  # an id, exact although no float holds it
        (1e16, "10000000000000000"),
        ("1", "1"),
        ("", ""),
        ("1.0", "<other>"),
        (0, "<other>"),
        (-0.0, "<other>"),
        (1e300, "<other>"),
        (" 1", "<other>"),
    ],
)
def test_numbers_and_booleans_are_levels_by_their_json_text(value: Any, level: str) -> None:
    e = encoder(context={"code": CODES}, hash_dims=0)
    assert row(e, {"code": value}, {}) == {"bias": 0.5, f"context.code={level}": 0.5}


def test_a_cut_text_is_not_the_level_that_it_begins_with() -> None:
    e = encoder(context={"code": {"type": "categorical", "levels": ["x" * 256]}}, hash_dims=0)
    assert row(e, {"code": "x" * 256}, {}) == {"bias": 0.5, f"context.code={'x' * 256}": 0.5}
    assert row(e, {"code": "x" * 257}, {}) == {"bias": 0.5, "context.code=<other>": 0.5}


def test_an_embedding_of_768_numbers_can_be_declared() -> None:
    e = encoder(item={"embedding": {"type": "vector", "size": 768}}, hash_dims=0)
    embedding = np.random.default_rng(0).normal(size=768)
    embedding /= 2 * np.linalg.norm(embedding)
    (x,) = e.encode({}, e.items([{"embedding": embedding.tolist()}]))
    np.testing.assert_allclose(x, [0.5, *(0.5 * embedding)], rtol=1e-6)


def test_the_last_of_many_levels_has_a_column() -> None:
    e = encoder(item={"shop": {"type": "categorical", "levels": [f"s{i}" for i in range(4095)]}}, hash_dims=0)
    assert e.d == 4097
    assert row(e, {}, {"shop": "s4094"}) == {"bias": 0.5, "item.shop=s4094": 0.5}


FLOATS = st.floats(allow_nan=False, allow_infinity=False)


@settings(max_examples=300, deadline=None)
@given(ends=st.lists(FLOATS, min_size=2, max_size=2, unique=True).map(sorted), value=NUMBERS)
@example(ends=[0.0, 5e-324], value=1e308)
@example(ends=[1.0, math.nextafter(1.0, 2.0)], value=-1e308)
@example(ends=[-8e307, 8e307], value=10**30)
def test_a_number_has_a_finite_share_of_any_range(ends: list[float], value: float) -> None:
    assume(math.isfinite(ends[1] - ends[0]))
    field, out = Numeric(type="numeric", min=ends[0], max=ends[1]), np.zeros(2)
    reason = field.write(value, out)
    assert 0 <= out[0] <= 1
    assert out[1] == 1 - out[0]
    assert reason == (None if ends[0] <= value <= ends[1] else "out_of_range")


@given(value=st.text() | NUMBERS | st.booleans())
def test_a_level_or_other_is_set_for_every_text_number_and_boolean(value: Any) -> None:
    field, out = Categorical(type="categorical", levels=["a", "0"]), np.zeros(3)
    assert (field.write(value, out) is None) == (out[2] == 0)
    assert out.sum() == 1
