"""Compares the arms of an experiment, from sums over their units.

Units are users, or decisions. A unit's decisions are not independent, so variances are those between units. What is
known of an arm is its *moments*, (7, 7): Σ w wᵀ over its units, where w holds a unit's 1 and its six sums (`UNIT` …).

A metric is a ratio of two of them, such as reward per item shown: Σ rewards / Σ items, over the arm. Its error is that
of the linearised ratio (delta method), as of a mean of one value a unit. Deng, Knoblich & Lu 2018, "Applying the delta
method in metric analytics".
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from service.evaluate.intervals import Interval
from service.evaluate.sequential import half_width, information_needed, mismatch, planned_for
from service.policies import Array

# What a unit sums up: items shown, their rewards, those of them with feedback; and the same from before the experiment.
UNIT, SHOWN, REWARD, REPORTED, SHOWN_BEFORE, REWARD_BEFORE, REPORTED_BEFORE = range(7)
COLUMNS = 7

FEWEST = 50  # units of an arm below which nothing is said
MOST_NOISE = 0.25  # standard errors of the control's mean, as a share of it, up to which a lift is said
MISMATCH_ERROR = 0.01  # of saying of a clean split that it is none
POWER = 0.8  # with which the time to a decision is foretold


class Metric(NamedTuple):
    """A ratio of two columns, and the same ratio before the experiment."""

    of: int
    per: int
    of_before: int
    per_before: int


METRICS: Mapping[str, Metric] = {
    "reward": Metric(REWARD, SHOWN, REWARD_BEFORE, SHOWN_BEFORE),  # of an item shown
    "reported": Metric(REPORTED, SHOWN, REPORTED_BEFORE, SHOWN_BEFORE),  # share of items shown with feedback
    "shown": Metric(SHOWN, UNIT, SHOWN_BEFORE, UNIT),  # items of a unit
}


def moments(units: Array) -> Array:
    """Return the moments (7, 7) of units (N, 7)."""
    found: Array = units.T @ units
    return found


class Mean(NamedTuple):
    """A metric over the units of an arm."""

    value: float
    error: float  # standard error; infinity where there are fewer than two units


def mean_of(arm: Array, metric: Metric) -> Mean:
    """Return the metric of an arm with these moments, without adjustment."""
    units, per = float(arm[UNIT, UNIT]), float(arm[UNIT, metric.per])
    if per == 0:
        return Mean(math.nan, math.inf)
    ratio = float(arm[UNIT, metric.of]) / per
    line = _line(metric.of, metric.per, ratio)
    error = math.sqrt(max(0.0, float(line @ arm @ line)) * units / (units - 1)) / per if units > 1 else math.inf
    return Mean(ratio, error)


def _line(of: int, per: int, ratio: float) -> Array:
    """Return the vector by which a unit's sums become its part in the error of a ratio: of - ratio * per."""
    line = np.zeros(COLUMNS)
    line[per] = -ratio
    line[of] += 1.0
    return line


@dataclass(frozen=True)
class Lift:
    """How much larger the metric is in an arm than in the control, as a share of the control's."""

    lift: Interval  # at any time
    variance: float  # of the lift
    reduced: float  # share of the variance that the time before the experiment explained, in [0, 1)


