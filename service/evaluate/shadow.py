"""Estimates, decision by decision, what a policy in the shadow would have got, beside what served.

A shadow is asked about a logged decision by what it knew before that decision was made: its propensity of the logged
item then is a function of the past alone. So each decision's weighted reward has the mean that the shadow would have
got there, given all that was before, and intervals that hold at any time need nothing else: no independent users, and
no policies that stand still (progressive validation: Blum, Kalai & Langford 1999; sequences of off-policy terms:
Waudby-Smith et al. 2022, "Anytime-valid off-policy inference for contextual bandits").

What is kept of a shadow is two rows of sums. A row begins every `HALF` decisions, and the older goes then: so an
estimate is of the last `HALF` to 2 `HALF` decisions that were judged.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np

from service.evaluate.comparison import FEWEST, MOST_SKEWED, Refusal
from service.evaluate.intervals import Interval, RunningBound
from service.evaluate.sequential import half_width, planned_for
from service.policies import Array

HALF = 10_000  # judged decisions after which a new row of sums begins
ERROR = 0.05  # probability that an interval fails at any look
PLANNED = planned_for(0.02, error=ERROR)  # intervals of DR are narrowest for differences of 2 % of the reward range
LEAST_WEIGHT = 0.8  # mean weight, of which 1 is expected, below which the shadow's choices were not seen

# Sums over the decisions of a row.
REWARD, WEIGHT, WEIGHTED, ROBUST, GAIN, WEIGHT_2, ROBUST_2, GAIN_2, OFF_2, OFF_3, WRONG_2, WRONG_3 = range(12)
BOUNDS = (0.0, 0.0, 0.0, 0.0, -1.0, -1.0)  # least terms of r, 1 - r, w r, w (1 - r), (w - 1) r, (w - 1) (1 - r)

WHY = {
    "slates": ("they are of several items", "a shadow is judged in a loop that asks for one item at a time"),
    "gone": ("they are no longer in the ledger", "raise the loop's ledger_time"),
    "catalogue": ("their catalogue is no longer kept, or has too many items", "judge it by `rebound evaluate`"),
    "outside": ("their rewards are outside the loop's range of now", "wait for those that are logged from now on"),
}


class Judged(NamedTuple):
    """A settled decision as a shadow saw it. Rewards are shares of the loop's reward range."""

    reward: float  # in [0, 1]
    weight: float  # the shadow's probability of the logged item over its propensity
    predicted: float  # the reward that the shadow expected of that item
    expected: float  # the reward that it expected of its own choice


