"""Builds what tests need, with defaults, so that a test states only what it is about.

The first part imports `service.policies` only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from service.policies import Arrays, Batch, Candidates, Policy, Scorer

Array = NDArray[Any]


def batch_of(
    x: ArrayLike | None = None,
    reward: ArrayLike = 0.0,
    item: str | Sequence[str] = "a",
    *,
    user: str | Sequence[str | None] | None = None,
    propensity: ArrayLike = 1.0,
) -> Batch:
    """Build a batch. A single item, user, reward or propensity is that of every event.

    Args:
        x: (B, d); left out, one column of zeros.
    """
    if x is None:
        x = np.zeros((max(np.size(reward), 1 if isinstance(item, str) else len(item)), 1))
    rows = np.asarray(x, dtype=np.float32)
    B = len(rows)
    return Batch(
        x=rows,
        item=[item] * B if isinstance(item, str) else list(item),
        user=[user] * B if user is None or isinstance(user, str) else list(user),
        reward=np.broadcast_to(np.asarray(reward, dtype=np.float64), B).copy(),
        propensity=np.broadcast_to(np.asarray(propensity, dtype=np.float64), B).copy(),
    )


def candidates_of(x: ArrayLike, item: str | Sequence[str] | None = None, *, user: str | None = None) -> Candidates:
    """Build candidates from x (n, d). Their ids are item-0, item-1, … unless given; a single id is that of all."""
    rows = np.asarray(x, dtype=np.float32)
    if item is None:
        return Candidates(rows, [f"item-{i}" for i in range(len(rows))], user)
    return Candidates(rows, [item] * len(rows) if isinstance(item, str) else list(item), user)


def scorer_of(policy: Policy[Any], snapshot: Arrays | None = None) -> Scorer:
    """Build the scorer of a policy, from its present snapshot unless one is given."""
    return type(policy).scorer(policy.snapshot() if snapshot is None else snapshot, d=policy.d, params=policy.params)


def estimates_of(
    policy: Policy[Any], x: ArrayLike, item: str | Sequence[str] | None = None, *, user: str | None = None
) -> Array:
    """Compute the estimates (n, s) of candidates x (n, d) as the policy's present snapshot serves them."""
    return scorer_of(policy).estimate(candidates_of(x, item, user=user))


def pmf_of(
    policy: Policy[Any], x: ArrayLike, item: str | Sequence[str] | None = None, *, user: str | None = None
) -> Array:
    """Compute the probabilities (n,) of candidates x (n, d) as the policy's present snapshot serves them."""
    scorer = scorer_of(policy)
    return scorer.pmf(scorer.estimate(candidates_of(x, item, user=user)))


def parts_of(batch: Batch, size: int) -> list[Batch]:
    """Cut a batch into batches of `size` events; the last may be shorter."""
    return [Batch(*(column[at : at + size] for column in batch)) for at in range(0, len(batch.item), size)]
