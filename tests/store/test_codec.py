"""How records are written, and what a reader makes of the next version's."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.records import (
    START,
    Assignment,
    Decision,
    Event,
    Note,
    Removed,
    Retrieved,
    Seen,
    SlateItem,
    Training,
    Unreadable,
)
from service.store import codec
from service.store.codec import FORMAT, MOST_FEATURES, NewerFormat
from tests.builders import decision_of, event_of, experiment_of, fields_of, loop_of, policy_of

NEWER = FORMAT + 1
EXPERIMENT = experiment_of(guardrails={"reported": 0.02}, ends=2e9)
LOOP = replace(
    loop_of("shop", reward_range=(1, 5), default_reward=1),
    epoch=7,
    traffic={"p": 1.0},
    pins={"p": 3},
    experiments={EXPERIMENT.name: EXPERIMENT},
)
POLICY = replace(policy_of(alpha=0.5), version=3, position="5-1", events=9, skipped=2, alarms=({"number": 1},))
DECISION = decision_of(
    "d1",
    "ab",
    loop="shop",
    user_id="u",
    context={"hour": 3},
    candidates=[("a", None), ("b", {"price": 1.5})],
    exclude=["c"],
    rules={"pin": [{"item": "a", "place": 2}]},
    left=(2, 1),
    folded=True,
    rung="store_down",
    experiment=Assignment("prices", "1f2e", 2, "bold", 0.45),
    retrieved=Retrieved(4, (0, 7, 90_000), 2),
    seen=Seen("1700000000000-3", ("b", "a")),
    removed=Removed(taken=("p7",), spent=("p8", "p9")),
    attempt=2,
)

RAW = event_of(3, context={"hour": 3}, features={"price": 1.5, "tags": ["a", {"b": None}]}, encoder="0123456789ab")
RAW = replace(RAW, experiment=DECISION.experiment, seen=("1700000000000-3", 7))

SHOWN = replace(event_of(4), source="feedback", policy="p", decided=1.5, rung="store_down", place=2)


def stored(fields: Mapping[str, Any]) -> dict[bytes, bytes]:
    """Return the fields of a hash as Redis gives them back."""
    return {name.encode(): value if isinstance(value, bytes) else str(value).encode() for name, value in fields.items()}


def member(text: bytes, **changes: Any) -> bytes:
    """Change members of a JSON object."""
    return orjson.dumps({**orjson.loads(text), **changes})


def arrays(metadata: dict[str, str]) -> bytes:
    """Write an array with this metadata."""
    packed = codec.pack({"a": np.arange(3.0)})
    size = int.from_bytes(packed[:8], "little")
    header = json.loads(packed[8 : 8 + size])
    header["__metadata__"] = metadata
    written = json.dumps(header).encode()
    return len(written).to_bytes(8, "little") + written + packed[8 + size :]


# ---- round trips


def test_a_loop_comes_back() -> None:
    assert codec.read_loop_fields("shop", stored(codec.loop_fields(LOOP))) == LOOP


def test_a_policy_comes_back() -> None:
    found = codec.read_policy_fields(POLICY.name, stored(codec.policy_fields(POLICY)))
    assert replace(found, alarms=tuple(found.alarms)) == POLICY


def test_a_decision_comes_back() -> None:
    found = codec.read_decision(codec.decision_bytes(DECISION))
    assert found == DECISION
    assert codec.decision_bytes(found) == codec.decision_bytes(DECISION)


@given(
    at=st.floats(0, 4e9).map(lambda at: round(at, 3)),
    score=st.floats(allow_nan=False, allow_infinity=False),
    propensity=st.floats(0, 1, exclude_min=True),
)
def test_the_numbers_of_a_decision_come_back_bit_for_bit(at: float, score: float, propensity: float) -> None:
    decision = replace(DECISION, at=at, items=(SlateItem("a", score, propensity),))
    assert codec.read_decision(codec.decision_bytes(decision)) == decision


@pytest.mark.parametrize("event", [event_of(1), event_of(2, user="u", slate_position=0, at=1.25), RAW, SHOWN])
def test_an_event_comes_back(event: Event) -> None:
    found = codec.read_entry(event.position, fields_of(event))
    assert isinstance(found, Event)
    assert (found.x == event.x).all()
    assert replace(found, x=event.x) == event


def test_an_event_of_the_version_before_has_no_raw_record() -> None:
    fields = fields_of(RAW)
    fields[b"e"] = orjson.dumps(
        {k: v for k, v in orjson.loads(fields[b"e"]).items() if k not in ("features", "encoder")}
    )
    found = codec.read_entry(RAW.position, fields)
    assert isinstance(found, Event)
    assert (found.features, found.encoder) == (None, None)


@pytest.mark.parametrize(("size", "kept"), [(MOST_FEATURES - 8, True), (MOST_FEATURES - 7, False)])
def test_features_that_are_too_large_are_left_to_the_catalogue(size: int, kept: bool) -> None:
    event = event_of(features={"a": "x" * size})  # 8 bytes around it
    found = codec.read_entry(event.position, fields_of(event))
    assert isinstance(found, Event)
    assert found.features == (event.features if kept else None)


@pytest.mark.parametrize(
    "wrong", [{"features": []}, {"features": "x"}, {"encoder": 1}, {"decided": "x"}, {"rung": 1}, {"seen": 1}]
)
def test_a_raw_record_that_is_garbled_is_unreadable(wrong: dict[str, Any]) -> None:
    fields = fields_of(RAW)
    fields[b"e"] = member(fields[b"e"], **wrong)
    assert isinstance(codec.read_entry(RAW.position, fields), Unreadable)


def test_the_time_of_an_event_is_that_of_its_entry_unless_it_says_so() -> None:
    assert event_of(position="1700000000123-4").time == 1_700_000_000.123
    assert event_of(position="1700000000123-4", at=12.5).time == 12.5


def test_a_request_to_train_comes_back() -> None:
    assert codec.read_entry("1-0", {b"c": codec.training_body("p", "id")}) == Training("1-0", "p", "id")


@given(st.dictionaries(st.text(max_size=5), st.sampled_from([np.float32, np.float64, np.int64, np.uint8]), max_size=4))
def test_arrays_come_back_and_the_same_arrays_are_the_same_bytes(types: dict[str, Any]) -> None:
    found = {name: np.arange(6).reshape(2, 3).astype(dtype) for name, dtype in types.items() if name != "__metadata__"}
    packed = codec.pack(found)
    again = codec.unpack(packed)
    assert {name: (array.dtype, array.tolist()) for name, array in again.items()} == {
        name: (array.dtype, array.tolist()) for name, array in found.items()
    }
    assert codec.pack(dict(reversed(again.items()))) == packed


# ---- the next version's: a field more is ignored, a newer version is refused


def test_an_unknown_field_is_ignored_everywhere() -> None:
    more = {b"new": b"?"}
    loop = stored(codec.loop_fields(LOOP))
    loop[b"settings"] = member(loop[b"settings"], new="?")
    assert codec.read_loop_fields("shop", {**loop, **more}) == LOOP
    policy = codec.read_policy_fields(POLICY.name, {**stored(codec.policy_fields(POLICY)), **more})
    assert policy.params == POLICY.params
    decision = orjson.loads(codec.decision_bytes(DECISION))
    decision["items"][0]["new"] = "?"
    assert codec.read_decision(orjson.dumps({**decision, "new": "?"})) == DECISION
    event = fields_of(event_of(1))
    found = codec.read_entry("1001-0", {**event, **more, b"e": member(event[b"e"], new="?")})
    assert isinstance(found, Event)
    assert found.decision_id == "d1"
    asked = {**more, b"c": member(codec.training_body("p", "id"), new="?")}
    assert codec.read_entry("1-0", asked) == Training("1-0", "p", "id")
    assert codec.unpack(arrays({"v": str(FORMAT), "new": "?"}))["a"].tolist() == [0, 1, 2]


READERS: list[tuple[str, Callable[[], object]]] = [
    ("loop 'shop'", lambda: codec.read_loop_fields("shop", {**stored(codec.loop_fields(LOOP)), b"v": b"%d" % NEWER})),
    (
        "policy 'linucb'",
        lambda: codec.read_policy_fields("linucb", {**stored(codec.policy_fields(POLICY)), b"v": b"%d" % NEWER}),
    ),
    ("decision 'd1'", lambda: codec.read_decision(member(codec.decision_bytes(DECISION), v=NEWER))),
    (
        "entry 1-0 of the log",
        lambda: codec.read_entry(
            "1-0", {**fields_of(event_of(1)), b"e": member(fields_of(event_of(1))[b"e"], v=NEWER)}
        ),
    ),
    ("entry 1-0 of the log", lambda: codec.read_entry("1-0", {b"c": member(codec.training_body("p", "id"), v=NEWER)})),
    ("a set of arrays", lambda: codec.unpack(arrays({"v": str(NEWER)}))),
]


@pytest.mark.parametrize(("what", "read"), READERS)
def test_a_newer_version_is_refused_with_what_to_do(what: str, read: Callable[[], object]) -> None:
    with pytest.raises(NewerFormat) as raised:
        read()
    assert str(raised.value) == (
        f"{what} has format {NEWER}, and this version of Rebound reads formats up to {FORMAT}; "
        "nothing was changed: start the newer version again"
    )


def test_a_newer_event_is_no_dead_letter_even_if_nothing_else_of_it_can_be_read() -> None:
    with pytest.raises(NewerFormat):
        codec.read_entry("1-0", {b"e": b'{"v":%d}' % NEWER})


def test_entries_are_read_up_to_the_first_newer_one() -> None:
    good = fields_of(event_of(1))
    newer = {**good, b"e": member(good[b"e"], v=NEWER)}
    found = codec.read_entries([(b"1-0", good), (b"2-0", newer), (b"3-0", good)])
    assert [entry.position for entry in found] == ["1-0"]
    with pytest.raises(NewerFormat):
        codec.read_entries([(b"2-0", newer), (b"3-0", good)])
    assert codec.read_entries([]) == []


# ---- older: version 0.1 named no version, and its loops and policies had no id until they were moved


def test_records_of_version_0_1_are_read() -> None:
    decision = orjson.loads(codec.decision_bytes(DECISION))
    del decision["v"]
    assert codec.read_decision(orjson.dumps(decision)) == DECISION
    event = {name: value for name, value in fields_of(event_of(1)).items() if name in (b"e", b"x", b"r", b"s")}
    event[b"e"] = event[b"e"].replace(b'"v":%d,' % FORMAT, b"")
    found = codec.read_entry("1001-0", event)
    assert isinstance(found, Event)
    assert (found.slate_position, found.at) == (None, None)
    assert codec.read_entry("1-0", {b"c": b'{"train":"p"}'}) == Training("1-0", "p", None)
    assert codec.read_entry("1-0", {b"c": b'{"alarm":{"policy":"p","number":1}}'}) == Note("1-0")
    policy = stored(codec.policy_fields(POLICY))
    del policy[b"v"], policy[b"retention"]
    assert codec.read_policy_fields("linucb", policy).retention == 1_000_000
    assert codec.read_policy_fields("linucb", policy).position == "5-1"
    assert codec.read_policy_fields("new", stored(codec.policy_fields(policy_of()))).position == START
    old = arrays({})
    assert codec.unpack(old)["a"].tolist() == [0, 1, 2]


# ---- garbled


@pytest.mark.parametrize("packed", [b"", b"garbled", b"\xff" * 8 + b"{}", codec.pack({"a": np.arange(3.0)})[:-1]])
def test_what_is_no_set_of_arrays_is_a_value_error(packed: bytes) -> None:
    with pytest.raises(ValueError, match="not a set of arrays"):
        codec.unpack(packed)


@pytest.mark.parametrize("changes", [{"v": "two"}, {"v": {}}, {"item": 3}, {"context": None}, {"propensity": 0}])
def test_an_event_with_a_member_out_of_place_is_unreadable(changes: dict[str, Any]) -> None:
    good = fields_of(event_of(1))
    found = codec.read_entry("1-0", {**good, b"e": member(good[b"e"], **changes)})
    assert isinstance(found, Unreadable)
    assert found.why


@given(st.dictionaries(st.sampled_from([b"e", b"x", b"o", b"r", b"s", b"t", b"c"]), st.binary(max_size=30)))
def test_no_bytes_raise_anything_else(fields: dict[bytes, bytes]) -> None:
    assert codec.read_entry("1-0", fields).position == "1-0"


def test_every_member_of_a_decision_is_written() -> None:
    assert set(Decision.__dataclass_fields__) | {"v"} == set(orjson.loads(codec.decision_bytes(DECISION)))