class Row:
    """Sums over decisions from one of them on."""

    def __init__(self) -> None:
        self.decisions = 0
        self.largest = 0.0  # weight
        self._sums: Array = np.zeros(12)
        self._bounds = [RunningBound(least) for least in BOUNDS]

    def add(self, one: Judged) -> None:
        """Add a decision."""
        reward, weight, predicted, expected = one
        robust = expected + weight * (reward - predicted)
        gain, off, wrong = robust - reward, abs(weight - 1), abs(reward - predicted)
        self.decisions += 1
        self.largest = max(self.largest, weight)
        self._sums += (
            *(reward, weight, weight * reward, robust, gain, weight**2, robust**2, gain**2),
            *(off**2, off**3, wrong**2, wrong**3),
        )
        rest = 1 - reward
        terms = (reward, rest, weight * reward, weight * rest, (weight - 1) * reward, (weight - 1) * rest)
        for bound, term in zip(self._bounds, terms, strict=True):
            bound.add(term)

    def mean(self, column: int) -> float:
        """Return the mean of a column."""
        return float(self._sums[column]) / self.decisions

    @property
    def effective(self) -> float:
        """Effective sample size (Σ w)² / Σ w²."""
        squares = float(self._sums[WEIGHT_2])
        return float(self._sums[WEIGHT]) ** 2 / squares if squares > 0 else 0.0

    @property
    def skewed(self) -> float:
        """Skewness over √B of weighted errors, as if weights and errors were independent (see `comparison.py`)."""
        second = self.mean(OFF_2) * self.mean(WRONG_2)
        third = self.mean(OFF_3) * self.mean(WRONG_3)
        return 0.0 if second < 1e-24 else third / second**1.5 / math.sqrt(self.decisions)

    def anytime(self) -> tuple[Interval, Interval, Interval]:
        """Return the intervals of what served, of the shadow and of the difference, by IPS; see `lower_sequence`."""
        low = [bound.low(error=ERROR / 2) for bound in self._bounds]
        served = Interval(self.mean(REWARD), max(low[0], 0.0), min(1 - low[1], 1.0))
        shadow, gain = self.mean(WEIGHTED), self.mean(WEIGHTED) - self.mean(REWARD)
        return (
            served,
            Interval(shadow, min(shadow, max(low[2], 0.0)), max(shadow, min(1 - low[3], 1.0))),
            Interval(gain, min(gain, max(low[4], -1.0)), max(gain, min(-low[5], 1.0))),
        )

    def robust(self, column: int, squares: int) -> Interval:
        """Return a mean of DR with an interval that holds at any time, asymptotically; see `half_width`."""
        mean = self.mean(column)
        variance = max(0.0, self.mean(squares) - mean**2) / (self.decisions - 1)
        width = half_width(variance, error=ERROR, planned=PLANNED)
        return Interval(mean, mean - width, mean + width)

    def state(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {
            "decisions": self.decisions,
            "largest": self.largest,
            "sums": self._sums.tolist(),
            "bounds": [bound.state() for bound in self._bounds],
        }

    @classmethod
    def load(cls, state: Mapping[str, Any]) -> Row:
        """Go on from what `state` returned."""
        row = cls()
        row.decisions, row.largest = state["decisions"], state["largest"]
        row._sums = np.array(state["sums"])
        row._bounds = [RunningBound(least, *said) for least, said in zip(BOUNDS, state["bounds"], strict=True)]
        return row


@dataclass
class Shadow:
    """What is known of one policy in the shadow.

    `regime` names all that must stay as it is for an estimate to say something: the policy, its last alarm, what else
    serves. Where it changes, nothing of before counts.
    """

    regime: str
    since: float  # unix seconds: decisions from then on count
    why: str  # it began then
    rows: list[Row] = field(default_factory=lambda: [Row()])  # the older first
    left_out: Counter[str] = field(default_factory=Counter)  # reason (a key of `WHY`) -> decisions

    def add(self, one: Judged) -> None:
        """Add a decision. They come in the order of their settlement."""
        for row in self.rows:
            row.add(one)
        if self.rows[-1].decisions == HALF:
            self.rows = [*self.rows, Row()][-2:]

    def state(self) -> dict[str, Any]:
        """Return it as JSON."""
        rows = [row.state() for row in self.rows]
        return {**asdict(self), "rows": rows, "left_out": dict(self.left_out)}

    @classmethod
    def load(cls, state: Mapping[str, Any]) -> Shadow:
        """Go on from what `state` returned."""
        rows = [Row.load(one) for one in state["rows"]]
        return cls(state["regime"], state["since"], state["why"], rows, Counter(state["left_out"]))


def estimates(shadow: Shadow, reward_range: tuple[float, float]) -> dict[str, Any]:
    """Say what is known of a shadow, as JSON; rewards are in units of the loop.

    Returns:
        `served`, `dr`, `ips` and `snips` as far as they can be told, `refusal` where they cannot, `says` in a sentence.
    """
    row, (low, high) = shadow.rows[0], reward_range
    width = high - low

    def interval(found: Interval, origin: float) -> dict[str, float]:
        return Interval(*(origin + width * end for end in found))._asdict()

    said: dict[str, Any] = {
        "since": shadow.since,
        "why": shadow.why,
        "decisions": row.decisions,
        "effective": row.effective,
        "left_out": dict(shadow.left_out),
        "served": None,
        "dr": None,
        "ips": None,
        "snips": None,
    }
    if row.decisions < FEWEST:
        return {**said, **_refused(_few(shadow))}
    served, reward, difference = row.anytime()
    said["served"] = interval(served, low)
    said["ips"] = {"reward": interval(reward, low), "difference": interval(difference, 0.0)}
    if (refusal := _thin(row)) is not None:
        return {**said, **_refused(refusal)}
    gain = row.robust(GAIN, GAIN_2)
    said["dr"] = {"reward": interval(row.robust(ROBUST, ROBUST_2), low), "difference": interval(gain, 0.0)}
    said["snips"] = low + width * row.mean(WEIGHTED) / row.mean(WEIGHT)
    return {**said, "refusal": None, "says": _says(gain, width)}


def _refused(refusal: Refusal) -> dict[str, Any]:
    return {"refusal": asdict(refusal), "says": f"nothing can be said: {refusal.why}"}


def _few(shadow: Shadow) -> Refusal:
    judged = shadow.rows[0].decisions
    most = max(shadow.left_out, key=lambda one: shadow.left_out[one], default="")
    if shadow.left_out[most] > judged:
        why, to_do = WHY[most]
        return Refusal(most, f"{shadow.left_out[most]:,} decisions were left out: {why}. To do: {to_do}")
    return Refusal("few", f"{judged} settled decisions were judged, and {FEWEST} are the fewest: wait")


def _thin(row: Row) -> Refusal | None:
    if row.effective < FEWEST:
        return Refusal(
            "thin_support",
            f"what served seldom agrees with it: {row.decisions:,} decisions count for {row.effective:.0f}, and"
            f" {FEWEST} are the fewest. Wait, or raise the loop's exploration_floor",
        )
    if row.mean(WEIGHT) < LEAST_WEIGHT:
        return Refusal(
            "thin_support",
            f"{1 - row.mean(WEIGHT):.0%} of its choices have not been shown yet. Wait, or raise the loop's"
            " exploration_floor",
        )
    if row.skewed > MOST_SKEWED:
        return Refusal(
            "thin_support", "a handful of rewards with large weights makes the estimate. Wait for more decisions"
        )
    return None


def _says(gain: Interval, width: float) -> str:
    low, high = width * gain.low, width * gain.high
    if low == high:
        return "it chooses as what served did"
    if low > 0:
        return f"better than what served by {low:.3g} to {high:.3g}"
    if high < 0:
        return f"worse than what served by {-high:.3g} to {-low:.3g}"
    return f"can't tell yet: its reward differs by {low:+.3g} to {high:+.3g}"