def lift_of(control: Array, arm: Array, metric: Metric, *, error: float, planned: float) -> Lift | None:
    """Compare an arm with the control; None: too few units, or the control's mean cannot be told from 0 yet.

    The difference is adjusted by the same metric before the experiment, in which the arms differ by chance alone
    (CUPED: Deng, Xu, Kohavi & Walker 2013, "Improving the sensitivity of online controlled experiments by utilizing
    pre-experiment data"). A unit that was not there before counts as average. The lift's variance is that of a ratio
    of two means: (v + (1 + lift)² v₀) / mean₀².

    Args:
        control, arm: moments (7, 7).
        error: probability that the interval fails at any look.
        planned: see `planned_for`.
    """
    arms = (control, arm)
    if min(float(one[UNIT, UNIT]) for one in arms) < FEWEST:
        return None
    plain = [mean_of(one, metric) for one in arms]
    if not all(math.isfinite(one.value) for one in plain):
        return None
    values, variances = _adjusted(arms, metric, plain)
    base = values[0]
    if base == 0 or math.sqrt(variances[0]) > MOST_NOISE * abs(base):
        return None
    lift = (values[1] - base) / abs(base)

    def of_lift(variances: list[float]) -> float:
        return (variances[1] + (values[1] / base) ** 2 * variances[0]) / base**2

    variance, before = of_lift(variances), of_lift([one.error**2 for one in plain])
    width = half_width(variance, error=error, planned=planned)
    return Lift(
        Interval(lift, lift - width, lift + width), variance, max(0.0, 1 - variance / before) if before > 0 else 0.0
    )


def _adjusted(arms: tuple[Array, Array], metric: Metric, plain: list[Mean]) -> tuple[list[float], list[float]]:
    """Return both means, and their variances, less what the time before the experiment explains of them."""
    per_before = sum(float(one[UNIT, metric.per_before]) for one in arms)
    of_before = sum(float(one[UNIT, metric.of_before]) for one in arms)
    before = _line(metric.of_before, metric.per_before, of_before / per_before if per_before else 0.0)
    covariance = variance = 0.0  # of the difference
    parts = []
    for one, mean in zip(arms, plain, strict=True):
        units = float(one[UNIT, UNIT])
        line = _line(metric.of, metric.per, mean.value) * units / float(one[UNIT, metric.per])
        total = float(one[UNIT] @ before)
        with_before, of_it = float(line @ one @ before), float(before @ one @ before) - total**2 / units
        covariance += with_before / units**2
        variance += of_it / units**2
        parts.append((units, total / units, float(line @ one @ line), with_before, of_it))
    # A covariate that hardly varies explains nothing; what is left of it is rounding.
    slope = covariance / variance if variance > 1e-12 * (1 + (of_before / max(per_before, 1.0)) ** 2) else 0.0
    middle = sum(units * mean for units, mean, *_ in parts) / sum(units for units, *_ in parts)
    values, variances = [], []
    for mean, (units, its_before, squares, with_before, of_it) in zip(plain, parts, strict=True):
        values.append(mean.value - slope * (its_before - middle))
        left = squares - 2 * slope * with_before + slope**2 * of_it
        variances.append(max(0.0, left) / (units * (units - 1)))
    return values, variances


# ---- what is to be said


@dataclass(frozen=True)
class GuardRail:
    """Whether a metric got worse than is tolerated."""

    metric: str
    drop: float  # that is tolerated, as a share of the control's
    verdict: str  # ok: no worse than that; broken: worse, and perhaps by more than that; open: not known yet
    lift: Interval | None  # at any time; None: not known yet


@dataclass(frozen=True)
class Verdict:
    """What can be said of one arm beside the control."""

    arm: str
    code: str  # better | worse | same | open
    lift: Lift | None
    days: float | None  # until it is likely settled, about; None: it is, or nobody knows
    guardrails: tuple[GuardRail, ...]
    says: str


@dataclass(frozen=True)
class Findings:
    """What an experiment shows at one look."""

    code: str  # mismatch | broken | settled | open
    mismatch: float  # p-value of the split
    verdicts: tuple[Verdict, ...]
    says: str


