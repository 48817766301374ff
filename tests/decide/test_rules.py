"""Rules of a slate: who passes, who is likelier, who stands where; and that propensities are exact under them."""

from __future__ import annotations

from collections import Counter
from itertools import permutations
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from service.decide.active import ActiveLoop
from service.decide.decision import chances, decide, request_of
from service.decide.stage import Traits
from service.errors import NoCandidates
from service.rules import Condition, Rules
from service.store.codec import decision_bytes, read_decision
from tests.decide.builders import active_of, served_of
from tests.decide.builders import request_of as request
from tests.decide.test_decision import AT, Fixed

ITEMS: dict[str, dict[str, Any]] = {
    "p0": {"category": "dog", "price": 1.0, "tags": ["new", "toy"]},
    "p1": {"category": "dog", "price": 2, "tags": ["toy"]},
    "p2": {"category": "cat", "price": "3", "maker": {"country": "de"}},
    "p3": {"category": "cat", "price": 4.0, "maker": {"country": "fr"}},
}
SERVED = served_of("fixed", Fixed(), version=7)  # p0 to p3 have the probabilities .1, .2, .3, .4


def shop(**settings: Any) -> ActiveLoop:
    return active_of(ITEMS, traffic={"fixed": 1.0}, served={"fixed": SERVED}, **{"exploration_floor": 0.0, **settings})


def rules(**given: Any) -> Rules:
    return Rules.model_validate(given)


def passing(**condition: Any) -> list[str]:
    """Who may be drawn under one condition."""
    found = chances(request(rules=rules(filter=[condition])), shop(), SERVED)
    return sorted(chance.id for chance in found)


@pytest.mark.parametrize(
    ("condition", "passes"),
    [
        ({"field": "category", "in": ["dog"]}, ["p0", "p1"]),
        ({"field": "category", "not_in": ["dog"]}, ["p2", "p3"]),
        ({"field": "price", "min": 2}, ["p1", "p2", "p3"]),
        ({"field": "price", "min": 2, "max": 3}, ["p1", "p2"]),
        ({"field": "price", "in": ["1", 3.0]}, ["p0", "p2"]),  # 1.0 is "1", and "3" is 3.0
        ({"field": "tags", "in": ["new", "old"]}, ["p0"]),
        ({"field": "tags", "not_in": ["new"]}, ["p1", "p2", "p3"]),  # who has no tags has not that one
        ({"field": "maker.country", "in": ["de"]}, ["p2"]),
    ],
)
def test_a_condition(condition: dict[str, Any], passes: list[str]) -> None:
    assert passing(**condition) == passes


def test_a_filter_that_leaves_nothing_is_named() -> None:
    none = rules(filter=[{"field": "category", "in": ["dog"]}, {"field": "price", "min": 10}])
    with pytest.raises(NoCandidates, match=r"none of the 2 candidates that were left has `price` from 10"):
        decide(request(rules=none), shop(), at=AT)


def test_a_filter_takes_candidates_by_the_features_that_they_are_sent_with() -> None:
    dogs = rules(filter=[{"field": "category", "in": ["dog"]}])
    asked = request(candidates=["p0", ("p2", {"category": "dog"}), "p3", ("p1", {})], rules=dogs)
    assert {chance.id for chance in chances(asked, shop(), SERVED)} == {"p0", "p2"}
    decision, rows = decide(asked, shop(), at=AT)
    assert (decision.n, len(rows)) == (2, 1)


def test_a_boost_multiplies_odds() -> None:
    cats = rules(boost=[{"field": "category", "in": ["cat"], "times": 2.0}, {"field": "price", "max": 1, "times": 0.5}])
    found = {chance.id: chance for chance in chances(request(rules=cats), shop(), SERVED)}
    weights = np.array([0.05, 0.2, 0.6, 0.8])
    assert [found[f"p{i}"].propensity for i in range(4)] == pytest.approx((weights / weights.sum()).tolist())
    assert found["p2"].rules == ("boost: `category` in ['cat'], times 2",)
    assert found["p1"].rules == ()


def test_the_floor_holds_for_those_who_are_buried() -> None:
    buried = rules(boost=[{"field": "category", "in": ["dog"], "times": 0.01}])
    found = chances(request(rules=buried), shop(exploration_floor=0.4), SERVED)
    assert min(chance.propensity for chance in found) > 0.1
    assert sum(chance.propensity for chance in found) == pytest.approx(1.0)


def test_a_pinned_item_stands_at_its_place_and_nowhere_else() -> None:
    pinned = rules(pin=[{"item": "p0", "place": 2}, {"item": "gone", "place": 1}])
    for number in range(50):
        decision, _ = decide(request(f"d{number}", k=3, rules=pinned), shop(), at=AT)
        assert [item.id for item in decision.items].index("p0") == 1
        assert decision.items[1].propensity == 1.0
        assert decision.left == (3, 1, 2)


def test_all_pinned_to_later_places_leave_none_for_the_first() -> None:
    with pytest.raises(NoCandidates, match="pinned to later places"):
        decide(request(candidates=["p0"], rules=rules(pin=[{"item": "p0", "place": 2}])), shop(), at=AT)


def test_at_most_so_many_of_a_kind() -> None:
    one_each = rules(at_most=[{"field": "category", "items": 1}])
    for number in range(50):
        decision, _ = decide(request(f"d{number}", k=4, rules=one_each), shop(), at=AT)
        assert sorted(ITEMS[item.id]["category"] for item in decision.items) == ["cat", "dog"], "a shorter slate"
    lacking = rules(at_most=[{"field": "maker", "items": 1}])  # nobody has it as a value: nothing is counted
    assert len(decide(request(k=4, rules=lacking), shop(), at=AT)[0].items) == 4


