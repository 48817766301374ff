"""Which rival the evidence speaks for."""

from __future__ import annotations

import numpy as np
import pytest

from service.learn.change.cusum import ARMED_EVENTS, IMPATIENT, Cusum, log_ratio


def armed(rivals: int = 3) -> Cusum:
    """Make one that has seen every second event rewarded, as expected."""
    cusum = Cusum(rivals)
    for number in range(2 * ARMED_EVENTS):
        cusum.observe(0.5, float(number % 2))
    assert cusum.alarm is None
    return cusum


@pytest.mark.parametrize("rival", [IMPATIENT, 1, 2])
def test_the_model_that_predicts_better_is_named(rival: int) -> None:
    cusum = armed()
    ratios = tuple(0.1 * (number == rival) for number in range(3))
    for number in range(200):
        cusum.observe(0.5, float(number % 2), ratios)
    assert cusum.alarm == rival


def test_a_decline_comes_before_the_successor_and_a_former_model_before_both() -> None:
    cusum = armed()
    for number in range(400):
        cusum.observe(0.5, float(number % 10 == 0), (0.2, 0.0, 0.0))
    assert cusum.alarm == -1
    for number in range(400):
        cusum.observe(0.5, float(number % 10 == 0), (0.2, 0.1, 0.1))
    assert cusum.alarm == 2


def test_evidence_counts_once_there_is_enough_to_know_what_to_expect() -> None:
    cusum = Cusum(1)
    for number in range(ARMED_EVENTS - 1):
        cusum.observe(0.5, float(number % 2), (1.0,))
    assert cusum.alarm is None


@pytest.mark.parametrize(("rival", "alarm"), [(IMPATIENT, IMPATIENT), (1, None)])
def test_a_lucky_streak_of_a_former_model_does_not_count_by_itself(rival: int, alarm: int | None) -> None:
    """What spoke against it just before counts, too; against the successor, evidence begins anew at every event."""
    cusum = armed()
    for streak in [-1.0] * 40 + [1.0] * 14:
        cusum.observe(0.5, 0.5, tuple(streak * (number == rival) for number in range(3)))
    assert cusum.alarm == alarm


def test_after_a_restart_nothing_is_known() -> None:
    cusum = armed()
    for number in range(200):
        cusum.observe(0.5, float(number % 2), (0.2, 0.2, 0.2))
    assert cusum.alarm is not None
    cusum.restart()
    assert cusum.alarm is None
    assert not cusum.state().any()


def test_the_log_ratio_of_certainties_is_finite() -> None:
    ratio = log_ratio(np.array([0.0, 1.0, 0.3]), np.array([1.0, 0.0, 0.3]), np.array([1.0, 0.0, 0.5]))
    assert np.isfinite(ratio).all()
    assert (ratio[:2] > 5).all()
    assert ratio[2] == 0
