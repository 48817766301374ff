"""Says which arm of an experiment a unit falls into.

The hash of the experiment's id and the unit is a place among `PARTS`, and spans of places belong to arms. The id is new
for every experiment, so arms of one are independent of arms of another. A change of shares moves the borders of spans,
and so many units as it must.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from itertools import accumulate, groupby

from service.records import OUTSIDE, Assignment, Experiment, Features
from service.represent.json_paths import level_of, value_at

PARTS = 1_000_000
NO_FEATURES: Features = {}

Spans = Sequence[tuple[str, int]]  # (arm or OUTSIDE, parts), in order


def place_of(experiment: str, unit: str) -> int:
    """Return where a unit falls in the experiment of this id: 0 … PARTS - 1, each as likely."""
    digest = blake2b(f"experiment\0{experiment}\0{unit}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") * PARTS >> 64


def divided(spans: Spans, shares: Mapping[str, float]) -> Spans:
    """Divide all places anew: who shrinks gives up as much as he must, who grows takes that, nobody else is touched.

    Args:
        spans: as they are; `((OUTSIDE, PARTS),)` before the first division.
        shares: arm or OUTSIDE -> share, at least one half of a part or 0; they sum to 1.
    """
    wanted = {name: round(share * PARTS) for name, share in shares.items()}
    largest = max(wanted, key=lambda name: wanted[name])
    wanted[largest] += PARTS - sum(wanted.values())
    had = Counter[str]()
    for name, parts in spans:
        had[name] += parts
    keeps = {name: min(parts, wanted.get(name, 0)) for name, parts in had.items()}
    lacks = {name: parts - had[name] for name, parts in wanted.items() if parts > had[name]}
    new: list[tuple[str, int]] = []
    for name, parts in spans:
        kept = min(parts, keeps[name])
        keeps[name] -= kept
        new.append((name, kept))
        free = parts - kept
        while free:
            taker = next(iter(lacks))
            taken = min(free, lacks[taker])
            new.append((taker, taken))
            free -= taken
            lacks[taker] -= taken
            if not lacks[taker]:
                del lacks[taker]
    return tuple(
        (name, sum(parts for _, parts in group))
        for name, group in groupby((one for one in new if one[1]), key=lambda one: one[0])
    )


class Assigner:
    """Assigns units of one experiment by one hash each."""

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        self._ends = list(accumulate(parts for _, parts in experiment.spans))
        total = Counter[str]()
        for arm, parts in experiment.spans:
            total[arm] += parts
        said = {
            arm: Assignment(
                experiment.name, experiment.id, experiment.version, arm, parts / PARTS, _apart(experiment, arm)
            )
            for arm, parts in total.items()
        }
        self._assignments = [said[arm] for arm, _ in experiment.spans]

    def assignment(
        self, user_id: str | None, decision_id: str, *, at: float, context: Features = NO_FEATURES
    ) -> Assignment | None:
        """Return where a decision falls; None: the experiment does not run at this time, or it is of no unit."""
        experiment = self.experiment
        if at < experiment.starts or experiment.ended(at):
            return None
        unit = unit_of(experiment, user_id, decision_id, context)
        if unit is None:
            return None
        return self._assignments[bisect_right(self._ends, place_of(experiment.id, unit))]


def unit_of(experiment: Experiment, user_id: str | None, decision_id: str, context: Features) -> str | None:
    """Return the unit that a decision is of; None: of none."""
    if experiment.unit == "user":
        return user_id
    if experiment.unit == "decision":
        return decision_id
    session = value_at(context, experiment.session)
    return None if session is None or isinstance(session, list) else level_of(session)


def _apart(experiment: Experiment, arm: str) -> tuple[str, ...]:
    """Return the ids of the policies that do not learn an arm's events; all learn those of units that are left out."""
    if arm == OUTSIDE:
        return ()
    own = experiment.arms[arm].policy
    return tuple(sorted(id for policy, id in experiment.learners.items() if policy != own))


def outside() -> Spans:
    """Return the spans of an experiment that nobody takes part in yet."""
    return ((OUTSIDE, PARTS),)
