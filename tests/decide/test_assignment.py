"""Who falls into which arm: evenly, for good, independently of other experiments, and with as few moves as can be."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.decide.active import UNIFORM
from service.decide.assignment import PARTS, Assigner, Spans, divided, outside, place_of
from service.decide.decision import decide
from service.evaluate.replay import same_decision
from service.records import OUTSIDE
from tests.builders import experiment_of, loop_of
from tests.decide.builders import active_of, request_of, served_of

AT = 1_700_000_000.0


def sizes(spans: Spans) -> Counter[str]:
    found = Counter[str]()
    for name, parts in spans:
        found[name] += parts
    return found


def moved(before: Spans, after: Spans) -> int:
    """Count the places that belong to another arm now."""
    borders = [np.cumsum([parts for _, parts in spans]) for spans in (before, after)]
    cuts = np.unique(np.concatenate([[0], *borders]))
    owners = [
        [spans[at][0] for at in border.searchsorted(cuts[:-1], side="right")]
        for spans, border in zip((before, after), borders, strict=True)
    ]
    return sum(int(width) for width, one, two in zip(np.diff(cuts), *owners, strict=True) if one != two)


@st.composite
def splits(draw: st.DrawFn) -> list[dict[str, float]]:
    """Shares of the same arms, changed a few times."""
    names = ["a", "b", "c", OUTSIDE][: draw(st.integers(2, 4))]
    weights = st.lists(st.integers(0, 100), min_size=len(names), max_size=len(names)).filter(any)
    found = draw(st.lists(weights, min_size=2, max_size=4))
    return [{name: one / sum(some) for name, one in zip(names, some, strict=True)} for some in found]


@settings(max_examples=40)
@given(splits())
def test_a_change_of_shares_moves_no_unit_that_it_need_not(changes: list[dict[str, float]]) -> None:
    spans: Spans = outside()
    for shares in changes:
        before, spans = spans, divided(spans, shares)
        had, has = sizes(before), sizes(spans)
        assert sum(has.values()) == PARTS
        assert all(abs(has[name] - PARTS * share) <= len(shares) for name, share in shares.items())
        assert moved(before, spans) == sum(max(0, has[name] - had[name]) for name in has)


def test_arms_get_their_shares_and_those_of_other_experiments_are_independent() -> None:
    """Chi-square of 20 experiments, each by itself and each pair: the largest of 210 stays below its 1e-6 quantile."""
    users = [f"u{number}" for number in range(4000)]
    arm = np.array([[place_of(f"e{e}", user) * 4 // PARTS for user in users] for e in range(20)])
    alone = [np.bincount(one, minlength=4) for one in arm]
    assert max(((one - 1000.0) ** 2 / 1000).sum() for one in alone) < 30.7  # 3 degrees of freedom
    pairs = [np.bincount(4 * a + b, minlength=16) for a, b in combinations(arm, 2)]
    assert max(((one - 250.0) ** 2 / 250).sum() for one in pairs) < 57.0  # 15


def test_a_user_stays_in_his_arm_and_a_ramp_moves_nobody_between_arms() -> None:
    small, large = experiment_of(holdout=0.8), experiment_of(holdout=0.8)
    large = replace(large, spans=divided(small.spans, {"control": 0.45, "bold": 0.45, OUTSIDE: 0.1}))
    first, then = Assigner(small), Assigner(large)
    found = Counter[tuple[str, str]]()
    for number in range(2000):
        one, two = (each.assignment(f"u{number}", f"d{number}", at=AT) for each in (first, then))
        assert one is not None
        assert two is not None
        assert one == first.assignment(f"u{number}", "another decision", at=AT)
        found[one.arm, two.arm] += 1
        assert two.share == pytest.approx({"control": 0.45, "bold": 0.45, OUTSIDE: 0.1}[two.arm])
    assert not found["control", "bold"] + found["bold", "control"] + found["bold", ""] + found["control", ""]
    assert found["", "bold"]


@pytest.mark.parametrize(
    ("changes", "user", "takes_part"),
    [
        ({}, "u1", True),
        ({}, None, False),
        ({"unit": "decision"}, None, True),
        ({"starts": AT + 1}, "u1", False),
        ({"starts": AT, "ends": AT + 1}, "u1", True),
        ({"ends": AT}, "u1", False),
    ],
)
def test_who_takes_part(changes: dict[str, Any], user: str | None, takes_part: bool) -> None:
    found = Assigner(experiment_of(**changes)).assignment(user, "d1", at=AT)
    assert (found is not None) == takes_part


@pytest.mark.parametrize(
    ("context", "takes_part"),
    [
        ({"visit": {"id": 7}}, True),
        ({"visit.id": "7"}, True),
        ({"session_id": "7"}, False),
        ({"visit": {"id": None}}, False),
        ({"visit": {"id": [7]}}, False),
    ],
)
def test_a_session_is_named_by_a_field_of_the_context(context: dict[str, Any], takes_part: bool) -> None:
    experiment = experiment_of(unit="session", session="visit.id")
    found = Assigner(experiment).assignment("u1", "d1", at=AT, context=context)
    assert (found is not None) == takes_part
    if found is not None:
        assert found == Assigner(experiment).assignment("another user", "d2", at=AT, context={"visit": {"id": 7.0}})


def test_events_of_an_arm_are_kept_from_the_policies_of_the_others() -> None:
    experiment = experiment_of({"control": 0.5, "bold": 0.3, "shy": 0.2}, holdout=0.4)
    ids = {"control": "1", "bold": "2", "shy": "3"}
    assigner = Assigner(replace(experiment, learners=ids))
    kept = {one.arm: one.apart for one in assigner._assignments}
    assert kept == {"control": ("2", "3"), "bold": ("1", "3"), "shy": ("1", "2"), OUTSIDE: ()}
    assert all(not one.apart for one in Assigner(experiment)._assignments)


def test_arms_are_served_by_their_policies_and_all_others_by_the_traffic() -> None:
    served = {name: served_of(name) for name in ("control", "bold", "usual")}
    active = active_of(traffic={"usual": 1.0}, served=served)
    active = replace(active, assigner=Assigner(experiment_of(holdout=0.5)))
    found = Counter[tuple[str, str]]()
    for number in range(600):
        decision, _ = decide(request_of(f"d{number}", user_id=f"u{number}"), active, at=AT)
        assert decision.experiment is not None
        found[decision.experiment.arm, decision.policy] += 1
        assert same_decision(
            decision, loop_of("shop", id="1"), active.encoder, active.catalogue, served[decision.policy]
        )
    assert found.keys() == {("control", "control"), ("bold", "bold"), (OUTSIDE, "usual")}
    assert 240 < found[OUTSIDE, "usual"] < 360
    nobody, _ = decide(request_of("d1"), active, at=AT)
    assert (nobody.policy, nobody.experiment) == ("usual", None)
    none_at_all, _ = decide(request_of("d1"), active_of(), at=AT)
    assert none_at_all.policy == UNIFORM.policy
