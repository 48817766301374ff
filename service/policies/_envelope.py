"""Which candidate wins when the width of the confidence bounds is random: exactly, without sampling."""

from __future__ import annotations

import math

import numpy as np

from service.policies._base import Array

WIDEST = 8.5  # 1 - P(|N(0, 1)| ≤ 8.5) is less than the smallest step of a float64 below 1


def random_width_pmf(mean: Array, spread: Array) -> Array:
    """P(i is the best at Z), for index_i(z) = mean_i + z spread_i and Z = |N(0, 1)|, one draw for all: RandUCB
    (Vaswani et al. 2020, arXiv:1910.04928, with a half-normal width).

    The winner at width z is the upper envelope of n lines over z ≥ 0. Each line on it wins on one interval, and its
    probability is that interval's half-normal measure erf(z₂/√2) - erf(z₁/√2). Equal lines share theirs.

    Args:
        mean: (n,), finite.
        spread: (n,), finite and ≥ 0.

    Returns:
        (n,), sums to 1. O(n) when one candidate leads clearly, O(n log n) at worst.
    """
    pmf = np.zeros(len(mean))
    best = mean.max()
    start = spread[mean == best].max()  # the widest of those that win at z = 0
    first = np.flatnonzero((mean == best) & (spread == start)).tolist()
    # Who is behind even at the widest width that has any probability, is so at all widths.
    rivals = np.flatnonzero((spread > start) & (mean + WIDEST * spread > best + WIDEST * start))
    rivals = rivals[np.lexsort((-mean[rivals], spread[rivals]))]
    # On the hull so far, from small to large slope: (mean, spread, width from which on it wins, who it is).
    hull: list[tuple[float, float, float, list[int]]] = [(float(best), float(start), 0.0, first)]
    for m, s, i in zip(mean[rivals].tolist(), spread[rivals].tolist(), rivals.tolist(), strict=True):
        if s == hull[-1][1]:  # parallel to the last: equal, or behind it
            if m == hull[-1][0]:
                hull[-1][3].append(i)
            continue
        while (crossing := (hull[-1][0] - m) / (s - hull[-1][1])) <= hull[-1][2] and len(hull) > 1:
            hull.pop()
        hull.append((m, s, crossing, [i]))
    upper = [_half_normal_cdf(start) for _, _, start, _ in hull[1:]] + [1.0]
    lower = 0.0
    for (*_, winners), until in zip(hull, upper, strict=True):
        pmf[winners] = (until - lower) / len(winners)
        lower = until
    return pmf


def _half_normal_cdf(z: float) -> float:
    return math.erf(z * math.sqrt(0.5))
