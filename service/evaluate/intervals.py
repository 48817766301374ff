"""Intervals for estimates: by resampling, for a fixed number of decisions, and for any number of looks.

| interval | holds | assumes |
|---|---|---|
| `bootstrap` | about, in large samples | users are drawn independently |
| `empirical_bernstein` | in any sample | terms are independent and lie in a known range |
| `lower_sequence` | at every look at once | each term's mean may depend on all that was before; a known lower end |
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from service.policies import Array

MOST_CLUSTERS = 5000  # more users are put together at random; unions of independent users are independent
AT_ONCE = 2_000_000  # counts that are drawn at once

# The mixture below: log-spaced λ in (0, 1), each with the same weight. The smallest suits sums of variances of 10⁹.
LAMBDAS = 0.95 * 1.5 ** -np.arange(26.0)
PSI = -np.log1p(-LAMBDAS) - LAMBDAS


class Interval(NamedTuple):
    """An estimate with both ends of its interval."""

    estimate: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        """Half its length."""
        return (self.high - self.low) / 2


def bootstrap(
    terms: Array,
    statistics: Callable[[Array], Array],
    user: Array,
    *,
    confidence: float,
    seed: int = 0,
    resamples: int = 1000,
) -> list[Interval]:
    """Resample users, with all their decisions, and take the quantiles of statistics of the sums.

    Efron & Tibshirani 1993, "An introduction to the bootstrap", section 13.3 (percentile interval). Field & Welsh 2007,
    "Bootstrapping clustered data" (clusters are resampled whole).

    Args:
        terms: (B, m), one row a decision.
        statistics: sums (R, m) -> statistics (R, s).
        user: (B,) int.

    Returns:
        The s intervals.
    """
    codes = np.unique(user, return_inverse=True)[1]
    clusters = int(codes.max()) + 1
    rng = np.random.default_rng(seed)
    if clusters > MOST_CLUSTERS:
        codes = (rng.permutation(clusters) % MOST_CLUSTERS)[codes]
        clusters = MOST_CLUSTERS
    sums = np.stack([np.bincount(codes, column, clusters) for column in terms.T], axis=1)  # (clusters, m)
    drawn = []
    at_once = max(1, AT_ONCE // clusters)
    for start in range(0, resamples, at_once):
        size = min(at_once, resamples - start)
        cell = rng.integers(clusters, size=(size, clusters)) + clusters * np.arange(size)[:, None]
        counts = np.bincount(cell.ravel(), minlength=size * clusters).reshape(size, clusters)
        drawn.append(statistics(counts @ sums))
    ends = np.quantile(np.concatenate(drawn), [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)  # (2, s)
    estimates = statistics(sums.sum(axis=0)[None])[0]
    return [Interval(*map(float, found)) for found in zip(estimates, *ends, strict=True)]


def empirical_bernstein(terms: Array, *, least: float, most: float, confidence: float) -> Interval:
    """Bound the mean of independent terms (B,) that lie in [least, most].

    Maurer & Pontil 2009, "Empirical Bernstein bounds and sample variance penalization", Theorem 4, for each side with
    half the error: |mean - X̄| ≤ √(2 V ln(4/δ) / B) + 7 (most - least) ln(4/δ) / (3 (B - 1)).

    Raises:
        ValueError: a term lies outside the range, or there are fewer than two.
    """
    size = len(terms)
    if size < 2:
        raise ValueError(f"{size} terms, expected 2 or more")
    if not (terms.min() >= least - 1e-9 and terms.max() <= most + 1e-9):
        raise ValueError(f"a term lies outside [{least:g}, {most:g}]")
    mean = float(terms.mean())
    log = math.log(4 / (1 - confidence))
    width = math.sqrt(2 * float(terms.var(ddof=1)) * log / size) + 7 * (most - least) * log / (3 * (size - 1))
    return Interval(mean, max(mean - width, least), min(mean + width, most))


def lower_sequence(terms: Array, *, least: float, error: float) -> Array:
    """Bound the running mean of the terms' conditional means from below, at every look at once.

    With probability 1 - error, the t-th value lies below the mean over i ≤ t of E[Xᵢ | X₁ … Xᵢ₋₁], for all t. The terms
    need no upper end, so that rare large weights cost only what they add to the variance. The policies may learn
    meanwhile.

    Howard, Ramdas, McAuliffe & Sekhon 2021, "Time-uniform, nonparametric, nonasymptotic confidence sequences": by the
    proof of Theorem 4, exp(λ Sₜ - ψ(λ) Vₜ) is a supermartingale for λ in [0, 1), where ψ(λ) = -log(1 - λ) - λ, Sₜ sums
    Xᵢ less its conditional mean, Vₜ sums (Xᵢ - X̂ᵢ)², and X̂ᵢ is known before Xᵢ, with Xᵢ - X̂ᵢ ≥ -1. A mixture over λ is
    one, too (section 3.2), and stays below 1 / error by Ville's inequality. Waudby-Smith, Wu, Ramdas, Karampatziakis &
    Mineiro 2022, "Anytime-valid off-policy inference for contextual bandits", use it for weighted rewards.

    Args:
        terms: (B,), each ≥ least.

    Raises:
        ValueError: a term is below `least`.
    """
    if len(terms) and terms.min() < least - 1e-9:
        raise ValueError(f"a term lies below {least:g}")
    number = np.arange(1, len(terms) + 1)
    total = np.cumsum(terms)
    before = np.concatenate([[0.0], total[:-1]])
    guess = np.clip((before + least + 0.5) / number, least, least + 1)  # X̂
    bound: Array = (total - _boundary(np.cumsum((terms - guess) ** 2), error)) / number
    return bound


class RunningBound:
    """The last value of `lower_sequence`, term by term.

    Args:
        least: no term is below.
        terms, total, squares: of those that came before.
    """

    def __init__(self, least: float, terms: int = 0, total: float = 0.0, squares: float = 0.0) -> None:
        self._least, self._terms, self._total, self._squares = least, terms, total, squares

    def add(self, term: float) -> None:
        """Add a term."""
        self._terms += 1
        guess = min(max((self._total + self._least + 0.5) / self._terms, self._least), self._least + 1)
        self._squares += (term - guess) ** 2
        self._total += term

    def low(self, *, error: float) -> float:
        """Return the bound; `error` as in `lower_sequence`. There must be a term."""
        return float(self._total - _boundary(np.array([self._squares]), error)[0]) / self._terms

    def state(self) -> tuple[int, float, float]:
        """Return what another one begins with."""
        return self._terms, self._total, self._squares


def _boundary(variance: Array, error: float) -> Array:
    """Solve log Σₖ exp(λₖ s - ψ(λₖ) V) / K = log(1 / error) for s, for each V (T,).

    The left side rises with s and is convex. Newton's method from above comes down to the solution and never passes it.
    """
    log = math.log(len(LAMBDAS) / error)
    # Above the solution: where one part of the mixture reaches the level alone.
    s: Array = ((log + PSI * variance[:, None]) / LAMBDAS).min(axis=1)
    for _ in range(100):
        exponent = LAMBDAS * s[:, None] - PSI * variance[:, None]
        largest = exponent.max(axis=1)
        weight = np.exp(exponent - largest[:, None])
        total = weight.sum(axis=1)
        step = (largest + np.log(total) - log) / ((weight @ LAMBDAS) / total)
        s = s - step
        if np.abs(step).max(initial=0.0) <= 1e-10 * (1 + np.abs(s).max(initial=0.0)):
            break
    return s
