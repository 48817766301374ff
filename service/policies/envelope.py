"""Computes exact selection probabilities for confidence bounds of random width, without sampling."""

from __future__ import annotations

import math

import numpy as np

from service.policies.base import Array

WIDEST = 37.5  # exp(-37.5) is less than the smallest step of a float64 below 1


def random_width_pmf(mean: Array, spread: Array) -> Array:
    """Compute P(candidate i has the highest index), indexᵢ = meanᵢ + Z spreadᵢ, with Z ~ Exp(1) shared by all.

    RandUCB (Vaswani et al. 2020, arXiv:1910.04928), which leaves the distribution of the width open.

    The highest index at width z is the upper envelope of n lines over z ≥ 0. Each line of the envelope is highest on
    one interval (z₁, z₂), which has the probability exp(-z₁) - exp(-z₂). Equal lines share it.

    Args:
        mean: (n,), finite.
        spread: (n,), finite and ≥ 0.

    Returns:
        (n,), sum 1. The time is O(n) when one candidate leads clearly, O(n log n) at worst.
    """
    pmf = np.zeros(len(mean))
    best = mean.max()
    start = spread[mean == best].max()  # the largest spread of those that win at z = 0
    first = np.flatnonzero((mean == best) & (spread == start)).tolist()
    # A candidate that is behind at the widest width of positive probability is behind at all widths.
    rivals = np.flatnonzero((spread > start) & (mean + WIDEST * spread > best + WIDEST * start))
    rivals = rivals[np.lexsort((-mean[rivals], spread[rivals]))]
    # The envelope so far, by increasing slope: (mean, spread, width at which the line becomes highest, candidates).
    hull: list[tuple[float, float, float, list[int]]] = [(float(best), float(start), 0.0, first)]
    for m, s, i in zip(mean[rivals].tolist(), spread[rivals].tolist(), rivals.tolist(), strict=True):
        if s == hull[-1][1]:  # parallel to the last line: equal to it, or below it
            if m == hull[-1][0]:
                hull[-1][3].append(i)
            continue
        while (crossing := (hull[-1][0] - m) / (s - hull[-1][1])) <= hull[-1][2] and len(hull) > 1:
            hull.pop()
        hull.append((m, s, crossing, [i]))
    upper = [-math.expm1(-start) for _, _, start, _ in hull[1:]] + [1.0]
    lower = 0.0
    for (*_, winners), until in zip(hull, upper, strict=True):
        pmf[winners] = (until - lower) / len(winners)
        lower = until
    return pmf
