"""Rows of a learned schema: products of fields, scaled by what they may matter."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.represent.learned import (
    RIDGE,
    Bend,
    Block,
    Components,
    LearnedEncoder,
    LearnedSchema,
    Levels,
    Line,
    Words,
)
from service.represent.misfits import Misfits
from tests.represent.builders import JSON, KEYS

objects = st.dictionaries(KEYS | st.sampled_from(["seg", "user", "likes", "price", "v"]), JSON, max_size=5)

SCHEMA = LearnedSchema(
    context={
        "seg": Levels(path="seg", levels=["a", "b"], others=True),
        "age": Line(path="user.age", values=[18, 30, 80], places=[-1, 0, 1]),
        "likes": Words(path="likes", levels=["tea", "jazz"]),
    },
    item={
        "price": Bend(path="price", knots=[0, 10, 100]),
        "v": Components(path="v", mean=[1.0, 0.0], axes=[[0.5, 0.5]]),
        "@item": Levels(path="@item", levels=["i0"]),
    },
    blocks=[
        Block(context=None, item=None, variance=4.0),
        Block(context="seg", item="price", variance=0.5),
        Block(context="age", item="v", variance=0.25),
    ],
    own_of_items=[Block(context=None, item=None, variance=0.1), Block(context="likes", item=None, variance=0.2)],
    own_of_users=[Block(context=None, item="@item", variance=0.3)],
)
CONTEXT = {"seg": "b", "user": {"age": 24}, "likes": ["tea", "chess"]}
ITEM = {"price": 55, "v": [2.0, 1.0]}


def encoded(context: dict[str, Any], item: dict[str, Any], misfits: Misfits | None = None) -> Any:
    encoder = LearnedEncoder(SCHEMA)
    block = encoder.items([item], ["i0"], misfits=misfits)
    return encoder.encode(context, block, misfits=misfits)[0]


def test_a_row_holds_the_products_of_its_blocks() -> None:
    seg, price = [0, 1, 0], [0, 0.5, 0.5]
    age, v = -0.5, 0.5 * (2 - 1) + 0.5 * 1
    shared = [np.sqrt(4.0), *(np.sqrt(0.5) * np.outer(seg, price)).ravel(), np.sqrt(0.25) * age * v]
    of_item = [np.sqrt(0.1), np.sqrt(0.2), 0]
    of_user = [np.sqrt(0.3)]
    x = encoded(CONTEXT, ITEM)
    np.testing.assert_allclose(x, np.sqrt(RIDGE) * np.array([*shared, *of_item, *of_user]), rtol=1e-6)
    encoder = LearnedEncoder(SCHEMA)
    assert encoder.layout == (11, 3, 1)
    assert encoder.d == len(x) == len(encoder.columns)
    assert encoder.columns[5] == "context.seg=b × item.price[10.0]"


@pytest.mark.parametrize(("price", "weights"), [(-5, [1, 0, 0]), (0, [1, 0, 0]), (1e9, [0, 0, 1]), (10, [0, 1, 0])])
def test_a_bent_number_lies_between_two_knots(price: float, weights: list[float]) -> None:
    out = np.zeros(3)
    Bend(path="price", knots=[0, 10, 100]).write(price, out)
    assert out.tolist() == weights


def test_what_cannot_be_used_is_missing_and_counted() -> None:
    misfits = Misfits()
    x = encoded({"seg": "z", "user": {"age": "old"}, "likes": ["chess"]}, {"price": [1], "v": [1.0]}, misfits)
    assert np.count_nonzero(x) == 3  # the constants, and the item's id
    assert dict(misfits.counts) == {
        ("context", "seg", "unknown_level"): 1,
        ("context", "user.age", "wrong_type"): 1,
        ("context", "likes", "unknown_level"): 1,
        ("item", "price", "wrong_type"): 1,
        ("item", "v", "wrong_size"): 1,
    }


@pytest.mark.parametrize("one", [1, 1.0, "1"])
def test_a_level_is_the_same_as_a_number_and_as_a_text(one: Any) -> None:
    out = np.zeros(2)
    assert Levels(path="code", levels=["0", "1"]).write(one, out) is None
    assert out.tolist() == [0, 1]


@given(objects, st.lists(objects, min_size=1, max_size=4))
def test_any_json_has_a_finite_row_that_is_its_own(context: dict[str, Any], items: list[dict[str, Any]]) -> None:
    encoder = LearnedEncoder(SCHEMA)
    ids = [f"i{at}" for at in range(len(items))]
    x = encoder.encode(context, encoder.items(items, ids))
    assert x.dtype == np.float32
    assert np.isfinite(x).all()
    assert np.abs(x).max() < 100
    for at, (item, item_id) in enumerate(zip(items, ids, strict=True)):
        alone = encoder.encode(context, encoder.items([item], [item_id]))
        assert alone.tobytes() == x[at : at + 1].tobytes()


@given(st.lists(st.tuples(objects, objects, st.sampled_from(["i0", "i1"])), min_size=1, max_size=12))
def test_rows_made_together_are_those_made_one_by_one(
    pairs: list[tuple[dict[str, Any], dict[str, Any], str]],
) -> None:
    pairs = [*pairs, (CONTEXT, ITEM, "i0"), (CONTEXT, {**ITEM, "price": 7}, "i0"), (CONTEXT, ITEM, "i0"), pairs[0]]
    encoder = LearnedEncoder(SCHEMA)
    together = encoder.pairs(*map(list, zip(*pairs, strict=True)))
    alone = [encoder.encode(context, encoder.items([item], [one]))[0] for context, item, one in pairs]
    assert together.dtype == np.float32
    assert together.tobytes() == np.stack(alone).tobytes()


def test_true_and_one_are_two_values_of_an_item() -> None:
    schema = LearnedSchema(
        item={"new": Levels(path="new", levels=["true", "1"])},
        blocks=[Block(context=None, item="new", variance=0.4)],
    )
    rows = LearnedEncoder(schema).pairs([{}, {}], [{"new": True}, {"new": 1}], ["i0", "i0"])
    assert (rows[0] != rows[1]).all()


def test_the_version_is_the_schemas() -> None:
    again = LearnedSchema.model_validate_json(SCHEMA.model_dump_json())
    assert LearnedEncoder(again).version == LearnedEncoder(SCHEMA).version
    changed = SCHEMA.model_copy(update={"own_of_users": []})
    assert LearnedEncoder(changed).version != LearnedEncoder(SCHEMA).version


def test_rows_of_another_encoder_are_refused() -> None:
    other = LearnedEncoder(SCHEMA.model_copy(update={"own_of_users": []}))
    with pytest.raises(ValueError, match="given to encoder"):
        LearnedEncoder(SCHEMA).encode({}, other.items([{}], ["i0"]))


@pytest.mark.parametrize(
    "change",
    [
        {"blocks": [Block(context="nobody", item=None, variance=1.0)]},
        {"own_of_items": [Block(context=None, item="price", variance=1.0)]},
        {"blocks": [Block(context=None, item=None, variance=1.0)] * 2},
    ],
)
def test_a_schema_whose_blocks_make_no_sense_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="block"):
        LearnedSchema.model_validate(
            {**SCHEMA.model_dump(), **{k: [b.model_dump() for b in v] for k, v in change.items()}}
        )


@pytest.mark.parametrize(
    ("side", "field", "says"),
    [
        ("context", {"type": "line", "path": "a", "values": [1, 2, 3], "places": [0, 1]}, "3 values have 2 places"),
        ("context", {"type": "line", "path": "a", "values": [2, 1], "places": [0, 1]}, "larger than the one before"),
        ("context", {"type": "line", "path": "a", "values": [1, 2], "places": [0, 7]}, "less than or equal to 1"),
        ("item", {"type": "bend", "path": "a", "knots": [1, 1, 2]}, "larger than the one before"),
        ("item", {"type": "levels", "path": "a", "levels": ["x", "x"]}, "listed twice"),
        ("item", {"type": "components", "path": "a", "mean": [0, 0], "axes": [[1]]}, "axis 0 has 1 numbers"),
        ("item", {"type": "components", "path": "a", "mean": [0, 0], "axes": []}, "at least 1 item"),
    ],
)
def test_a_field_that_could_write_no_row_is_refused(side: str, field: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        LearnedSchema.model_validate({"blocks": [], side: {"f": field}})


def test_a_schema_with_too_many_columns_or_without_a_range_is_refused() -> None:
    levels = {"type": "levels", "path": "a", "levels": [str(n) for n in range(70)]}
    block = {"context": "f", "item": "g", "variance": 1.0}
    with pytest.raises(ValueError, match="4900 columns"):
        LearnedSchema.model_validate({"blocks": [block], "context": {"f": levels}, "item": {"g": levels}})
    with pytest.raises(ValueError, match="below the upper end"):
        LearnedSchema.model_validate({"blocks": [], "reward_range": [1, 1]})
