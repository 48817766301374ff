"""Checks that items were drawn with the propensities that the log names.

An item drawn with probability p out of n has E[1 / (n p)] = Σᵢ pᵢ / (n pᵢ) = 1, whatever the policy. The mean over the
log must be 1 within its confidence interval; propensities that were not drawn from fail.

The weights 1 / (n p) of a greedy policy are small but for the rare draws that explore. Until there were some of those,
the mean is below 1 with hardly any variance, and an interval from that variance would fail honest logs. So below 1 the
variance counts as the largest that an honest log can have. With an exploration floor f, weights lie in [0, 1 / f]. No
distribution on that range with mean 1 has a variance above 1 / f - 1 (Bhatia & Davis 2000, "A better bound on the
variance", American Mathematical Monthly 107).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import NormalDist

from service.records import Entry, Event


@dataclass(frozen=True)
class PropensityCheck:
    """Mean of 1 / (n p) over a policy's logged decisions, and the half width of its confidence interval."""

    decisions: int
    mean: float
    half_width: float

    @property
    def passed(self) -> bool:
        """Whether 1 lies in the interval."""
        return abs(self.mean - 1.0) <= max(self.half_width, 1e-9)


class PropensityChecker:
    """Takes entries of the log, in any order, and checks the propensities of each policy that served.

    Args:
        floor: the loop's exploration floor, in [0, 1].
    """

    def __init__(self, floor: float) -> None:
        self._most_variance = 1.0 / floor - 1.0 if floor > 0 else math.inf
        self._weights: dict[str, list[float]] = defaultdict(list)

    def add(self, entries: Iterable[Entry]) -> None:
        """Take some entries; imported events, which were not drawn here, are passed over."""
        for entry in entries:
            if isinstance(entry, Event) and entry.n and entry.propensity and entry.policy:
                self._weights[entry.policy].append(1.0 / (entry.n * entry.propensity))

    def result(self, *, confidence: float = 0.99) -> dict[str, PropensityCheck]:
        """Return policy -> its check; an honest log fails one with probability 1 - confidence."""
        z = NormalDist().inv_cdf(0.5 + confidence / 2)
        return {policy: self._check(weights, z) for policy, weights in sorted(self._weights.items())}

    def _check(self, weights: list[float], z: float) -> PropensityCheck:
        n = len(weights)
        mean = math.fsum(weights) / n
        variance = math.fsum((weight - mean) ** 2 for weight in weights) / max(n - 1, 1)
        if mean < 1.0:
            variance = max(variance, self._most_variance)
        return PropensityCheck(n, mean, z * math.sqrt(variance / n))
