"""What `make bench-compare` calls a change."""

from __future__ import annotations

import math

from tests.benchmarks.test_decision_cost import interval


def test_the_interval_of_a_median_leaves_out_as_many_at_both_ends_as_chance_allows() -> None:
    # P(fewer than 6 of 24 coins show heads) = .0033, fewer than 7: .011
    assert interval([*range(23, -1, -1)]) == (5, 18)


def test_too_few_pairs_say_nothing() -> None:
    assert interval([2.0] * 7) == (-math.inf, math.inf)
    assert interval([2.0] * 8) == (2.0, 2.0)
