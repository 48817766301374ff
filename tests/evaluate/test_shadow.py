"""Sums of shadow policies: they equal the estimators over the same decisions, and say no more than these."""

from __future__ import annotations

import json

import numpy as np
import pytest

from service.evaluate import shadow
from service.evaluate.estimators import doubly_robust, snips
from service.evaluate.intervals import RunningBound, lower_sequence
from service.evaluate.shadow import ERROR, Judged, Row, Shadow, estimates
from tests.evaluate.builders import Logged, simulate

RATES, SERVED, TARGET = [0.2, 0.5, 0.8], [0.6, 0.3, 0.1], [0.1, 0.3, 0.6]


def logged(size: int = 2000, *, seed: int = 3) -> Logged:
    return simulate(np.random.default_rng(seed), size, rates=RATES, behaviour=SERVED, target=TARGET, model=[0.3] * 3)


def judged(log: Logged) -> list[Judged]:
    said = log.evidence
    return [
        Judged(*map(float, one)) for one in zip(said.reward, said.weight, said.predicted, said.expected, strict=True)
    ]


def shadow_of(decisions: list[Judged]) -> Shadow:
    found = Shadow("r", 5.0, "it began")
    for one in decisions:
        found.add(one)
    return found


def test_a_bound_term_by_term_is_the_last_of_its_sequence() -> None:
    terms = np.random.default_rng(1).exponential(size=300) - 1
    bound = RunningBound(-1.0)
    for number, term in enumerate(terms.tolist()):
        if number == 200:
            bound = RunningBound(-1.0, *bound.state())
        bound.add(term)
    assert bound.low(error=0.02) == pytest.approx(lower_sequence(terms, least=-1.0, error=0.02)[-1])


def test_the_answers_are_those_of_the_estimators() -> None:
    log = logged()
    said = estimates(shadow_of(judged(log)), (0.0, 10.0))
    evidence = log.evidence
    assert said["refusal"] is None
    assert said["served"]["estimate"] == pytest.approx(10 * evidence.reward.mean())
    assert said["dr"]["reward"]["estimate"] == pytest.approx(10 * doubly_robust(evidence).estimate)
    assert said["snips"] == pytest.approx(10 * snips(evidence).estimate)
    weighted = (evidence.weight - 1) * evidence.reward
    assert said["ips"]["difference"]["estimate"] == pytest.approx(10 * weighted.mean())
    low = lower_sequence(weighted, least=-1, error=ERROR / 2)[-1]
    assert said["ips"]["difference"]["low"] == pytest.approx(10 * low)
    for found in (said["dr"], said["ips"]):
        truth = 10 * (log.value - log.logged)
        assert found["difference"]["low"] < truth < found["difference"]["high"]
    assert said["says"].startswith("better than what served by 2")


def test_it_goes_on_from_what_was_written_down() -> None:
    decisions = judged(logged(300))
    whole = shadow_of(decisions)
    half = Shadow.load(json.loads(json.dumps(shadow_of(decisions[:100]).state())))
    for one in decisions[100:]:
        half.add(one)
    assert half.state() == whole.state()


def test_the_older_half_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shadow, "HALF", 100)
    decisions = judged(logged(250))
    found = shadow_of(decisions)
    recent = Row()
    for one in decisions[100:]:
        recent.add(one)
    assert found.rows[0].state() == recent.state()
    assert [row.decisions for row in found.rows] == [150, 50]
    assert estimates(found, (0.0, 1.0))["decisions"] == 150


@pytest.mark.parametrize(
    ("decisions", "left_out", "code", "answered"),
    [
        ([Judged(1.0, 1.0, 0.5, 0.5)] * 49, {}, "few", False),
        ([Judged(1.0, 1.0, 0.5, 0.5)] * 3, {"slates": 50}, "slates", False),
        ([Judged(1.0, 0.0, 0.5, 0.5)] * 990 + [Judged(1.0, 100.0, 0.5, 0.5)] * 10, {}, "thin_support", True),
        ([Judged(1.0, 0.01, 0.5, 0.5)] * 1000, {}, "thin_support", True),  # its own choices were never shown
        ([Judged(0.0, 0.98, 0.01, 0.01)] * 995 + [Judged(1.0, 3.0, 0.01, 0.01)] * 5, {}, "thin_support", True),
    ],
)
def test_it_refuses_with_a_reason(decisions: list[Judged], left_out: dict[str, int], code: str, answered: bool) -> None:
    found = shadow_of(decisions)
    found.left_out.update(left_out)
    said = estimates(found, (0.0, 1.0))
    assert said["refusal"]["code"] == code
    assert said["dr"] is None
    assert (said["ips"] is not None) == answered, "its intervals need no support"
    assert said["says"] == f"nothing can be said: {said['refusal']['why']}"
