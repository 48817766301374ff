"""Values that cannot be used as they are: what they become, and how they are counted."""

import math
from typing import Any, get_args

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.represent.misfits import MAX_KEYS, MAX_PATH, Misfits, Reason
from service.represent.tokens import MAX_DEPTH, MAX_TOKENS
from tests.represent.builders import HOUR, JSON, KEYS, MISFITS, NUMBERS, PERSONA, TASTE, encoder

FIELDS = {"price": HOUR, "kind": PERSONA, "taste": TASTE}
HUGE = 10**400
DEEP = {"b": {"c": {"d": {"e": {"f": 1}}}}}


def nested(levels: int, inner: Any = 1) -> Any:
    """`inner` within lists and objects in turn."""
    for level in range(levels):
        inner = [inner] if level % 2 else {"n": inner}
    return inner


def numbered(n: int) -> dict[str, int]:
    return {f"k{i}": i for i in range(n)}


WRONG: list[tuple[dict[str, Any], dict[str, Any], dict[tuple[str, Reason], int]]] = [
    # (features, features with the same row, (path, reason) → count)
    # A declared number.
    ({"price": "4"}, {}, {("price", "wrong_type"): 1}),
    ({"price": ""}, {}, {("price", "wrong_type"): 1}),
    ({"price": True}, {}, {("price", "wrong_type"): 1}),
    ({"price": [4]}, {}, {("price", "wrong_type"): 1}),
    ({"price": {"v": 4}}, {}, {("price", "wrong_type"): 1}),
    ({"price": HUGE}, {}, {("price", "not_finite"): 1}),
    ({"price": -HUGE}, {}, {("price", "not_finite"): 1}),
    ({"price": math.nan}, {}, {("price", "not_finite"): 1}),
    ({"price": math.inf}, {}, {("price", "not_finite"): 1}),
    ({"price": 21}, {"price": 20}, {("price", "out_of_range"): 1}),
    ({"price": -0.1}, {"price": 0}, {("price", "out_of_range"): 1}),
    ({"price": 10**300}, {"price": 20}, {("price", "out_of_range"): 1}),
    # A declared categorical.
    ({"kind": 3}, {"kind": "new"}, {("kind", "unknown_level"): 1}),
    ({"kind": False}, {"kind": "new"}, {("kind", "unknown_level"): 1}),
    ({"kind": ""}, {"kind": "new"}, {("kind", "unknown_level"): 1}),
    ({"kind": "\ud800"}, {"kind": "new"}, {("kind", "unknown_level"): 1}),
    ({"kind": "x" * 256}, {"kind": "new"}, {("kind", "unknown_level"): 1}),
    ({"kind": "x" * 257}, {"kind": "new"}, {("kind", "overlong"): 1}),
    ({"kind": 10**300}, {"kind": "new"}, {("kind", "overlong"): 1}),
    ({"kind": ["a"]}, {}, {("kind", "wrong_type"): 1}),
    ({"kind": []}, {}, {("kind", "wrong_type"): 1}),
    ({"kind": {"a": 1}}, {}, {("kind", "wrong_type"): 1}),
    ({"kind": HUGE}, {}, {("kind", "not_finite"): 1}),
    ({"kind": 10**5000}, {}, {("kind", "not_finite"): 1}),  # more digits than Python writes
    # A declared vector.
    ({"taste": []}, {}, {("taste", "wrong_size"): 1}),
    ({"taste": [1.0]}, {}, {("taste", "wrong_size"): 1}),
    ({"taste": [0.1] * 10_000}, {}, {("taste", "wrong_size"): 1}),
    ({"taste": "ab"}, {}, {("taste", "wrong_type"): 1}),
    ({"taste": 1}, {}, {("taste", "wrong_type"): 1}),
    ({"taste": {"0": 1, "1": 2}}, {}, {("taste", "wrong_type"): 1}),
    ({"taste": [1.0, None]}, {}, {("taste", "wrong_type"): 1}),
    ({"taste": [True, 1.0]}, {}, {("taste", "wrong_type"): 1}),
    ({"taste": ["1", 1.0]}, {}, {("taste", "wrong_type"): 1}),
    ({"taste": [[1.0], [2.0]]}, {}, {("taste", "wrong_type"): 1}),
    ({"taste": [1.0, HUGE]}, {}, {("taste", "not_finite"): 1}),
    # Undeclared: numbers and types. The index is part of a path in lists of numbers and of lists only.
    ({"x": HUGE, "y": 1}, {"y": 1}, {("x", "not_finite"): 1}),
    ({"x": math.nan}, {}, {("x", "not_finite"): 1}),
    ({"x": {"y": -HUGE, "z": 1}}, {"x": {"z": 1}}, {("x.y", "not_finite"): 1}),
    ({"x": [1, [2, HUGE]]}, {"x": [1, [2]]}, {("x.1.1", "not_finite"): 1}),
    ({"x": ["a", HUGE, None]}, {"x": ["a", None]}, {("x.1", "not_finite"): 1}),
    ({"x": b"z"}, {}, {("x", "wrong_type"): 1}),  # not JSON, but it does no harm
    ({"x": [b"z", {1, 2}]}, {}, {("x", "wrong_type"): 2}),
    # Undeclared: long texts and names.
    ({"ua": "u" * 271, "y": 1}, {"ua": "u" * 256, "y": 1}, {("ua", "overlong"): 1}),
    ({"x": {"y": "é" * 257}}, {"x": {"y": "é" * 256}}, {("x.y", "overlong"): 1}),
    ({"x": ["u" * 257, "v" * 999]}, {"x": ["u" * 256, "v" * 256]}, {("x", "overlong"): 2}),
    ({"": "u" * 257}, {"": "u" * 256}, {("", "overlong"): 1}),
    ({"a.b": "u" * 257}, {"a.b": "u" * 256}, {("a.b", "overlong"): 1}),
    ({"constructor": "u" * 257}, {"constructor": "u" * 256}, {("constructor", "overlong"): 1}),
    ({"\ud800": "\udfff" * 257}, {"\ud800": "\udfff" * 256}, {("?", "overlong"): 1}),
    ({"y" * 257: 1}, {"y" * 256: 1}, {("y" * 99 + "…", "overlong"): 1}),
    ({"x": {"y" * 257: 1}}, {"x": {"y" * 256: 1}}, {("x." + "y" * 97 + "…", "overlong"): 1}),
    # Undeclared: deep.
    ({"a": DEEP, "y": 1}, {"y": 1}, {("a.b.c.d.e", "too_deep"): 1}),
    ({"a": [[[[[1], 2]]]]}, {"a": [[[[[], 2]]]]}, {("a.0.0.0.0", "too_deep"): 1}),
    ({"a": nested(50), "y": 1}, {"y": 1}, {("a.n.n", "too_deep"): 1}),
    ({"a": nested(3, [1, ["z"], "w"])}, {"a": nested(3, [1, "w"])}, {("a.n.n.1", "too_deep"): 1}),
    # Undeclared: many.
    (numbered(101), numbered(100), {("k100", "too_many_values"): 1}),
    (numbered(103), numbered(100), {(f"k{i}", "too_many_values"): 1 for i in (100, 101, 102)}),
    ({"e": [0.5] * 768}, {"e": [0.5] * 100}, {("e", "too_many_values"): 1}),
    ({"e": [0.5] * 768, "y": 1}, {"e": [0.5] * 100}, {("e", "too_many_values"): 1, ("y", "too_many_values"): 1}),
    ({"e": [0.5] * 768, "y": [], "z": {}}, {"e": [0.5] * 100}, {("e", "too_many_values"): 1}),
    ({"t": ["w"] * 10_000}, {"t": ["w"] * 100}, {("t", "too_many_values"): 1}),
    ({"t": [[1, 2]] * 60}, {"t": [[1, 2]] * 50}, {("t", "too_many_values"): 1}),
    ({"u": {"v": numbered(101)}}, {"u": {"v": numbered(100)}}, {("u", "too_many_values"): 1}),
    ({"y" * 257: [1] * 101}, {"y" * 256: [1] * 100}, {("y" * 99 + "…", r): 1 for r in ("overlong", "too_many_values")}),
    # Several at once: declared fields are used beside a full list of undeclared ones.
    (
        {"e": [0.5] * 768, "kind": "a", "price": "4", "taste": [3, 4]},
        {"e": [0.5] * 100, "kind": "a", "taste": [3, 4]},
        {("e", "too_many_values"): 1, ("price", "wrong_type"): 1},
    ),
    (
        {"x": ["u" * 300, HUGE, "v"], "kind": 7},
        {"x": ["u" * 256, "v"], "kind": "new"},
        {
            ("x", "overlong"): 1,
            ("x.1", "not_finite"): 1,
            ("kind", "unknown_level"): 1,
        },
    ),
]


