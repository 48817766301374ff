"""Comparisons: what is said, with which uncertainty, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from service.evaluate.comparison import (
    INTERVALS,
    Comparison,
    Refusal,
    compare,
    propensity_refusal,
    ranked,
    together,
)
from service.evaluate.estimators import ESTIMATORS, Evidence
from service.evaluate.propensities import PropensityCheck
from tests.evaluate.builders import evidence_of, simulate

RATES, UNIFORM, BEST = [0.1, 0.2, 0.6], [1 / 3] * 3, [0.05, 0.05, 0.9]


def log_of(B: int = 2000, *, seed: int = 0) -> Evidence:
    return simulate(np.random.default_rng(seed), B, rates=RATES, behaviour=UNIFORM, target=BEST).evidence


def compared(evidence: Evidence, estimator: str = "ips", interval: str = "bootstrap") -> Comparison:
    found = compare(evidence, estimator=estimator, interval=interval, confidence=0.95)
    assert isinstance(found, Comparison), found
    return found


def refused(evidence: Evidence, interval: str = "bootstrap") -> Refusal:
    found = compare(evidence, estimator="ips", interval=interval, confidence=0.95)
    assert not isinstance(found, Comparison)
    return found[0]


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_better_target_is_found_better(estimator: str) -> None:
    found = compared(log_of(), estimator)
    truth = np.dot(BEST, RATES) - np.dot(UNIFORM, RATES)
    assert found.difference.low > 0
    assert abs(found.difference.estimate - truth) < 0.06
    assert found.difference.estimate == pytest.approx(found.target.estimate - found.logged.estimate)
    assert (found.settled, found.missing) == (True, 0)


@pytest.mark.parametrize("interval", INTERVALS)
def test_every_interval_holds_the_truth_and_is_in_order(interval: str) -> None:
    found = compared(log_of(), interval=interval)
    truths = [np.dot(UNIFORM, RATES), np.dot(BEST, RATES)]
    for part, truth in zip(
        found[:3] if isinstance(found, tuple) else (found.logged, found.target), truths, strict=True
    ):
        assert part.low <= truth <= part.high
        assert part.low <= part.estimate <= part.high


def test_intervals_that_hold_for_more_are_wider() -> None:
    widths = {interval: compared(log_of(), interval=interval).difference.half_width for interval in INTERVALS}
    assert widths["bootstrap"] < widths["anytime"] < 3 * widths["bootstrap"]
    assert widths["bootstrap"] < widths["bernstein"]


def test_the_difference_of_a_target_that_does_the_same_is_zero() -> None:
    log = log_of()
    same = replace(log, target=log.propensity)
    for interval in INTERVALS:
        found = compared(same, interval=interval)
        assert found.difference.estimate == 0
        assert found.difference.low <= 0 <= found.difference.high
        assert (found.settled, found.missing) == (False, None)


def test_what_is_missing_shrinks_as_the_log_grows() -> None:
    """A difference of .01: a short log cannot tell, and says about how much more it takes."""
    behaviour, target = [0.5, 0.5], [0.4, 0.6]
    rng = np.random.default_rng(1)
    short = compared(simulate(rng, 400, rates=[0.45, 0.55], behaviour=behaviour, target=target).evidence)
    long = compared(simulate(rng, 8000, rates=[0.45, 0.55], behaviour=behaviour, target=target).evidence)
    assert not short.settled
    assert short.missing is not None
    assert short.missing > 0
    assert long.settled


def test_few_decisions_or_users_are_refused() -> None:
    assert refused(log_of(49)).code == "thin_support"
    few = replace(log_of(), user=np.arange(2000) % 49)
    assert "49 users" in refused(few).why


def test_thin_support_is_refused() -> None:
    rng = np.random.default_rng(0)
    log = simulate(rng, 2000, rates=RATES, behaviour=[0.98, 0.01, 0.01], target=[0.0, 0.0, 1.0])
    found = refused(log.evidence)
    assert found.code == "thin_support"
    assert "exploration_floor" in found.why


def test_choices_that_could_not_be_drawn_are_refused_where_there_was_no_floor() -> None:
    rng = np.random.default_rng(0)
    log = simulate(rng, 2000, rates=RATES, behaviour=[0.5, 0.5, 0.0], target=[0.4, 0.4, 0.2])
    assert "20%" in refused(log.evidence).why.replace("19%", "20%").replace("21%", "20%")
    assert "exploration_floor" in refused(log.evidence).why


def test_a_handful_of_decisions_does_not_make_an_interval() -> None:
    rewards = np.zeros(1000)
    rewards[:2] = 1.0
    log = evidence_of(rewards, np.where(rewards > 0, 0.05, 0.5), 0.5)
    assert "handful" in refused(log).why
    assert compared(log, interval="anytime").target.low >= 0


def test_without_a_floor_there_is_no_bernstein_bound() -> None:
    log = replace(log_of(), least=np.zeros(2000))
    assert refused(log, "bernstein").code == "no_interval"


@pytest.mark.parametrize(
    ("estimator", "interval", "why"),
    [
        ("magic", "bootstrap", "there is no estimator"),
        ("ips", "magic", "there is no interval"),
        ("dr", "anytime", "is for the estimator 'ips'"),
    ],
)
def test_names_that_do_not_fit_are_refused(estimator: str, interval: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        compare(log_of(), estimator=estimator, interval=interval, confidence=0.95)


def test_the_diagnostics_are_those_of_the_formulas() -> None:
    log = evidence_of([1.0, 0.0, 1.0, 0.0] * 50, 0.5, [1.0, 0.5, 0.25, 0.25] * 50)
    found = compared(log).diagnostics
    weight = np.array([2.0, 1.0, 0.5, 0.5] * 50)
    assert (found.decisions, found.users, found.mean_weight, found.unsupported) == (200, 200, 1.0, 0.0)
    assert found.effective == pytest.approx(weight.sum() ** 2 / (weight**2).sum())
    assert found.largest == (2.0,) * 5


def test_several_comparisons_at_once_need_more_confidence_each() -> None:
    assert together(0.95, 1) == pytest.approx(0.95)
    assert together(0.95, 5) == pytest.approx(0.99)


def test_the_best_stands_first() -> None:
    better, same = compared(log_of()), compared(replace(log_of(), target=log_of().propensity))
    assert [name for name, _ in ranked([("same", same), ("better", better)])] == ["better", "same"]


def test_a_log_that_was_not_drawn_as_it_says_is_refused() -> None:
    honest, liar = PropensityCheck(1000, 1.01, 0.02), PropensityCheck(1000, 1.3, 0.02)
    assert propensity_refusal({"a": honest}) is None
    found = propensity_refusal({"a": honest, "b": liar})
    assert found is not None
    assert "'b'" in found.why
