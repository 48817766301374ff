"""Whether a policy's release goes on, waits or goes back: sums over the log, and what they show.

While a release stands at one step, a hash of the user decides whether the policy or one of the others serves him. So
both groups of users are drawn at random, and the difference of their mean rewards estimates what the policy changes.

*Clusters.* A user's decisions are not independent of each other, users are. So users are the unit of variance. They
are hashed into BUCKETS cells for each group, by another hash than the one that splits the traffic, and each cell keeps
the number of its decisions and the sum of their rewards: memory is bounded. A cell is a union of whole users, and
unions of independent users are independent. Cells vary as much as users do, so nothing is assumed; what is lost is a
little precision of the variance (1 023 degrees of freedom instead of more).

*Every look.* The difference of two means is asymptotically normal, and its bounds hold at all looks at once: a mixture
of normal distributions over the effect (Robbins 1970, "Statistical methods related to the law of the iterated
logarithm"; Howard, Ramdas, McAuliffe & Sekhon 2021, equation 14) around an estimate whose variance is estimated
(Waudby-Smith, Arbour, Sinha, Kennedy & Ramdas 2024, "Time-uniform central limit theory and asymptotic confidence
sequences"). Theirs is for independent terms. Here a user's later decisions resemble his earlier ones, so that looks are
more alike than those of independent terms with the same variances, and by Slepian's inequality a bound is crossed no
more often.

*Pending rewards.* A click is in the log at once, and its absence when the wait is over. Whoever counts what is there
sees clicks alone. So a decision counts once each that was shown before it has its final reward. Those after it are kept
apart, in at most OPEN generations by the time at which they were shown, and each is added when all of it is settled.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Literal, NamedTuple

import numpy as np

from service.evaluate.intervals import Interval
from service.policies import Array, Arrays
from service.records import Entry, Event

BUCKETS = 1024  # cells of each group
OPEN = 4  # generations of decisions that are not settled
FEWEST = 30  # users of each group, counted by their decisions, below which nothing is said
FEWEST_SERVED = 100  # decisions below which nothing is said of how they were served
SLOW = 0.05  # share of the decisions that may take longer than the guard's latency

Course = Literal["go on", "wait", "go back"]


def split(before: Mapping[str, float], policy: str, share: float) -> dict[str, float]:
    """Return the traffic that gives a policy this share, and the others the rest, in proportion to what they had.

    Whoever the policy serves it serves at each larger share, too: shares of the others shrink on both sides of its own.
    """
    others = {name: given for name, given in before.items() if name != policy and given > 0}
    rest = sum(others.values())
    traffic = {name: (1 - share) * given / rest for name, given in others.items()} if share < 1 else {}
    return {**traffic, policy: share}


@dataclass(frozen=True)
class Guard:
    """What a release may cost, before it goes back."""

    reward_drop: float  # of a decision's mean reward, in its units; > 0
    lag: int  # events that the policy has still to learn
    latency_ms: float | None = None  # at most 5 % of the policy's decisions may take longer
    degraded: float | None = None  # share of the policy's decisions that were answered without the store


@dataclass(frozen=True)
class Serving:
    """How the policy was served since the release began."""

    lag: int = 0  # events that it has still to learn
    decisions: int = 0
    slow: int = 0  # decisions that took longer than the guard's latency
    degraded: int = 0  # decisions that were answered without the store


class Group(NamedTuple):
    """What was seen of the users of one side."""

    events: int
    users: float  # how many of them count, those with many decisions for one: (Σ n)² / Σ n² over the cells
    reward: float | None  # mean of a decision; None: nothing was seen
    spread: float  # variance of that mean, times its number of events


@dataclass(frozen=True)
class Verdict:
    """What a look says."""

    course: Course
    why: str  # a sentence for people
    policy: Group
    others: Group
    difference: Interval | None  # policy - others, in units of the reward; None: too little was seen


class ReleaseSums:
    """Sums over the decisions of one step, in bounded memory.

    Places number the items in the order in which they were shown, over the whole loop.

    Args:
        policy: that is released.
        others: that serve beside it.
        start: place from which decisions count.
    """

    def __init__(self, policy: str, others: Iterable[str], *, start: int) -> None:
        self._group = {**dict.fromkeys(others, 1), policy: 0}
        self._bounds = [start]  # first place of each open generation, oldest first
        self._settled = np.zeros((2, 2, BUCKETS))  # [number of events, sum of rewards] of [policy, others]
        self._open = [np.zeros((2, 2, BUCKETS))]

    def begin(self, shown: int) -> None:
        """Begin a generation at the number of places given out. Call it before what was shown later is added."""
        if shown > self._bounds[-1]:
            self._bounds.append(shown)
            self._open.append(np.zeros((2, 2, BUCKETS)))
        if len(self._bounds) > OPEN:  # join the two neighbours that are the fewest together
            widths = np.diff(self._bounds)
            at = int(np.argmin(widths[:-1] + widths[1:]))
            self._open[at] += self._open.pop(at + 1)
            del self._bounds[at + 1]

    def add(self, entries: Iterable[Entry]) -> None:
        """Take the next entries of the log. Imports, and what other policies showed, are passed over."""
        rows = [
            (entry.slate_position, self._group[entry.policy], bucket_of(entry.user or entry.decision_id), entry.reward)
            for entry in entries
            if isinstance(entry, Event) and entry.slate_position is not None and entry.policy in self._group
        ]
        if rows:
            place, group, bucket, reward = (np.array(column) for column in zip(*rows, strict=True))
            self.count(place, group, bucket, reward)

    def count(self, place: Array, group: Array, bucket: Array, reward: Array) -> None:
        """Take events, each (B,): its place, 0 for the policy and 1 for the others, the user's cell, the reward."""
        generation = np.searchsorted(self._bounds, place, side="right") - 1
        for number, sums in enumerate(self._open):
            mine = generation == number
            np.add.at(sums[0], (group[mine], bucket[mine]), 1)
            np.add.at(sums[1], (group[mine], bucket[mine]), reward[mine])

    def settle(self, before: int) -> None:
        """Count the generations that lie before a place whose predecessors all have their final rewards."""
        while len(self._bounds) > 1 and self._bounds[1] <= before:
            self._settled += self._open.pop(0)
            del self._bounds[0]

    def groups(self) -> tuple[Group, Group]:
        """Return what was seen of the policy's users and of the others."""
        policy, others = (_group(*self._settled[:, side]) for side in (0, 1))
        return policy, others

    def state(self) -> Arrays:
        """Return all that it takes to go on."""
        return {"bounds": np.array(self._bounds), "settled": self._settled, "open": np.stack(self._open)}

    def load(self, state: Arrays) -> None:
        """Take up what `state` gave."""
        self._bounds = state["bounds"].tolist()
        self._settled, self._open = state["settled"].copy(), [sums.copy() for sums in state["open"]]