def test_every_reason_is_among_the_cases() -> None:
    assert {reason for _, _, counts in WRONG for _, reason in counts} == set(get_args(Reason))


@pytest.mark.parametrize(("features", "same", "counts"), WRONG, ids=[str(i) for i in range(len(WRONG))])
def test_a_misfit_is_left_out_or_shortened_and_counted(
    features: dict[str, Any], same: dict[str, Any], counts: dict[tuple[str, Reason], int]
) -> None:
    e, other = encoder(context=FIELDS, item=FIELDS), {"y": 2, "kind": "a"}
    of_context, of_items = Misfits(), Misfits()
    items = e.items([other, features], misfits=of_items)
    x = e.encode(features, items, misfits=of_context)
    assert of_context.counts == {("context", *key): count for key, count in counts.items()}
    assert of_items.counts == {("item", *key): count for key, count in counts.items()}
    assert x.tobytes() == e.encode(same, e.items([other, same])).tobytes()
    assert x.tobytes() == e.encode(features, e.items([other, features])).tobytes()  # counting changes nothing
    assert np.linalg.norm(x.astype(np.float64), axis=1).max() <= 1 + 1e-6


@pytest.mark.parametrize(
    "features",
    [
        {},
        {"price": None, "kind": None, "taste": None},
        {"price": 0, "kind": "b", "taste": [0, -1e308]},
        {"price": 20.0, "taste": (0.5, 1)},
        {"x": None, "y": [], "z": {}, "": "", "a.b": True, "t": [1, "w", None, [2, [3]], {"u": 0.5}]},
        {"constructor": 1, "__proto__": {"__class__": "toString"}, "\ud800": "\udfff", "<other>": "…"},
        {"x": 10**300, "y": -(2**64), "z": 5e-324},
        {"u" * 256: "v" * 256},
        {"a": {"b": {"c": {"d": [], "e": 1}}}},
        {"a": nested(MAX_DEPTH - 1), "b": [[[[[], {}]]]]},
        {**numbered(MAX_TOKENS), "x": [], "y": {"z": [[]]}},
        {**numbered(MAX_TOKENS - 1), "a": {"b": {"c": {"d": "x" * 256}}}},
    ],
)
def test_what_can_be_used_is_not_counted(features: dict[str, Any]) -> None:
    e, misfits = encoder(context=FIELDS, item=FIELDS), Misfits()
    e.encode(features, e.items([features], misfits=misfits), misfits=misfits)
    assert not misfits
    assert misfits.counts == {}


