"""The profile: kinds of fields, states bit for bit, any JSON, bounded memory; and the schema that it proposes."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.represent.encoder import Encoder
from service.represent.json_paths import leaves, level_of, number_of, type_of
from service.represent.notices import notices_of
from service.represent.profile import Arrays, Kind, Profile
from service.represent.proposal import proposed_schema
from service.represent.schema import FeatureSchema
from service.represent.sketches import Distinct, Levels, Quantiles, Sample
from tests.represent.streams import events, profile_of

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=300)
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=300), inner), max_leaves=30
)
OBJECTS = st.dictionaries(st.text(max_size=20), JSON, max_size=8)


def add(profile: Profile, context: Any = None, features: Any = None, *, item: str = "a", **more: Any) -> None:
    given: dict[str, Any] = {"user": None, "reward": 0.0, "at": 1.0, **more}
    profile.add(context=context or {}, item=item, features=features or {}, **given)


def same(one: Arrays, other: Arrays) -> bool:
    return one.keys() == other.keys() and all(one[name].tobytes() == other[name].tobytes() for name in one)


# ---- paths and levels


def test_an_object_is_flattened_to_dotted_paths() -> None:
    found, left_out = leaves(
        {"a": {"b": 1, "c": {}}, "d": [1, 2], "e": None, "f": {"g": {"h": {"i": {"j": {"k": 1}}}}}}
    )
    assert (found, left_out) == ([("a.b", 1), ("d", [1, 2]), ("e", None)], 1)
    assert leaves({str(i): i for i in range(10)}, most=4)[1] == 6


def test_a_level_is_the_same_whatever_its_type() -> None:
    assert {level_of(value) for value in (1, 1.0, "1")} == {"1"}
    assert [level_of(value) for value in (True, "01", 1.5, None, "x" * 300)] == ["true", "01", "1.5", "null", "x" * 256]
    assert [type_of(value) for value in ([1, 2.5], [1, "a"], [], [True])] == ["vector", "set", "set", "set"]
    assert [number_of(value) for value in ("12.5", "1_0", "nan", "-3", True, "u7")] == [
        12.5,
        None,
        None,
        -3,
        None,
        None,
    ]


# ---- kinds


def test_kinds_of_fields() -> None:
    profile = profile_of(600)
    kinds = {path: profile.kind_of("context", path) for path in profile.fields["context"]}
    assert {path: kind.type for path, kind in kinds.items()} == {
        "segment": "levels",
        "age": "number",
        "speed": "number",
        "code": "levels",
        "app.version": "levels",
        "app.paid": "boolean",
        "likes": "set",
        "taste": "vector",
        "referrer": "levels",
    }
    assert sorted(kinds["code"].levels) == ["1001", "1002", "1003", "1004"]
    assert kinds["taste"].size == 20
    assert sorted(kinds["likes"].levels) == ["w0", "w1", "w2", "w3", "w4"]
    low, *_, high = kinds["age"].quantiles
    assert (low, high) == (18, 80)
    assert [profile.kind_of("item", path).type for path in ("price", "kind", "new")] == ["number", "levels", "boolean"]
    assert profile.missing(profile.fields["context"]["referrer"]) == pytest.approx(0.7, abs=0.05)
    assert (profile.items, profile.events) == (40, 600)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (lambda i: "same", "constant"),
        (lambda i: None, "empty"),
        (lambda i: f"{hash((i, 'x')) % 2**61}x", "new_each_time"),
        (lambda i: 10**17 + (i * 7919) % 1009 * 10**14, "new_each_time"),
        (lambda i: 1.7e9 + i, "clock"),
        (lambda i: f"2026-{i:06}", "clock"),
        (lambda i: f"{i * 7919 % 199} of many", "rare_levels"),
    ],
)
def test_fields_that_teach_nothing_are_left_out_with_the_reason(value: Any, reason: str) -> None:
    profile = Profile()
    for i in range(600):
        add(profile, {"field": value(i)}, at=1000.0 + i)
    assert profile.kind_of("context", "field") == Kind("left_out", reason=reason)  # type: ignore[arg-type]


def test_an_item_field_that_is_as_good_as_the_id_is_left_out() -> None:
    profile = Profile()
    for i in range(300):
        add(profile, {}, {"title": f"title {i % 30}", "price": float(i % 30), "kind": f"k{i % 3}"}, item=f"i{i % 30}")
    assert [profile.kind_of("item", path).reason for path in ("title", "price", "kind")] == ["same_as_id", None, None]


def test_codes_in_text_are_levels_and_prices_in_text_are_numbers() -> None:
    profile = Profile()
    for i in range(300):
        add(profile, {"zip": f"{10000 + i % 20}", "price": f"{i % 50}.50", "few": i % 12, "many": i % 13})
    kinds = [profile.kind_of("context", path).type for path in ("zip", "price", "few", "many")]
    assert kinds == ["levels", "number", "levels", "number"]


def test_the_context_of_a_slate_counts_once() -> None:
    profile = Profile()
    for i in range(400):
        for place in range(4):
            add(profile, {"id": f"x{i * 7919 % 997}"}, item=f"i{place}", user=f"u{i}", request=f"d{i}")
    assert (profile.events, profile.records("context"), profile.with_user) == (1600, 400, 400)
    assert profile.kind_of("context", "id").reason == "new_each_time"


# ---- states


def test_a_profile_that_goes_on_from_its_state_is_the_one_that_never_stopped() -> None:
    stream = list(events(1300))
    whole, parts = Profile(), Profile()
    for event in stream:
        whole.add(**event)
    for number, event in enumerate(stream):
        parts.add(**event)
        if number % 97 == 0:
            parts = Profile.load(parts.state())
    assert same(whole.state(), parts.state())
    assert same(whole.state(), profile_of(1300).state())


def test_a_state_of_another_format_is_refused() -> None:
    state = profile_of(5).state()
    said = json.loads(state["json"].tobytes())
    later = np.frombuffer(json.dumps({**said, "v": 99}).encode(), dtype=np.uint8)
    with pytest.raises(ValueError, match="format 99"):
        Profile.load({**state, "json": later})
    with pytest.raises(ValueError, match="not a profile"):
        Profile.load({**state, "json": np.frombuffer(b'{"v": 1}', dtype=np.uint8)})


@pytest.mark.slow
@settings(max_examples=12)
@given(st.lists(st.tuples(OBJECTS, OBJECTS, st.text(max_size=5)), max_size=20))
def test_any_json_is_taken(stream: list[tuple[Any, Any, str]]) -> None:
    profile = Profile()
    for _ in range(4):  # again and again, so that what needs some values comes about, too
        for i, (context, features, item) in enumerate(stream):
            profile.add(
                context=context,
                item=item,
                features=features,
                user=item or None,
                reward=float(i),
                at=float(i),
                request=None,
            )
    assert same(Profile.load(profile.state()).state(), profile.state())
    for side, fields in profile.fields.items():
        for path in fields:
            profile.kind_of(side, path)
    notices_of(profile, reward_range=(0.0, 100.0))
    schema = proposed_schema(profile)
    assert FeatureSchema.model_validate_json(schema.model_dump_json()) == schema


@pytest.mark.slow
def test_memory_is_bounded() -> None:
    """The worst that a client can send: ever new names, long ever new texts, long lists, ever new ids."""

    def size(n: int) -> int:
        rng = np.random.default_rng(0)
        profile = Profile()
        for i in range(n):
            context = {f"{i % 3}/{k}": f"{rng.integers(2**60)}" * 12 for k in range(100)}
            features = {f"f{k}": [f"{rng.integers(2**60)}" * 12] * 3 for k in range(60)} | {f"new{i}": 1.5}
            item = f"{rng.integers(2**60)}" * 6
            profile.add(context=context, item=item, features=features, user=item, reward=rng.normal(), at=float(i))
        return sum(array.nbytes for array in profile.state().values())

    small = size(140)
    assert size(210) < min(1.1 * small, 9e6)


# ---- sketches


def test_quantiles_are_near_and_exact_where_there_are_few() -> None:
    sketch, numbers = Quantiles(), np.random.default_rng(0).normal(size=5000)
    for number in numbers:
        sketch.add(float(number))
    shares = (0.02, 0.27, 0.5, 0.73, 0.98)
    ranks = [(numbers < value).mean() for value in sketch.at(shares)]
    assert ranks == pytest.approx(shares, abs=0.02)
    few = Quantiles()
    assert few.at((0.5,)) == []
    few.add(3.0)
    assert few.at((0.0, 1.0)) == [3.0, 3.0]


def test_frequent_levels_are_kept_among_ever_new_ones() -> None:
    levels, distinct = Levels(), Distinct()
    for i in range(20_000):
        text = f"often{i % 7}" if i % 2 else f"once{i}"
        if levels.add(text)[1]:
            distinct.add(text)
    best = dict(levels.most_frequent(7))
    assert set(best) == {f"often{i}" for i in range(7)}
    assert all(20_000 // 14 - levels.error <= count <= 20_000 / 14 + 1 for count in best.values())
    assert distinct.count() == pytest.approx(10_007, rel=0.06)


def test_a_sample_counts_what_it_holds_from_the_first_sight_on() -> None:
    sample: Sample[list[int]] = Sample(100)
    for i in range(6000):
        key = f"u{i % 2000}"
        known = sample.get(key)
        if known is None:
            sample.admit(key, [1])
        else:
            known[0] += 1
    assert {note[0] for note in sample.notes.values()} == {3}
    assert sample.size() == pytest.approx(2000, rel=0.3)


# ---- the proposal


def test_a_proposal_is_a_schema_as_a_person_would_write_it() -> None:
    schema = proposed_schema(profile_of(1000))
    assert set(schema.context) == {"segment", "age", "speed", "code", "taste", "referrer"}
    assert set(schema.item) == {"price", "kind", "new"}
    assert schema.context["age"].model_dump() == {"type": "numeric", "min": 18.0, "max": 80.0}
    assert schema.item["new"].model_dump() == {"type": "categorical", "levels": ["false", "true"]}
    assert schema.hash_dims == 31, "nested fields and sets cannot be declared"
    assert ("segment", "kind") in schema.crosses
    assert Encoder(schema).d <= 361 + schema.hash_dims


def test_ids_and_clocks_are_in_no_proposal() -> None:
    profile = Profile()
    for i in range(500):
        context = {"segment": f"s{i % 4}", "time": 1e9 + i, "request": f"{i * 7919 % 1009}-{i}", "shop": "main"}
        add(profile, context, {"kind": f"k{i % 5}"}, item=f"i{i % 20}", at=float(i))
    schema = proposed_schema(profile)
    assert (set(schema.context), set(schema.item), schema.hash_dims) == ({"segment"}, {"kind"}, 0)
    assert schema.crosses == [("segment", "kind")]


def test_items_without_features_keep_their_hashed_ids() -> None:
    profile = Profile()
    for i in range(500):
        add(profile, {"segment": f"s{i % 4}"}, item=f"i{i % 4}")
    assert proposed_schema(profile).hash_dims == 31