def bucket_of(user: str) -> int:
    """Return the cell of a user. The salt keeps it apart from the hash that splits the traffic."""
    return int.from_bytes(blake2b(user.encode(), digest_size=2, person=b"release").digest(), "big") % BUCKETS


def _group(number: Array, reward: Array) -> Group:
    """Sum up the cells (BUCKETS,) of one side; the variance is that of a ratio of sums over them (delta method)."""
    total = float(number.sum())
    if total == 0:
        return Group(0, 0.0, None, 0.0)
    mean, cells = float(reward.sum()) / total, int(np.count_nonzero(number))
    apart = float(((reward - mean * number) ** 2).sum()) * cells / max(cells - 1, 1)
    return Group(int(total), total**2 / float((number**2).sum()), mean, apart / total)


def difference_of(policy: Group, others: Group, *, error: float, scale: float) -> Interval | None:
    """Bound the difference of two means at every look at once.

    A group that has hardly seen a reward shows no variance. So each counts with at least the spread of the other.

    Args:
        error: probability that the difference ever leaves its bounds, both taken together.
        scale: of effects for which the bounds are narrow, > 0.

    Returns:
        None where a group is too small.
    """
    if min(policy.users, others.users) < FEWEST or policy.reward is None or others.reward is None:
        return None
    variance = max(policy.spread, others.spread) * (1 / policy.events + 1 / others.events)
    ratio = scale**2 / variance if variance > 0 else math.inf
    width = 0.0
    if variance > 0:
        width = math.sqrt(variance * (1 + 1 / ratio) * (2 * math.log(1 / error) + math.log1p(ratio)))
    estimate = policy.reward - others.reward
    return Interval(estimate, estimate - width, estimate + width)