def test_each_value_is_counted() -> None:
    e, misfits = encoder(item=FIELDS), Misfits()
    e.items([{"price": "4", "x": HUGE}, {"price": "5"}, {}], misfits=misfits)
    e.items([{"price": []}], misfits=misfits)
    assert misfits.counts == {("item", "price", "wrong_type"): 3, ("item", "x", "not_finite"): 1}


def test_ignored_fields_are_not_counted() -> None:
    """Without hashed columns nothing undeclared is used, so nothing of it is lost."""
    e, misfits = encoder(context=FIELDS, hash_dims=0), Misfits()
    ignored = {"x": HUGE, "a": nested(50), "t": ["w" * 300] * 101, "y" * 257: 1}
    x = e.encode({"price": 5, **ignored}, e.items([ignored], misfits=misfits), misfits=misfits)
    assert not misfits
    assert x.tobytes() == e.encode({"price": 5}, e.items([{}])).tobytes()
    e.encode({"price": "5", **ignored}, e.items([{}]), misfits=misfits)
    assert misfits.counts == {("context", "price", "wrong_type"): 1}


def test_endless_nesting_is_cut() -> None:
    e, misfits = encoder(), Misfits()
    x = e.encode({"a": nested(100_000), "y": 1}, e.items([{}]), misfits=misfits)
    assert [reason for _, _, reason in misfits.counts] == ["too_deep"]
    assert x.tobytes() == e.encode({"y": 1}, e.items([{}])).tobytes()


