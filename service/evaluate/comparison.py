"""Says whether a target would have been better than what served: with its uncertainty, or not at all and why."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from service.evaluate.estimators import ESTIMATORS, MODELLED, Evidence, Terms
from service.evaluate.intervals import Interval, bootstrap, empirical_bernstein, lower_sequence
from service.evaluate.propensities import PropensityCheck
from service.policies import Array

INTERVALS = ("bootstrap", "bernstein", "anytime")
FEWEST = 50  # decisions, users and effective decisions below which nothing is said
# A bootstrap's tails are wrong by about skewness / √B of a standard error (Hall 1992, "The bootstrap and Edgeworth
# expansion", section 3.3). Above this a handful of decisions makes the estimate.
MOST_SKEWED = 0.25


@dataclass(frozen=True)
class Refusal:
    """Why there is no answer, and what to do for one."""

    code: str  # no_decisions | pending | no_propensities | learned_from_them | thin_support | no_interval
    why: str


@dataclass(frozen=True)
class Diagnostics:
    """What the estimate stands on."""

    decisions: int
    users: int
    effective: float  # sample size: (Σ w)² / Σ w²
    mean_weight: float  # 1 is expected where the target's choices could all be drawn
    unsupported: float  # share of the target's mass on items that could not be drawn, estimated; 0 with a floor
    largest: tuple[float, ...]  # weights, the five largest first
    skewed: float  # skewness of weighted rewards / √B; see `_skewed`


@dataclass(frozen=True)
class Comparison:
    """The answer for one target. Rewards are shares of the loop's range until `in_units`."""

    logged: Interval  # what the policies that served got
    target: Interval
    difference: Interval  # target - logged
    diagnostics: Diagnostics

    def in_units(self, low: float, high: float) -> Comparison:
        """Return this comparison in units of rewards that range from low to high."""
        width = high - low

        def placed(one: Interval) -> Interval:
            return Interval(*(low + width * value for value in one))

        difference = Interval(*(width * value for value in self.difference))
        return Comparison(placed(self.logged), placed(self.target), difference, self.diagnostics)

    @property
    def settled(self) -> bool:
        """Whether 0 lies outside the interval of the difference."""
        return self.difference.low > 0 or self.difference.high < 0

    @property
    def missing(self) -> int | None:
        """How many decisions more settle it, about, if the estimate stays; None: more than 100 times those judged.

        Widths fall with 1 / √B.
        """
        effect, width = abs(self.difference.estimate), self.difference.half_width
        if self.settled:
            return 0
        if effect <= width / 10:
            return None
        return max(1, math.ceil(self.diagnostics.decisions * ((width / effect) ** 2 - 1)))


def compare(
    evidence: Evidence, *, estimator: str, interval: str, confidence: float, seed: int = 0
) -> Comparison | tuple[Refusal, Diagnostics]:
    """Compare a target with what served.

    Args:
        estimator: a name of `ESTIMATORS`.
        interval: a name of `INTERVALS`. `bernstein` and `anytime` bound weighted rewards themselves: IPS alone.
        confidence: of each interval, in (0, 1).

    Raises:
        ValueError: there is no such estimator or interval, or these do not go together.
    """
    if estimator not in ESTIMATORS:
        raise ValueError(f"there is no estimator {estimator!r}; there are {', '.join(ESTIMATORS)}")
    if interval not in INTERVALS:
        raise ValueError(f"there is no interval {interval!r}; there are {', '.join(INTERVALS)}")
    if interval != "bootstrap" and estimator != "ips":
        raise ValueError(f"the interval {interval!r} is for the estimator 'ips'; use 'bootstrap' with {estimator!r}")
    terms = ESTIMATORS[estimator](evidence)
    found = diagnose(evidence, modelled=estimator in MODELLED)
    if refusal := _refusal(evidence, found, interval):
        return refusal, found
    return Comparison(*_intervals(evidence, terms, interval, confidence, seed), found)


def diagnose(evidence: Evidence, *, modelled: bool) -> Diagnostics:
    """Say what an estimate stands on. Those that are `modelled` weigh what the model got wrong alone."""
    weight = evidence.weight
    squares = float((weight**2).sum())
    mean = float(weight.mean())
    return Diagnostics(
        decisions=len(weight),
        users=len(np.unique(evidence.user)),
        effective=float(weight.sum() ** 2) / squares if squares > 0 else 0.0,
        mean_weight=mean,
        unsupported=0.0 if evidence.least.min() > 0 else max(0.0, 1.0 - mean),
        largest=tuple(np.sort(weight)[::-1][:5].tolist()),
        skewed=_skewed(weight - 1, evidence.reward - (evidence.predicted if modelled else 0.0)),
    )


def _skewed(weight: Array, rewards: Array) -> float:
    """Return the skewness of the products over √B, as if weights and rewards were independent.

    The skewness of the products themselves is small exactly in logs where the rare large ones are missing. To refuse
    by it would leave the logs whose intervals are wrong.
    """
    moments = [float((np.abs(weight) ** k).mean() * (np.abs(rewards) ** k).mean()) for k in (2, 3)]
    return 0.0 if moments[0] < 1e-24 else moments[1] / moments[0] ** 1.5 / math.sqrt(len(weight))


