"""Tests and intervals for means that may be looked at any time, and how long they take."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

CONCENTRATIONS = (100.0, 10_000.0)  # of the two Dirichlet priors below, for large and for small mismatches


def half_width(variance: float, *, error: float, planned: float) -> float:
    """Bound |estimate - truth| at every look at once, for an estimate that is about normal with this variance.

    Waudby-Smith, Arbour, Sinha, Kennedy & Ramdas 2024, "Time-uniform central limit theory and asymptotic confidence
    sequences", Theorem 2.2. It is the normal mixture of Robbins 1970 (Howard et al. 2021, equation 14), here in terms
    of the information I = 1 / variance: |estimate - truth| < √((I + r) / I² · log((I + r) / (r error²))).

    It is asymptotic: the estimate must be about normal where it could first decide. It holds when later information
    comes from new units, and by Slepian's inequality also when it comes from units seen before, as long as those who
    did better than the mean do not do worse than it later, on average.

    Args:
        error: probability that the bound fails at any look, in (0, 1).
        planned: r, see `planned_for`. It must not depend on the data.

    Returns:
        In units of the estimate; infinity where the variance is.
    """
    if math.isinf(variance):
        return math.inf
    share = planned * variance  # r / I
    return math.sqrt(variance * (1 + share) * (math.log1p(1 / share) - 2 * math.log(error))) if variance > 0 else 0.0


def planned_for(effect: float, *, error: float) -> float:
    """Choose r so that the interval is narrowest where it is about to settle an effect of this size.

    Waudby-Smith et al. 2024, section 2.3: r = I / (log(1 - 2 log error) - 2 log error), about, at an information I. It
    is taken at the I at which the half width equals the effect.
    """
    share = _share(error)
    return share * (1 + share) * math.log((1 + share) / (share * error**2)) / effect**2


def _share(error: float) -> float:
    return 1 / (math.log(1 - 2 * math.log(error)) - 2 * math.log(error))


def information_needed(effect: float, *, error: float, power: float, planned: float) -> float:
    """Return the information 1 / variance at which an effect of this size has been shown with this probability.

    The estimate's distance to the effect is normal. Earlier looks may have shown it already, so that it is enough.
    """
    z = NormalDist().inv_cdf(power)
    low, high = 0.0, 1 / effect**2
    while half_width(1 / high, error=error, planned=planned) + z / math.sqrt(high) > effect:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        if middle == 0 or half_width(1 / middle, error=error, planned=planned) + z / math.sqrt(middle) > effect:
            low = middle
        else:
            high = middle
    return high


def mismatch(counts: Sequence[int], shares: Sequence[float]) -> float:
    """Test at any time whether units fall into arms by these shares; return the p-value.

    It is valid at every look at once: with probability 1 - error it is above `error` at all of them.

    Lindon & Malek 2022, "Anytime-valid inference for multinomial count data": a Bayes factor against the shares, with a
    Dirichlet prior around them, is a martingale, and stays below 1 / error by Ville's inequality. So does the mean of
    two of them. One prior finds gross mismatches soon, the other small ones at last.

    Args:
        counts: units in each arm.
        shares: that they were to have, each above 0; they sum to 1.
    """
    total = sum(counts)
    logs = []
    for concentration in CONCENTRATIONS:
        log = math.lgamma(concentration) - math.lgamma(concentration + total)
        for count, share in zip(counts, shares, strict=True):
            prior = concentration * share
            log += math.lgamma(prior + count) - math.lgamma(prior) - count * math.log(share)
        logs.append(log)
    largest = max(logs)
    factor = largest + math.log(math.fsum(math.exp(log - largest) for log in logs) / len(logs))
    return math.exp(-max(factor, 0.0))
