"""The check of logged propensities: it passes on honest logs, and fails on those that were not drawn from."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from service.evaluate.propensities import PropensityCheck, PropensityChecker
from service.records import Entry, Event, Note, Training, Unreadable
from tests.builders import event_of


def drawn(
    pmf: list[float], size: int, *, policy: str = "p", seed: int = 0, claim: list[float] | None = None
) -> list[Event]:
    """Draw events from a pmf over candidates, and log the probabilities of `claim` for them."""
    told = claim or pmf
    found = np.random.default_rng(seed).choice(len(pmf), size, p=pmf)
    events = [replace(event_of(), n=len(pmf), propensity=p, policy=policy) for p in told]
    return [events[item] for item in found]


def check(events: list[Event], *, floor: float = 0.1, confidence: float = 0.99) -> PropensityCheck:
    checker = PropensityChecker(floor)
    checker.add(events)
    [found] = checker.result(confidence=confidence).values()
    return found


def test_the_figures_are_those_of_the_formula() -> None:
    events = [replace(event_of(n), n=4, propensity=p, policy="p") for n, p in enumerate([0.25, 0.5, 0.125])]
    above = check(events, confidence=0.95)
    weights = np.array([1.0, 0.5, 2.0])
    assert above.decisions == 3
    assert above.mean == pytest.approx(weights.mean())
    assert above.half_width == pytest.approx(1.959964 * weights.std(ddof=1) / np.sqrt(3), rel=1e-6)
    assert above.passed
    below = check(events[:2], confidence=0.95)
    assert below.mean == pytest.approx(0.75)
    assert below.half_width == pytest.approx(1.959964 * np.sqrt((1 / 0.1 - 1) / 2), rel=1e-6)


@pytest.mark.parametrize("n", [4, 50])
@pytest.mark.parametrize("size", [7, 50, 300, 5000])
def test_short_logs_of_a_greedy_policy_do_not_fail(n: int, size: int) -> None:
    """Few of its draws explore, and no log is to blame for those that it had not yet."""
    floor = 0.01
    pmf = [1 - floor + floor / n] + [floor / n] * (n - 1)
    passed = sum(check(drawn(pmf, size, seed=seed), floor=floor).passed for seed in range(50))
    assert passed >= 48


def test_without_a_floor_a_mean_below_1_is_no_evidence() -> None:
    """Items that a policy never draws are missing from the sum."""
    found = check(drawn([1.0, 0.0], 100), floor=0.0)
    assert (found.mean, found.passed) == (0.5, True)
    assert not check(drawn([0.5, 0.5], 1000, claim=[0.25, 0.25]), floor=0.0).passed


@pytest.mark.parametrize("pmf", [[0.25] * 4, [0.91, 0.03, 0.03, 0.03], [0.5, 0.3, 0.15, 0.05], [1.0]])
def test_honest_logs_pass_as_often_as_the_confidence_says(pmf: list[float]) -> None:
    """Of 100 logs at 95 %, fewer than 86 pass with a probability of 0.0003 (binomial)."""
    passed = sum(check(drawn(pmf, 2000, seed=seed), confidence=0.95).passed for seed in range(100))
    assert passed >= 86


@pytest.mark.parametrize(
    ("pmf", "claim"),
    [
        ([0.25] * 4, [0.91, 0.03, 0.03, 0.03]),  # uniform, and the policy's pmf was logged
        ([0.91, 0.03, 0.03, 0.03], [0.5, 0.2, 0.2, 0.1]),
        ([0.7, 0.1, 0.1, 0.1], [0.6775, 0.1075, 0.1075, 0.1075]),  # the floor was mixed in after the draw
    ],
)
def test_logs_that_were_not_drawn_from_fail(pmf: list[float], claim: list[float]) -> None:
    assert not check(drawn(pmf, 100_000, claim=claim)).passed


def test_a_claim_of_one_in_n_cannot_be_seen() -> None:
    """1 / (n p) is then 1 for every event, whatever was drawn; the replay of decisions finds that out."""
    found = check(drawn([0.97, 0.01, 0.01, 0.01], 1000, claim=[0.25] * 4))
    assert (found.mean, found.half_width, found.passed) == (1.0, 0.0, True)


def test_each_policy_is_checked_by_itself() -> None:
    checker = PropensityChecker(0.1)
    checker.add(drawn([0.5, 0.5], 1000, policy="honest"))
    checker.add(drawn([0.5, 0.5], 1000, policy="liar", claim=[0.3, 0.3]))
    assert {name: found.passed for name, found in checker.result().items()} == {"honest": True, "liar": False}


def test_what_was_not_drawn_here_is_passed_over() -> None:
    imported = replace(event_of(0), n=None, propensity=0.001)
    others: list[Entry] = [imported, Note("1-0"), Training("2-0", "p", None), Unreadable("3-0", "why")]
    checker = PropensityChecker(0.1)
    checker.add(others)
    assert checker.result() == {}


def test_one_event_is_no_evidence_against_a_log_of_certainties() -> None:
    assert check(drawn([1.0], 1)).passed