def _refusal(evidence: Evidence, found: Diagnostics, interval: str) -> Refusal | None:
    fewest = min(found.decisions, found.users)
    if fewest < FEWEST:
        return Refusal(
            "thin_support", f"{found.decisions} decisions of {found.users} users, and {FEWEST} are the fewest: wait"
        )
    if found.effective < FEWEST:
        return Refusal(
            "thin_support",
            f"what was served seldom agrees with it: {found.decisions} decisions count for {found.effective:.0f}, and"
            f" {FEWEST} are the fewest. Wait for more decisions, or raise the loop's exploration_floor",
        )
    if found.unsupported > 0.02:
        return Refusal(
            "thin_support",
            f"{found.unsupported:.0%} of its choices could not be drawn when the log was made. Give the loop an"
            " exploration_floor above 0, and judge what is logged from then on",
        )
    if interval == "bernstein" and evidence.least.min() <= 0:
        return Refusal(
            "no_interval", "weights have no bound where the exploration_floor was 0; use the interval 'anytime'"
        )
    if interval == "bootstrap" and found.skewed > MOST_SKEWED:
        return Refusal(
            "thin_support",
            "a handful of rewards with large weights makes the estimate. Wait for more decisions, or use the interval"
            " 'anytime', which allows for it",
        )
    return None


def _intervals(
    evidence: Evidence, terms: Terms, interval: str, confidence: float, seed: int
) -> tuple[Interval, Interval, Interval]:
    """Return the intervals of what served, of the target, and of the difference."""
    reward, weight = evidence.reward, evidence.weight
    if interval == "bernstein":
        most = float(1 / evidence.least.min())

        def bernstein(terms: Array, least: float, most: float) -> Interval:
            estimate, low, high = empirical_bernstein(terms, least=least, most=most, confidence=confidence)
            return Interval(estimate, low, max(estimate, min(high, 1.0)))  # no mean of rewards is above 1

        return (
            bernstein(reward, 0, 1),
            bernstein(weight * reward, 0, most),
            bernstein((weight - 1) * reward, -1, most),
        )
    if interval == "anytime":
        return (
            _anytime(reward, 1 - reward, 0, 1, confidence),
            _anytime(weight * reward, weight * (1 - reward), 0, 1, confidence),
            _anytime((weight - 1) * reward, (weight - 1) * (1 - reward), -1, 0, confidence),
        )

    def statistics(sums: Array) -> Array:
        logged, target = sums[:, 2] / sums[:, 3], sums[:, 0] / sums[:, 1]
        return np.stack([logged, target, target - logged], axis=1)

    columns = np.stack([*terms, reward, np.ones_like(reward)], axis=1)
    logged, target, difference = bootstrap(columns, statistics, evidence.user, confidence=confidence, seed=seed)
    return logged, target, difference


def _anytime(terms: Array, rest: Array, least: float, both: float, confidence: float) -> Interval:
    """Bound a mean from both sides at every look; `rest` has the mean `both` - mean, and bounds it from above."""
    error = (1 - confidence) / 2
    low = float(lower_sequence(terms, least=least, error=error)[-1])
    high = both - float(lower_sequence(rest, least=least, error=error)[-1])
    estimate = float(terms.mean())  # may lie outside of what a mean of rewards can be
    return Interval(estimate, min(estimate, max(low, least)), max(estimate, min(high, 1.0)))


def verdict(found: Comparison) -> str:
    """Say in a plain sentence what a comparison shows."""
    _, low, high = found.difference
    if low > 0:
        return f"better by {_figure(low)} to {_figure(high)}"
    if high < 0:
        return f"worse by {_figure(-high)} to {_figure(-low)}"
    if found.missing is None:
        return f"too close to tell: between {_figure(low)} and {_figure(high)}, and the estimate is near 0"
    return f"can't tell yet: about {_figure(found.missing)} decisions more"


def _figure(value: float) -> str:
    """Write a number, rounded to two significant digits."""
    if value == 0:
        return "0"
    digits = 1 - math.floor(math.log10(abs(value)))
    return f"{round(value, digits):,.{max(0, digits)}f}"


def together(confidence: float, targets: int) -> float:
    """Return the confidence that each of several comparisons needs for all to hold at once (Bonferroni)."""
    return 1 - (1 - confidence) / targets


def propensity_refusal(checks: Mapping[str, PropensityCheck]) -> Refusal | None:
    """Refuse a log whose items were not drawn with the propensities that it names."""
    wrong = sorted(policy for policy, check in checks.items() if not check.passed)
    if not wrong:
        return None
    check = checks[wrong[0]]
    return Refusal(
        "no_propensities",
        f"items were not drawn with the propensities that the log names: of {wrong[0]!r} the mean of 1 / (n p) is"
        f" {check.mean:.3f} ± {check.half_width:.3f}, and 1 is expected. Run `rebound audit`",
    )


def ranked(found: Sequence[tuple[str, Comparison]]) -> list[tuple[str, Comparison]]:
    """Order comparisons by the estimate of the difference, best first."""
    return sorted(found, key=lambda pair: -pair[1].difference.estimate)