def test_propensities_are_exact_under_rules() -> None:
    """Of every slate that can come: the product of its propensities is the share of 20 000 draws that it has."""
    given = rules(
        boost=[{"field": "price", "max": 2, "times": 3.0}],
        pin=[{"item": "p3", "place": 2}],
        at_most=[{"field": "category", "items": 1}],
    )
    active, n = shop(exploration_floor=0.2), 20_000
    drawn: Counter[tuple[str, ...]] = Counter()
    said: dict[tuple[str, ...], float] = {}
    for number in range(n):
        items = decide(request(f"d{number}", k=2, rules=given), active, at=AT)[0].items
        slate = tuple(item.id for item in items)
        drawn[slate] += 1
        said[slate] = float(np.prod([item.propensity for item in items]))
    assert set(drawn) <= set(permutations(ITEMS, 2))
    assert sum(said.values()) == pytest.approx(1.0)
    for slate, p in said.items():
        assert abs(drawn[slate] / n - p) < 4 * np.sqrt(p * (1 - p) / n), slate


@given(
    number=st.integers(0, 10**6),
    k=st.integers(1, 5),
    times=st.floats(0.01, 100),
    place=st.integers(1, 5),
    most=st.integers(1, 3),
    low=st.floats(0, 3),
)
def test_a_decision_under_rules_is_made_again_from_its_record(
    number: int, k: int, times: float, place: int, most: int, low: float
) -> None:
    given = rules(
        filter=[{"field": "price", "min": low}],
        boost=[{"field": "category", "in": ["dog"], "times": times}],
        pin=[{"item": "p3", "place": place}],
        at_most=[{"field": "category", "items": most}],
    )
    decision, rows = decide(request(f"d{number}", exclude=[], k=k, rules=given), shop(exploration_floor=0.1), at=AT)
    stored = read_decision(decision_bytes(decision))
    again, same_rows = decide(request_of(stored), shop(exploration_floor=0.1), at=stored.at)
    assert again == decision
    assert same_rows.tobytes() == rows.tobytes()
    assert [decision.candidates_for(at) for at in range(len(decision.items))] == list(decision.left or ())


def test_without_rules_a_record_is_as_it_was() -> None:
    decision, _ = decide(request(k=2), shop(), at=AT)
    assert (decision.rules, decision.left, decision.candidates_for(1)) == (None, None, 3)
    assert b"rules" not in decision_bytes(decision)


def test_rules_of_loop_and_request_come_together() -> None:
    loop = rules(filter=[{"field": "price", "min": 2}], pin=[{"item": "p1", "place": 1}, {"item": "p3", "place": 2}])
    both = loop.and_those(rules(filter=[{"field": "category", "in": ["cat"]}], pin=[{"item": "p2", "place": 1}]))
    assert [str(condition) for condition in both.filter] == ["`price` from 2", "`category` in ['cat']"]
    assert {(pin.item, pin.place) for pin in both.pin} == {("p3", 2), ("p2", 1)}
    assert not rules()
    assert both


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"filter": [{"field": "a"}]}, "one of `in`, `not_in`, and `min` or `max`"),
        ({"filter": [{"field": "a", "in": [1], "min": 1}]}, "one of `in`, `not_in`, and `min` or `max`"),
        ({"filter": [{"field": "a", "in": []}]}, "at least 1"),
        ({"filter": [{"field": "a", "min": 3, "max": 1}]}, "lies above"),
        ({"filter": [{"field": "a", "min": "nan"}]}, "number"),
        ({"filter": [{"field": "", "in": [1]}]}, "at least 1"),
        ({"boost": [{"field": "a", "in": [1], "times": 0}]}, "greater than or equal to 0.01"),
        ({"boost": [{"field": "a", "in": [1]}]}, "required"),
        ({"pin": [{"item": "a", "place": 0}]}, "greater than or equal to 1"),
        ({"pin": [{"item": "a", "place": 1}, {"item": "b", "place": 1}]}, "place 1 stands twice"),
        ({"pin": [{"item": "a", "place": 1}, {"item": "a", "place": 2}]}, "item a stands twice"),
        ({"at_most": [{"field": "a", "items": 0}]}, "greater than or equal to 1"),
        ({"filters": []}, "Extra inputs"),
    ],
)
def test_rules_that_make_no_sense_are_refused(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        Rules.model_validate(wrong)


def test_true_is_not_1() -> None:
    traits = Traits([{"sold": True}, {"sold": 1}, {"sold": [1, True]}, {}])
    assert traits.holding(Condition(field="sold", is_in=[1])).tolist() == [False, True, True, False]
    assert traits.holding(Condition(field="sold", is_in=[True])).tolist() == [True, False, True, False]
    assert traits.holding(Condition(field="sold", not_in=[True, 1.0])).tolist() == [False, False, False, True]


def test_what_was_asked_of_the_items_is_remembered_within_a_bound() -> None:
    traits = Traits([{"price": i} for i in range(5)])
    for number in range(200):
        condition = Condition(field="price", min=float(number % 100))
        assert traits.holding(condition).sum() == max(0, 5 - number % 100)
    assert len(traits._known) <= 64
    for number in range(200):
        assert not traits.holding(Condition(field=f"f{number}", is_in=["a"])).any()
        assert not traits.holding(Condition(field=f"f{number}", min=0)).any()
    assert max(len(traits._levels), len(traits._numbers)) <= 64
    same = Condition(field="price", min=99.0)
    assert traits.holding(same) is traits.holding(Condition(field="price", min=99.0))
