"""Decisions of which limits removed candidates: who is left, what is said where nobody is, and exact propensities."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from service.decide.decision import Request, chances, decide, request_of
from service.errors import NoCandidates
from service.evaluate.counterfactual import opinion
from service.limits import Budget, Caps
from service.loop import LoopSettings
from service.records import Removed
from service.store.codec import decision_bytes, read_decision
from tests.decide.builders import ENCODER
from tests.decide.builders import request_of as plain_request
from tests.decide.test_decision import AT
from tests.decide.test_rules import SERVED, rules, shop

REMOVED = Removed(taken=("p0",), shown=("p1",), spent=("p2",))


def request(number: int = 0, removed: Removed | None = None, attempt: int = 0, **asked: Any) -> Request:
    return replace(plain_request(f"d{number}", **asked), removed=removed, attempt=attempt)


def test_what_limits_removed_is_no_candidate_and_the_record_says_so() -> None:
    decision, _ = decide(request(removed=REMOVED, k=4), shop(), at=AT)
    assert ([item.id for item in decision.items], decision.n) == (["p3"], 1)
    stored = read_decision(decision_bytes(decision))
    assert (stored.removed, stored.left_out) == (REMOVED, ("p0", "p1", "p2"))
    assert [chance.id for chance in chances(request_of(stored), shop(), SERVED)] == ["p3"]
    plain, _ = decide(request(), shop(), at=AT)
    assert not {b"removed", b"attempt"} & set(decision_bytes(plain).split(b'"'))


def test_an_evaluation_asks_about_what_limits_left() -> None:
    target = replace(SERVED, encoder=ENCODER)
    cats: dict[str, Any] = {"rules": rules(boost=[{"field": "category", "in": ["cat"], "times": 2.0}])}
    for asked in ({}, cats):
        decision, _ = decide(request(removed=REMOVED._replace(spent=()), **asked), shop(), at=AT)
        said = opinion(decision, shop().catalogue, target, (0, 1))
        assert said is not None
        assert said.chosen == decision.items[0].propensity < 1


def test_limits_come_before_rules() -> None:
    """A pinned item that has no budget left is not pinned."""
    pinned = rules(pin=[{"item": "p2", "place": 1}], filter=[{"field": "category", "in": ["cat"]}])
    decision, _ = decide(request(removed=REMOVED, rules=pinned), shop(), at=AT)
    assert ([item.id for item in decision.items], decision.left) == (["p3"], (1,))
    with pytest.raises(NoCandidates, match="none of the 1 candidates that were left has `category`"):
        decide(request(removed=REMOVED, rules=rules(filter=[{"field": "category", "in": ["dog"]}])), shop(), at=AT)


@pytest.mark.parametrize("asked", [{}, {"rules": rules(pin=[{"item": "p0", "place": 1}])}])
@pytest.mark.parametrize(
    ("removed", "field", "says"),
    [
        (REMOVED._replace(spent=("p2", "p3")), "budgets", "1 the user took (`caps.taken`), 1 the user was shown"),
        (Removed(shown=("p0", "p1", "p2", "p3")), "caps.impressions", "4 the user was shown as often as may be"),
        (Removed(taken=("p0", "p1", "p2", "p3")), "caps.taken", "4 the user took (`caps.taken`)"),
    ],
)
def test_limits_that_leave_nothing_are_named(asked: dict[str, Any], removed: Removed, field: str, says: str) -> None:
    with pytest.raises(NoCandidates) as refused:
        decide(request(removed=removed, **asked), shop(), at=AT)
    [error] = refused.value.extra["errors"]
    assert error["field"] == field
    assert says in error["message"]


def test_propensities_are_exact_of_a_decision_that_is_made_again_after_it_met_a_limit() -> None:
    """All draws here had taken p3 first. With the seed of then, whoever stands beside it would come every time."""
    n, drawn, active = 4000, Counter[str](), shop()
    without: dict[str, float] = {}
    for number in range(n):
        first, _ = decide(request(number), active, at=AT)
        if first.items[0].id == "p3":
            again, _ = decide(request(number, removed=Removed(spent=("p3",)), attempt=1), active, at=AT)
            drawn[again.items[0].id] += 1
            without[again.items[0].id] = again.items[0].propensity
    total = drawn.total()
    assert total > 0.3 * n
    assert without == pytest.approx({"p0": 1 / 6, "p1": 2 / 6, "p2": 3 / 6})
    for item, p in without.items():
        assert abs(drawn[item] / total - p) < 4 * np.sqrt(p * (1 - p) / total), item


def test_settings() -> None:
    given = {"impressions": [{"most": 2, "within": 3600.0}], "taken": {"activity": ["buy"], "within": 86400.0}}
    settings = LoopSettings.model_validate({"caps": given, "budgets": {"p1": {"impressions": 10, "per": "day"}}})
    assert (bool(settings.caps), settings.caps.ms, settings.caps.count_decisions) == (True, 86_400_000, True)
    assert settings.budgets == {"p1": Budget(impressions=10, per="day")}
    assert not LoopSettings().caps
    bought = Caps.model_validate({"taken": given["taken"]})
    assert (bool(bought), bought.count_decisions) == (True, False), "decisions are no activity"


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"caps": {"impressions": [{"most": 0, "within": 60.0}]}}, "greater than or equal to 1"),
        ({"caps": {"impressions": [{"most": 1, "within": 0.5}]}}, "greater than or equal to 1"),
        ({"caps": {"impressions": [{"most": 1, "within": 60.0}] * 6}}, "at most 5"),
        ({"caps": {"taken": {"within": 60.0}}}, "say what counts as taken"),
        ({"caps": {"kept": 10**6}}, "less than or equal to 5000"),
        ({"caps": {"seen": 1}}, "Extra inputs"),
        ({"budgets": {"p": {"impressions": 0}}}, "greater than or equal to 1"),
        ({"budgets": {"p": {"impressions": 1, "per": "hour"}}}, "'total' or 'day'"),
        ({"budgets": {f"p{i}": {"impressions": 1} for i in range(1001)}}, "at most 1000"),
    ],
)
def test_limits_that_make_no_sense_are_refused(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        LoopSettings.model_validate(wrong)
