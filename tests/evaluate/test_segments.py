"""Segments: every decision is in one, the frequent levels by themselves."""

from __future__ import annotations

import numpy as np

from service.evaluate.segments import MOST, divided, segments_of
from tests.evaluate.builders import evidence_of


def test_frequent_levels_are_segments_and_the_others_are_one() -> None:
    """Of equally frequent levels those that come first in the alphabet are taken. 1, 1.0 and "1" are one level."""
    contexts = [{"page": {"n": n}} for n in range(MOST + 2)] + [{"page": {"n": n}} for n in (3.0, "3")]
    found = segments_of([*contexts, {}, {"page": {"n": None}}, {"page": 7}], "page.n")
    assert found.count("page.n = 3") == 3
    assert found.count("other page.n") == 2
    assert found.count("no page.n") == 3
    assert len(set(found)) == MOST + 2
    assert segments_of([{"a": "no a"}, {"a": "other"}, {}], "a") == ["a = no a", "a = other", "no a"]


def test_evidence_is_divided_without_loss() -> None:
    whole = evidence_of(np.arange(5) / 5, user=[3, 3, 4, 5, 5])
    parts = divided(whole, ["b", "a", "b", "a", "a"])
    assert list(parts) == ["a", "b"]
    assert parts["a"].reward.tolist() == [0.2, 0.6, 0.8]
    assert parts["b"].user.tolist() == [3, 4]