def look(sums: ReleaseSums, guard: Guard, serving: Serving, *, error: float) -> Verdict:
    """Say whether a step goes on, waits or goes back.

    It goes on where a drop in reward by more than the guard allows is excluded. Else it goes back where a drop of any
    size is shown. So a policy that is no worse goes back, and one that is worse by more than that goes on, with a
    probability of at most `error`; what lies between goes whichever way is shown first. How it is served comes first.

    Args:
        error: probability that this step ever goes the wrong way.
    """
    policy, others = sums.groups()
    found = difference_of(policy, others, error=error, scale=guard.reward_drop)
    course, why = _served_badly(guard, serving) or _compared(guard, policy, others, found)
    return Verdict(course, why, policy, others, found)


def _served_badly(guard: Guard, serving: Serving) -> tuple[Course, str] | None:
    if serving.lag > guard.lag:
        return "go back", f"the policy has still to learn {serving.lag:,} events, and the guard allows {guard.lag:,}"
    if serving.decisions < FEWEST_SERVED:
        return None
    if guard.latency_ms is not None and serving.slow > SLOW * serving.decisions:
        return "go back", (
            f"{serving.slow / serving.decisions:.0%} of {serving.decisions:,} decisions took longer than"
            f" {guard.latency_ms:g} ms, and the guard allows {SLOW:.0%}"
        )
    if guard.degraded is not None and serving.degraded > guard.degraded * serving.decisions:
        return "go back", (
            f"{serving.degraded / serving.decisions:.1%} of {serving.decisions:,} decisions were degraded, and the"
            f" guard allows {guard.degraded:.1%}"
        )
    return None


def _compared(guard: Guard, policy: Group, others: Group, found: Interval | None) -> tuple[Course, str]:
    if found is None:
        few = min(policy.users, others.users)
        return "wait", (
            f"{policy.events:,} settled decisions of the policy and {others.events:,} of the others count for"
            f" {few:.0f} users on the smaller side, and {FEWEST} are the fewest"
        )
    lies = f"the difference in reward lies in [{found.low:+.4f}, {found.high:+.4f}]"
    if found.low > -guard.reward_drop:
        return "go on", f"{lies}: no drop by {guard.reward_drop:g} or more"
    if found.high < 0:
        return "go back", f"{lies}: it is worse than the others"
    return "wait", f"{lies}: a drop by {guard.reward_drop:g} is not excluded, and that it is worse is not shown"


def steps_with_others(steps: Sequence[float]) -> int:
    """Return at how many steps there is somebody to compare with."""
    return sum(share < 1 for share in steps)


def described(verdict: Verdict) -> dict[str, Any]:
    """Write a verdict as JSON."""
    return {
        "course": verdict.course,
        "why": verdict.why,
        "policy": {"events": verdict.policy.events, "users": verdict.policy.users, "reward": verdict.policy.reward},
        "others": {"events": verdict.others.events, "users": verdict.others.users, "reward": verdict.others.reward},
        "difference": None if verdict.difference is None else verdict.difference._asdict(),
    }
