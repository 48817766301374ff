"""Builds evidence from arrays, and simulated logs whose truth is known."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from service.evaluate.estimators import Evidence
from service.policies import Array


def evidence_of(
    reward: ArrayLike,
    propensity: ArrayLike = 0.5,
    target: ArrayLike = 0.5,
    *,
    predicted: ArrayLike = 0.0,
    expected: ArrayLike = 0.0,
    least: ArrayLike = 0.01,
    user: ArrayLike | None = None,
) -> Evidence:
    """Build evidence; a single number is that of every decision, and every decision is of another user."""
    rewards = np.asarray(reward, dtype=np.float64)
    B = len(rewards)

    def column(value: ArrayLike) -> Array:
        return np.broadcast_to(np.asarray(value, dtype=np.float64), B).copy()

    return Evidence(
        reward=rewards,
        propensity=column(propensity),
        target=column(target),
        predicted=column(predicted),
        expected=column(expected),
        least=column(least),
        user=np.arange(B) if user is None else np.asarray(user),
    )


class Logged(NamedTuple):
    """A simulated log, and what is true of it."""

    evidence: Evidence
    value: float  # of the target
    logged: float  # of the policy that served


def simulate(
    rng: np.random.Generator,
    B: int,
    *,
    rates: ArrayLike,
    behaviour: ArrayLike,
    target: ArrayLike,
    model: ArrayLike | None = None,
    **changes: Any,
) -> Logged:
    """Draw B decisions among n items with click rates (n,), by one pmf (n,) to be judged for another."""
    q, b, t = (np.asarray(array, dtype=np.float64) for array in (rates, behaviour, target))
    r = q if model is None else np.asarray(model, dtype=np.float64)
    item = rng.choice(len(q), B, p=b)
    reward = (rng.random(B) < q[item]).astype(np.float64)
    evidence = evidence_of(reward, b[item], t[item], predicted=r[item], expected=t @ r, least=b.min(), **changes)
    return Logged(evidence, float(t @ q), float(b @ q))
