"""Folds the log into sums of the units of an experiment, and these into the moments of its arms.

A unit's sums are a row (7,) as `service/evaluate/experiment.py` names its columns. Rows lie in the store; a fold takes
those that some entries touch, and gives back the new ones with what they add to the moments. So its memory is that of
some entries, however many units there are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from service.decide.assignment import unit_of
from service.evaluate.experiment import COLUMNS, REPORTED, REWARD, SHOWN, SHOWN_BEFORE, UNIT
from service.policies import Array
from service.records import OUTSIDE, Entry, Event, Experiment

MOST_UNITS = 1_000_000  # of an experiment; later ones are not counted
MOST_BEFORE = MOST_UNITS // 2  # of them, those that came before it began: they need not come again


class Touch(NamedTuple):
    """What an event does to its unit."""

    unit: bytes
    arm: int | None  # None: the event is from before the experiment
    reward: float
    reported: bool
    at: float  # unix seconds


@dataclass
class Unit:
    """A unit, as it is kept."""

    arm: int | None  # number in `arms_of`; None: it did not take part yet
    sums: Array  # (7,)


def arms_of(experiment: Experiment) -> list[str]:
    """Return the names of the arms in the order of their numbers, OUTSIDE last."""
    return [*experiment.arms, OUTSIDE]


def touches(experiment: Experiment, entries: Sequence[Entry], *, reported: bool) -> list[Touch]:
    """Return what those of these entries do that count.

    Events of the experiment's present version count, and, of users, those of the time before it began.

    Args:
        reported: whether to take the events with feedback, or those with the default reward.
    """
    numbers = {name: number for number, name in enumerate(arms_of(experiment))}
    found = []
    for entry in entries:
        if not isinstance(entry, Event) or (entry.source != "default") != reported:
            continue
        fell, arm = entry.experiment, None
        if fell is not None and (fell.id, fell.version) == (experiment.id, experiment.version):
            arm = numbers.get(fell.arm)
        elif experiment.unit != "user" or entry.time >= experiment.starts:  # sessions and decisions do not come again
            continue
        unit = unit_of(experiment, entry.user, entry.decision_id, entry.context)
        if unit is not None:
            found.append(Touch(experiment.digest(unit), arm, entry.reward, reported, entry.time))
    return found


def fold(
    experiment: Experiment, touched: Sequence[Touch], known: Mapping[bytes, Unit], *, units: int
) -> tuple[dict[bytes, Unit], Array, int]:
    """Add events to their units.

    Args:
        known: those of the touched units that were there before.
        units: that were there before, in all.

    Returns:
        The touched units as they are now; what is to be added to the moments (arms, 7, 7), of `arms_of`; and how many
        events were left out, as their units were too many.
    """
    before = {name: Unit(one.arm, one.sums) for name, one in known.items()}
    now = {name: Unit(one.arm, one.sums.copy()) for name, one in known.items()}
    left_out = 0
    for touch in touched:
        one = now.get(touch.unit)
        if one is None:
            if units >= (MOST_BEFORE if touch.arm is None else MOST_UNITS):
                left_out += 1
                continue
            units += 1
            one = now[touch.unit] = Unit(None, np.zeros(COLUMNS))
            one.sums[UNIT] = 1.0
        if touch.arm is None:
            start = SHOWN_BEFORE
        else:
            start = SHOWN
            one.arm = touch.arm if one.arm is None else one.arm
        one.sums[start] += 1.0
        one.sums[start + REWARD - SHOWN] += touch.reward
        one.sums[start + REPORTED - SHOWN] += touch.reported
    arms = len(arms_of(experiment))
    return now, _moments(now, arms) - _moments(before, arms), left_out


def _moments(units: Mapping[bytes, Unit], arms: int) -> Array:
    """Return the moments (arms, 7, 7) of those units that take part."""
    found = np.zeros((arms, COLUMNS, COLUMNS))
    for number in range(arms):
        rows = [one.sums for one in units.values() if one.arm == number]
        if rows:
            some = np.array(rows)
            found[number] = some.T @ some
    return found
