"""The history of a loop: sums over its events in bins of time, and what they say.

A pure fold over the log. An event counts in the bin in which its decision was made, once at each of three levels: bins
of a second are kept for 10 minutes, of a minute for 2 days, of an hour for a year. So a total is the same at every
level. Bins without events are not there. Imported events are not decisions of this service, and are left out.

Sums are added in the order of the log, one event at a time. So they are the same, bit for bit, in whatever batches the
log is read, and wherever the fold was cut off and taken up again.

The items of a slate count as if they were independent, so intervals are somewhat narrow for long slates.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import astuple, dataclass, fields
from typing import NamedTuple, TypeAlias

import orjson

from service.evaluate.intervals import Interval
from service.records import Event, order

KEPT = {1: 600, 60: 2880, 3600: 8760}  # seconds of a bin -> how many such bins are kept
MOST_POLICIES = 8  # of a bin
OTHER = "@other"  # all further policies of a bin; no policy has such a name
Z = 1.959963984540054  # of 95 %
LEAST_SUPPORT = 100.0  # effective sample size from which on a reward of the uniform policy is told
LEAST_WEIGHT = 0.8  # and mean weight, which is 1 where what the uniform policy would do was drawn often enough


class BinId(NamedTuple):
    """The bin of all times t, in unix seconds, with number * step ≤ t < (number + 1) * step."""

    step: int  # seconds
    number: int

    @property
    def start(self) -> int:
        """Where it begins, in unix seconds."""
        return self.number * self.step

    @property
    def name(self) -> str:
        return f"{self.step}:{self.number}"


@dataclass(slots=True)
class Sums:
    """Sums over events. r is the reward, in its own unit; w = 1 / (n p) for an item drawn with probability p of n."""

    decisions: int = 0
    items: int = 0  # a decision has one for each place of its slate
    r: float = 0.0
    rr: float = 0.0  # Σ r²
    w: float = 0.0
    ww: float = 0.0  # Σ w²
    wr: float = 0.0
    wwr: float = 0.0  # Σ w² r
    wwrr: float = 0.0  # Σ w² r²

    def count(self, r: float, w: float, *, first: bool) -> None:
        """Count an item; the first of its slate counts its decision, too."""
        self.decisions += first
        self.items += 1
        self.r += r
        self.rr += r * r
        self.w += w
        self.ww += w * w
        self.wr += w * r
        self.wwr += w * w * r
        self.wwrr += w * w * r * r

    def __iadd__(self, other: Sums) -> Sums:
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))
        return self


Bin: TypeAlias = dict[tuple[str, str], Sums]  # (policy, rung) -> sums


# ---- the fold


def bins_of(event: Event) -> list[BinId]:
    """Return the bins that an event counts in: one a level, but for levels on which it was settled too late."""
    if event.source == "import" or event.policy is None or not event.n or not event.propensity:
        return []
    came = order(event.position)[0] / 1000
    made = min(came if event.decided is None else event.decided, came)  # no clock is ahead of the log's
    bins = [BinId(step, math.floor(made / step)) for step in KEPT]
    return [bin for bin in bins if alive(bin, event.position)]


def count(bin: Bin, event: Event) -> None:
    """Count an event in one of its bins."""
    assert event.policy is not None
    assert event.n is not None
    assert event.propensity is not None
    policy = event.policy
    if (policy, event.rung) not in bin:
        named = {name for name, _ in bin} - {OTHER}
        if policy not in named and len(named) >= MOST_POLICIES:
            policy = OTHER
    sums = bin.setdefault((policy, event.rung), Sums())
    sums.count(event.reward, 1.0 / (event.n * event.propensity), first=event.place == 0)


def alive(bin: BinId, position: str) -> bool:
    """Return whether a bin is still kept when the log has come to this position."""
    return bin.number > math.floor(order(position)[0] / 1000 / bin.step) - KEPT[bin.step]


def expired(since: str, until: str) -> Iterator[BinId]:
    """Yield all bins that are alive at the position `since` and no longer at `until`."""
    for step, kept in KEPT.items():
        before, now = (math.floor(order(position)[0] / 1000 / step) for position in (since, until))
        for number in range(before - kept + 1, min(now - kept, before) + 1):
            yield BinId(step, number)


def dump(bin: Bin) -> bytes:
    """Write a bin as JSON."""
    return orjson.dumps([[policy, rung, *astuple(sums)] for (policy, rung), sums in bin.items()])


def load(stored: bytes) -> Bin:
    """Read what `dump` wrote.

    Raises:
        ValueError, TypeError: it is garbled.
    """
    return {(policy, rung): Sums(*sums) for policy, rung, *sums in orjson.loads(stored)}


# ---- what it says


def merged(found: Mapping[BinId, Bin], step: int) -> dict[int, Bin]:
    """Add bins up to bins of `step` seconds; return start -> bin, in order of time."""
    wider: dict[int, Bin] = {}
    for one in sorted(found):
        into = wider.setdefault(one.start // step * step, {})
        for place, sums in found[one].items():
            total = into.setdefault(place, Sums())
            total += sums
    return wider


def by_policy(bins: Iterable[Bin]) -> dict[str, Sums]:
    """Add bins up over all rungs; return policy -> sums, by name."""
    found: dict[str, Sums] = {}
    for bin in bins:
        for (policy, _), sums in bin.items():
            total = found.setdefault(policy, Sums())
            total += sums
    return dict(sorted(found.items()))


def whole(sums: Iterable[Sums]) -> Sums:
    """Add up."""
    total = Sums()
    for one in sums:
        total += one
    return total


def reward(sums: Sums, low: float, high: float) -> Interval | None:
    """Return the mean reward of an item, with its 95 % interval; None where there is none.

    Two rewards at either end of the range are added before the interval is computed. For rewards of 0 and 1 that is
    Agresti & Coull 1998, "Approximate is better than exact for interval estimation of binomial proportions": the
    interval does not shrink to a point where all rewards are the same.

    Args:
        low, high: the loop's reward range.
    """
    if not sums.items:
        return None
    size = sums.items + 4
    centre = (sums.r + 2 * low + 2 * high) / size
    variance = max((sums.rr + 2 * low**2 + 2 * high**2) / size - centre**2, 0.0)
    return _within(sums.r / sums.items, centre, math.sqrt(variance / size), low, high)


class Lift(NamedTuple):
    """How much better than chance."""

    size: float  # effective number of items that the uniform policy was seen on, (Σ w)² / Σ w²
    uniform: Interval | None  # its reward; None: it is not supported
    lift: Interval | None  # mean reward less that of the uniform policy
    more: int | None  # further decisions that it takes, about; None: none, or nobody can tell


def lift(sums: Sums, low: float, high: float, *, floor: float) -> Lift:
    """Estimate what a uniform choice among the same candidates would have got, from what was drawn.

    Σ w r / Σ w (SNIPS; Swaminathan & Joachims 2015), with the variance Σ w² (r - v)² / (Σ w)². As in `reward`, rewards
    at both ends of the range are added, each with the weight of a mean item, Σ w² / Σ w. The interval of the difference
    is put together from both by the squares of their sides (Zou & Donner 2008, "Construction of confidence limits about
    effect measures"). The two estimates come from the same items, and rise and fall together, so it is wider than
    it need be.

    A policy that hardly explores has not been seen to do what the uniform policy does. Then the mean weight is far
    below 1, and however small the variance looks, nothing is told.

    Args:
        low, high: the loop's reward range.
        floor: its exploration floor. A decision's weights have mean squares of at most 1 / floor.
    """
    size = sums.w**2 / sums.ww if sums.ww else 0.0
    seen = bool(sums.items) and sums.w / sums.items >= LEAST_WEIGHT
    if not seen or size < LEAST_SUPPORT:
        square = sums.ww / sums.items if seen else 1 / floor if floor else None
        more = None if square is None else math.ceil(max(LEAST_SUPPORT * square - sums.items, 1))
        return Lift(size if seen else 0.0, None, None, more)
    weight = sums.ww / sums.w
    total = sums.w + 4 * weight
    centre = (sums.wr + 2 * weight * (low + high)) / total
    squares = sums.wwrr - 2 * centre * sums.wwr + centre**2 * sums.ww
    squares += 2 * weight**2 * ((low - centre) ** 2 + (high - centre) ** 2)
    uniform = _within(sums.wr / sums.w, centre, math.sqrt(max(squares, 0.0)) / total, low, high)
    own = reward(sums, low, high)
    assert own is not None
    difference = own.estimate - uniform.estimate
    down = math.hypot(own.estimate - own.low, uniform.high - uniform.estimate)
    up = math.hypot(own.high - own.estimate, uniform.estimate - uniform.low)
    return Lift(size, uniform, Interval(difference, difference - down, difference + up), None)


def _within(estimate: float, centre: float, error: float, low: float, high: float) -> Interval:
    """Return an estimate with the interval around `centre`, widened to hold the estimate, within the range.

    Rewards of a time when the range was another one may lie outside.
    """
    ends = centre - Z * error, centre + Z * error
    return Interval(estimate, min(max(ends[0], low), estimate), max(min(ends[1], high), estimate))