def repaired(value: Any, depth: int = 0) -> Any:
    """Undeclared JSON without what is too deep, overlong or not finite. Others keep their index: {} has no token."""
    if isinstance(value, dict):
        return {k[:256]: repaired(v, depth + 1) for k, v in value.items()} if depth < MAX_DEPTH else {}
    if isinstance(value, list):
        return [repaired(v, depth + 1) for v in value] if depth < MAX_DEPTH else []
    if isinstance(value, str):
        return value[:256]
    return {} if value in (HUGE, -HUGE, b"z") else value


SMALL = MISFITS.filter(lambda value: not isinstance(value, list) or len(value) < 100)
ANY = st.recursive(JSON | SMALL, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3))


@settings(max_examples=200, deadline=None)
@given(features=st.dictionaries(KEYS, ANY, max_size=4))
def test_any_json_has_the_row_of_its_usable_part(features: dict[str, Any]) -> None:
    e, misfits, clean = encoder(), Misfits(), Misfits()
    same = repaired(features)
    x = e.encode(features, e.items([features], misfits=misfits), misfits=misfits)
    y = e.encode(same, e.items([same], misfits=clean), misfits=clean)
    assert x.tobytes() == y.tobytes()
    assert {reason for _, _, reason in clean.counts} <= {"too_many_values"}
    assert set(clean.counts) <= set(misfits.counts)
    assert bool(misfits) == (same != features or bool(clean))


@settings(max_examples=200, deadline=None)
@given(features=st.fixed_dictionaries({}, optional=dict.fromkeys(FIELDS, ANY | st.lists(NUMBERS, max_size=3))))
def test_any_value_of_a_declared_field_has_a_row(features: dict[str, Any]) -> None:
    e, misfits = encoder(context=FIELDS, item=FIELDS), Misfits()
    x = e.encode(features, e.items([features], misfits=misfits), misfits=misfits)
    assert np.isfinite(x).all()
    assert np.linalg.norm(x.astype(np.float64)) <= 1 + 1e-6
    assert all(count == 1 for count in misfits.counts.values())  # one reason a value
    assert len(misfits.counts) <= 2 * len(features)


# -- the counts themselves ---------------------------------------------------------------------------------------------


def test_keys_are_bounded_and_no_count_is_lost() -> None:
    misfits = Misfits()
    for i in range(1000):
        misfits.add("context", f"k{i}", "overlong")
        misfits.add("item", f"k{i}", "wrong_type")
    misfits.add("context", "k0", "overlong")
    counts = misfits.counts
    assert sum(counts.values()) == 2001
    assert len(counts) == MAX_KEYS + 2
    assert counts["context", "k0", "overlong"] == 2
    assert counts["context", "<other>", "overlong"] == 1000 - MAX_KEYS // 2
    assert counts["item", "<other>", "wrong_type"] == 1000 - MAX_KEYS // 2


def test_paths_are_bounded_and_can_be_written_as_json() -> None:
    misfits = Misfits()
    misfits.add("item", "p" * MAX_PATH, "too_deep")
    misfits.add("item", "p" * (MAX_PATH + 1), "too_deep")
    misfits.add("item", "\udfff" * 10_000, "too_deep")
    paths = [path for _, path, _ in misfits.counts]
    assert paths == ["p" * MAX_PATH, "p" * (MAX_PATH - 1) + "…", "?" * (MAX_PATH - 1) + "…"]
    assert orjson.loads(orjson.dumps(paths)) == paths


def test_merge_adds_counts_and_keeps_the_bound() -> None:
    one, two = Misfits(), Misfits()
    assert not one
    one.merge(two)
    assert not one
    for i in range(MAX_KEYS):
        one.add("item", f"a{i}", "overlong")
        two.add("item", f"b{i}", "overlong")
    two.add("item", "a0", "overlong")  # the 65th key: counted as <other>
    one.add("item", "a1", "overlong")
    two.merge(one)
    assert len(two.counts) == MAX_KEYS + 1
    assert two.counts["item", "<other>", "overlong"] == 1 + MAX_KEYS + 1
    one.merge(one)
    assert one.counts == {("item", f"a{i}", "overlong"): 4 if i == 1 else 2 for i in range(MAX_KEYS)}


def test_counts_are_a_read_only_view() -> None:
    misfits = Misfits()
    counts = misfits.counts
    with pytest.raises(TypeError):
        counts["item", "a", "overlong"] = 1  # type: ignore[index]
    misfits.add("item", "a", "overlong")
    assert misfits
    assert counts == {("item", "a", "overlong"): 1}
