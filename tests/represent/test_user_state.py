"""The state of a user is a pure fold over his activity."""

from __future__ import annotations

from typing import Any

import orjson
from hypothesis import given, settings
from hypothesis import strategies as st

from service.represent.user_state import HALF_LIFE_MS, Activity, ItemFields, user_state

CATALOGUE: dict[str, dict[str, Any]] = {
    "ball": {"category": "toy", "price": 4},
    "bone": {"category": "food", "price": 2.5, "tags": ["dog", "chew"]},
    "leash": {"category": "walk"},
}
ITEMS = ItemFields(CATALOGUE)
NOW = 2_000_000_000_000


def done(*acts: tuple[str, str, int]) -> list[Activity]:
    """Activity of (item, type, seconds before now), in this order of acceptance."""
    return [Activity(number, NOW - 1000 * ago, item, kind) for number, (item, kind, ago) in enumerate(acts, start=1)]


def state(*acts: tuple[str, str, int]) -> dict[str, Any]:
    return user_state(done(*acts), ITEMS, at=NOW)


def test_a_user_without_activity_has_no_state() -> None:
    assert state() == {}


def test_the_fields_of_a_state() -> None:
    assert state(("ball", "view", 90), ("bone", "buy", 12)) == {
        "last": {"category": "food", "price": 2.5, "tags": ["dog", "chew"]},
        "last_item": "bone",
        "last_type": "buy",
        "seconds_since": 12,
        "recent": {"category": ["food", "toy"], "tags": ["chew", "dog"]},
        "often": {"category": ["food"], "tags": ["chew", "dog"]},  # 8 : 1, and a share below .15 is left out
        "count": 2,
        "kept": 2,
    }


def test_late_activity_does_not_become_the_last_but_counts() -> None:
    late = state(("ball", "view", 10), ("leash", "view", 3600))
    assert (late["last_item"], late["seconds_since"], late["count"]) == ("ball", 10, 2)
    assert late["often"] == {"category": ["toy", "walk"]}


def test_of_equal_times_the_one_accepted_last_is_the_last() -> None:
    assert state(("ball", "view", 5), ("leash", "view", 5))["last_item"] == "leash"


def test_what_is_long_ago_weighs_less() -> None:
    weeks = HALF_LIFE_MS // 1000
    assert state(("ball", "view", 3 * weeks), ("leash", "view", 0))["often"] == {"category": ["walk"]}  # 1 : 1/8
    assert state(("ball", "view", weeks), ("leash", "view", 0))["often"] == {"category": ["walk", "toy"]}  # 1 : 1/2


def test_an_unknown_item_and_a_time_to_come_are_taken() -> None:
    assert state(("gone", "poke", -30)) == {
        "last_item": "gone",
        "last_type": "poke",
        "seconds_since": 0,
        "count": 1,
        "kept": 1,
    }


def test_only_short_fields_of_an_item_are_shown() -> None:
    features = {"about": "x" * 65, "taste": [0.1, 0.2], "none": None, **{f"f{i}": i for i in range(20)}}
    found = user_state(done(("a", "view", 0)), ItemFields({"a": features}), at=NOW)
    assert found["last"] == {f"f{i}": i for i in range(8)}


ACTS = st.tuples(st.sampled_from([*CATALOGUE, "gone"]), st.sampled_from(["view", "buy", "own"]), st.integers(0, 10**6))


@settings(max_examples=50)
@given(st.lists(ACTS, min_size=1, max_size=30))
def test_a_state_survives_json_and_depends_on_times_not_on_the_clock(acts: Any) -> None:
    found = state(*acts)
    assert orjson.loads(orjson.dumps(found)) == found
    later = user_state(done(*acts), ITEMS, at=NOW + 5000)
    assert later == {**found, "seconds_since": found["seconds_since"] + 5}
    moved = [Activity(one.number, one.at - 7 * 86_400_000, one.item, one.type) for one in done(*acts)]
    assert user_state(moved, ITEMS, at=NOW - 7 * 86_400_000) == found
