"""Estimates what a target policy would have got, from decisions that another policy made.

Axes: **B** decisions, **k** places of a slate. Rewards are shares of the loop's reward range, as policies see them.

Every estimator is a ratio of two sums over the decisions, Σ numerator / Σ denominator. It returns both parts (`Terms`),
because intervals are made from them. w is the importance weight π(a|x) / p: target's probability of the logged item
over the propensity in the log. q is a model's prediction of the reward.

| estimator | numerator | denominator | bias |
|---|---|---|---|
| on-policy | r | 1 | none, of the policy that made the log |
| IPS | w r | 1 | none |
| clipped IPS | min(w, M) r | 1 | downward |
| SNIPS | w r | w | of order 1 / B |
| DM | Σₐ π(a) q(a) | 1 | that of the model |
| DR | Σₐ π(a) q(a) + w (r - q) | 1 | none |
| SWITCH-DR | Σₐ π(a) q(a) + w 1{w ≤ M} (r - q) | 1 | of the model where w > M |

Sources: Horvitz & Thompson 1952 (IPS); Swaminathan & Joachims 2015, "The self-normalized estimator for counterfactual
learning" (SNIPS); Dudík, Langford & Li 2011 (DM, DR); Wang, Agarwal & Dudík 2017, section 4 (SWITCH); Ionides 2008,
"Truncated importance sampling" (M = √B). Slates: Li et al. 2018 (item-position), McInerney et al. 2020 (cascade).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np

from service.policies import Array


@dataclass(frozen=True)
class Evidence:
    """What the log and a target say about B decisions, in the order in which they were made.

    Raises:
        ValueError: the arrays differ in length, are empty or not finite, or a probability lies outside its range.
    """

    reward: Array  # (B,) float64
    propensity: Array  # (B,) in (0, 1]: of the logged item, under the policy that served
    target: Array  # (B,) in [0, 1]: of the same item, under the target
    predicted: Array  # (B,): model's reward of the logged item
    expected: Array  # (B,): model's reward, Σₐ π(a) q(a) over the candidates
    least: Array  # (B,) in [0, 1]: no candidate of the decision had a smaller propensity; 0: unknown
    user: Array  # (B,) int64: decisions of the same user have the same number

    def __post_init__(self) -> None:
        size = len(self.reward)
        for field in fields(self):
            array = getattr(self, field.name)
            if array.shape != (size,) or size == 0:
                raise ValueError(f"{field.name}: shape {array.shape}, expected ({max(size, 1)},)")
            if not np.isfinite(array).all():
                raise ValueError(f"{field.name}: not finite")
        for name in ("propensity", "target", "least"):
            array = getattr(self, name)
            if array.min() < 0 or array.max() > 1 + 1e-6:  # sums of probabilities are rounded
                raise ValueError(f"{name}: outside [0, 1]")
        if self.propensity.min() <= 0:
            raise ValueError("propensity: an item was drawn that could not be drawn")

    @property
    def weight(self) -> Array:
        """The importance weights (B,)."""
        weight: Array = self.target / self.propensity
        return weight


class Terms(NamedTuple):
    """The two parts of an estimate, decision by decision."""

    numerator: Array  # (B,)
    denominator: Array  # (B,)

    @property
    def estimate(self) -> float:
        """Σ numerator / Σ denominator; nan where the target never chooses what was logged."""
        total = self.denominator.sum()
        return float(self.numerator.sum() / total) if total != 0 else math.nan


def on_policy(evidence: Evidence) -> Terms:
    """Take the mean of the logged rewards."""
    return _mean(evidence.reward)


def ips(evidence: Evidence) -> Terms:
    """Weight each reward by how much more often the target would have chosen its item."""
    return _mean(evidence.weight * evidence.reward)


def clipped_ips(evidence: Evidence, *, most: float | None = None) -> Terms:
    """Like `ips`, with no weight above `most`; None: √B."""
    return _mean(np.minimum(evidence.weight, _most(evidence, most)) * evidence.reward)


def snips(evidence: Evidence) -> Terms:
    """Like `ips`, divided by the sum of the weights."""
    return Terms(evidence.weight * evidence.reward, evidence.weight)


def direct(evidence: Evidence) -> Terms:
    """Take the model's word for what the target would have got."""
    return _mean(evidence.expected)


def doubly_robust(evidence: Evidence) -> Terms:
    """Take the model's word, and correct it by its weighted errors on the logged items."""
    return _mean(evidence.expected + evidence.weight * (evidence.reward - evidence.predicted))


def switch_dr(evidence: Evidence, *, most: float | None = None) -> Terms:
    """Like `doubly_robust`, without the corrections whose weight is above `most`; None: √B."""
    weight = np.where(evidence.weight <= _most(evidence, most), evidence.weight, 0.0)
    return _mean(evidence.expected + weight * (evidence.reward - evidence.predicted))


def item_position(reward: Array, propensity: Array, target: Array) -> Terms:
    """Estimate a slate's reward where each place's reward depends on its item alone (Li et al. 2018, section 4).

    Args:
        reward: (B, k).
        propensity, target: (B, k), of the item at its place, whatever stands at the others.
    """
    return _mean((target / propensity * reward).sum(axis=1))


def cascade(reward: Array, propensity: Array, target: Array) -> Terms:
    """Estimate a slate's reward where it depends on the places before, too (McInerney et al. 2020, equations 3 and 4).

    Args:
        reward: (B, k).
        propensity, target: (B, k), of the item at its place, given the places before: what the log holds.
    """
    return _mean((np.cumprod(target / propensity, axis=1) * reward).sum(axis=1))


ESTIMATORS: dict[str, Callable[[Evidence], Terms]] = {
    "ips": ips,
    "clipped-ips": clipped_ips,
    "snips": snips,
    "dm": direct,
    "dr": doubly_robust,
    "switch-dr": switch_dr,
}

MODELLED = ("dm", "dr", "switch-dr")  # those that use a model of the rewards


def _mean(values: Array) -> Terms:
    return Terms(values, np.ones_like(values))


def _most(evidence: Evidence, most: float | None) -> float:
    return math.sqrt(len(evidence.reward)) if most is None else most
