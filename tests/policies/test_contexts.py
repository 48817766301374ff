"""Checks that policies learn which of two items is the better one in which of two contexts."""

from __future__ import annotations

import numpy as np
import pytest

from service.policies import KINDS
from tests.builders import batch_of, pmf_of


@pytest.mark.parametrize("kind", ["adaptive", "lin_ts", "linucb", "linucb_hybrid", "squarecb"])
def test_chooses_the_better_item_of_each_context(kind: str) -> None:
    """Each item is good (.9) in one context. After 200 of 400 choices, nine in ten must be right."""
    rng = np.random.default_rng(0)
    policy = KINDS[kind](4, KINDS[kind].Params())
    right = 0
    for step in range(400):
        context = int(rng.integers(2))
        x = np.eye(4)[2 * context : 2 * context + 2]
        pick = int(rng.choice(2, p=pmf_of(policy, x, ["a", "b"])))
        click = float(rng.random() < (0.9 if pick == context else 0.1))
        policy.update(batch_of(x[pick : pick + 1], click, "ab"[pick]))
        right += step >= 200 and pick == context
    assert right > 180