def findings(
    arms: Mapping[str, Array],
    shares: Mapping[str, float],
    *,
    control: str,
    metric: str,
    guardrails: Mapping[str, float],
    minimum_effect: float,
    confidence: float,
    days: float,
) -> Findings:
    """Say what an experiment shows at this look; it may be looked at as often as one likes.

    Args:
        arms: arm -> moments (7, 7).
        shares: arm -> its share of the units; they sum to 1.
        guardrails: metric -> drop that is tolerated, as a share of the control's mean.
        minimum_effect: the smallest lift that matters, above 0. It sets where the intervals are narrowest.
        confidence: that the intervals of the metric hold for all arms, at every look; those of each guard rail, too.
        days: since the first unit came.
    """
    p = mismatch([round(float(arms[name][UNIT, UNIT])) for name in shares], list(shares.values()))
    others = [name for name in shares if name != control]
    error = (1 - confidence) / len(others)
    verdicts = tuple(
        _verdict(
            name,
            arms[control],
            arms[name],
            metric=METRICS[metric],
            guardrails=guardrails,
            effect=minimum_effect,
            error=error,
            days=days,
        )
        for name in others
    )
    broken = [(one.arm, rail) for one in verdicts for rail in one.guardrails if rail.verdict == "broken"]
    if p < MISMATCH_ERROR:
        units = ", ".join(f"{name} {round(float(arms[name][UNIT, UNIT])):,}" for name in shares)
        return Findings(
            "mismatch",
            p,
            verdicts,
            f"do not trust this: the split is not what was asked for (units: {units}); something loses units of an arm",
        )
    if broken:
        said = "; ".join(f"{rail.metric} of {arm} fell by {_percent(rail.lift, -1)}" for arm, rail in broken)
        return Findings("broken", p, verdicts, f"stop: {said}")
    code = "settled" if all(one.code != "open" for one in verdicts) else "open"
    return Findings(code, p, verdicts, "; ".join(one.says for one in verdicts))


def _verdict(
    name: str,
    control: Array,
    arm: Array,
    *,
    metric: Metric,
    guardrails: Mapping[str, float],
    effect: float,
    error: float,
    days: float,
) -> Verdict:
    planned = planned_for(effect, error=error)
    found = lift_of(control, arm, metric, error=error, planned=planned)
    rails = tuple(_rail(guarded, drop, control, arm, error) for guarded, drop in guardrails.items())
    if found is None:
        says = f"{name}: nothing can be said yet: {FEWEST} units of each arm, and a mean of the control, are the least"
        return Verdict(name, "open", None, None, rails, says)
    lift, more = found.lift, None
    if lift.low > 0 or lift.high < 0:
        code = "better" if lift.low > 0 else "worse"
        says = f"{name} is {code} by {_percent(lift, 1 if lift.low > 0 else -1)}; you may stop"
    elif -effect < lift.low and lift.high < effect:
        code = "same"
        says = f"{name} differs from {effect:.1%} either way by less; you may stop"
    else:
        code = "open"
        needed = information_needed(effect, error=error, power=POWER, planned=planned)
        if (
            needed * found.variance <= 1
        ):  # it should be settled, but the lift is smaller than that: until it is, as it is
            size = abs(lift.estimate)
            needed = information_needed(max(size, effect - size), error=error, power=0.5, planned=planned)
        more = max(0.0, days * (needed * found.variance - 1))
        says = f"{name}: nothing can be said yet ({_percent(lift, 1)}): about {_days(more)} more"
    return Verdict(name, code, found, more, rails, says)


def _rail(metric: str, drop: float, control: Array, arm: Array, error: float) -> GuardRail:
    found = lift_of(control, arm, METRICS[metric], error=error, planned=planned_for(drop, error=error))
    if found is None:
        return GuardRail(metric, drop, "open", None)
    low, high = found.lift.low, found.lift.high
    verdict = "ok" if low >= -drop else "broken" if high < 0 else "open"
    return GuardRail(metric, drop, verdict, found.lift)


def _percent(lift: Interval | None, sign: int) -> str:
    assert lift is not None, "a verdict has a lift"
    low, high = sorted((sign * lift.low, sign * lift.high))
    return f"{100 * sign * lift.estimate:.1f} % ({100 * low:.1f} to {100 * high:.1f})"


def _days(days: float) -> str:
    if days < 1:
        return "less than a day"
    return "1 day" if round(days) == 1 else f"{round(days):,} days"
