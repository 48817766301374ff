"""Estimators: equal to the Open Bandit Pipeline's, exact where the answer is known, and unbiased."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from service.evaluate.estimators import (
    ESTIMATORS,
    Evidence,
    cascade,
    clipped_ips,
    direct,
    doubly_robust,
    ips,
    item_position,
    on_policy,
    snips,
    switch_dr,
)
from service.policies import Array
from tests.evaluate.builders import evidence_of, simulate

OBP = json.loads(Path(__file__).with_name("obp.json").read_text())  # written by make_obp.py, with obp 0.5.7


def evidence_in(problem: dict[str, Any]) -> Evidence:
    """Build the evidence of a problem that OBP was given."""
    action, target, model = (np.array(problem[name]) for name in ("action", "target", "model"))
    row = np.arange(len(action))
    return evidence_of(
        problem["reward"],
        problem["propensity"],
        target[row, action],
        predicted=model[row, action],
        expected=(target * model).sum(axis=1),
    )


@pytest.mark.parametrize("number", range(20))
def test_estimates_are_those_of_the_open_bandit_pipeline(number: int) -> None:
    problem = OBP["problems"][number]
    evidence = evidence_in(problem)
    reward, slate = np.array(problem["slate_reward"]), np.array(problem["slate"])
    ours = {
        "ips": ips(evidence),
        "clipped-ips": clipped_ips(evidence, most=OBP["most"]),
        "snips": snips(evidence),
        "dm": direct(evidence),
        "dr": doubly_robust(evidence),
        "switch-dr": switch_dr(evidence, most=OBP["most"]),
        "item-position": item_position(reward, slate[0], slate[1]),
        "cascade": cascade(reward, slate[2], slate[3]),
    }
    assert {name: terms.estimate for name, terms in ours.items()} == pytest.approx(problem["estimates"], abs=1e-9)


def test_the_reference_is_of_one_known_version() -> None:
    assert OBP["obp"] == "0.5.7"
    assert len(OBP["problems"]) == 20


probabilities = st.floats(0.01, 1.0)


@st.composite
def some_evidence(draw: st.DrawFn) -> Evidence:
    B = draw(st.integers(1, 30))

    def column(elements: st.SearchStrategy[float]) -> Array:
        return draw(arrays(np.float64, B, elements=elements))

    shares = st.floats(0, 1)
    return evidence_of(
        column(shares),
        column(probabilities),
        column(shares),
        predicted=column(shares),
        expected=column(shares),
    )


def changed(evidence: Evidence, **parts: Any) -> Evidence:
    return evidence_of(
        evidence.reward,
        evidence.propensity,
        parts.get("target", evidence.target),
        predicted=parts.get("predicted", evidence.predicted),
        expected=parts.get("expected", evidence.expected),
    )


@given(some_evidence())
def test_a_target_that_chooses_as_the_log_did_gets_the_mean_of_the_log(evidence: Evidence) -> None:
    same = changed(evidence, target=evidence.propensity)
    mean = evidence.reward.mean()
    assert on_policy(same).estimate == mean
    for estimator in (ips, clipped_ips, snips):
        assert estimator(same).estimate == pytest.approx(mean, abs=1e-12)


@given(some_evidence())
def test_with_a_model_that_expects_nothing_dr_is_ips(evidence: Evidence) -> None:
    nothing = changed(evidence, predicted=0.0, expected=0.0)
    assert doubly_robust(nothing).estimate == pytest.approx(ips(nothing).estimate, abs=1e-12)
    assert direct(nothing).estimate == 0


@given(some_evidence())
def test_with_a_model_that_knows_the_rewards_dr_is_dm(evidence: Evidence) -> None:
    knowing = changed(evidence, predicted=evidence.reward)
    assert doubly_robust(knowing).estimate == pytest.approx(direct(knowing).estimate, abs=1e-9)


@given(some_evidence())
def test_clips_that_clip_nothing_and_everything(evidence: Evidence) -> None:
    assert clipped_ips(evidence, most=math.inf).estimate == ips(evidence).estimate
    assert switch_dr(evidence, most=math.inf).estimate == doubly_robust(evidence).estimate
    assert clipped_ips(evidence).estimate <= ips(evidence).estimate + 1e-12
    unchosen = changed(evidence, target=np.maximum(evidence.target, 1e-6))
    assert switch_dr(unchosen, most=0.0).estimate == direct(unchosen).estimate


def test_a_target_that_never_chooses_what_was_logged_has_no_snips() -> None:
    assert math.isnan(snips(evidence_of([1.0, 0.0], target=0.0)).estimate)


@pytest.mark.parametrize("name", ["ips", "snips", "dr"])
def test_the_mean_over_many_logs_is_the_truth(name: str) -> None:
    rng = np.random.default_rng(3)
    rates, behaviour, target = [0.1, 0.3, 0.6], [0.7, 0.2, 0.1], [0.1, 0.1, 0.8]
    logs = [
        simulate(rng, 400, rates=rates, behaviour=behaviour, target=target, model=[0.5, 0.1, 0.4]) for _ in range(400)
    ]
    found = np.array([ESTIMATORS[name](log.evidence).estimate for log in logs])
    assert abs(found.mean() - logs[0].value) < 4 * found.std() / math.sqrt(len(found))


def test_the_model_s_word_alone_is_as_wrong_as_the_model() -> None:
    rng = np.random.default_rng(3)
    log = simulate(rng, 100, rates=[0.1, 0.6], behaviour=[0.5, 0.5], target=[0.0, 1.0], model=[0.1, 0.9])
    assert direct(log.evidence).estimate == pytest.approx(0.9)


@pytest.mark.parametrize(
    ("parts", "why"),
    [
        ({"reward": []}, "reward: shape"),
        ({"reward": [0.0, math.nan]}, "reward: not finite"),
        ({"propensity": [0.5, 0.0]}, "propensity: an item was drawn that could not be drawn"),
        ({"propensity": [0.5, 1.1]}, r"propensity: outside \[0, 1\]"),
        ({"target": [-0.1, 0.5]}, r"target: outside \[0, 1\]"),
        ({"user": [1, 2, 3]}, "user: shape"),
    ],
)
def test_evidence_that_cannot_be_is_refused(parts: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        evidence_of(**{"reward": [0.0, 1.0], **parts})
