"""What a user is up to: a pure fold over his activity, which becomes fields of the context.

    {"@user": {"last": {"category": "dog toy", "price": 4}, "last_item": "sku-9", "last_type": "click",
               "seconds_since": 12, "recent": {"category": ["dog toy", "leash"]}, "often": {"category": ["dog toy"]},
               "count": 17, "kept": 17}}

The record of a decision holds these fields. So what was served is what is learned, and what a replay computes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from service.represent.json_paths import leaves

USER = "@user"  # the name in the context, which is not for clients

WEIGHTS: Mapping[str, float] = {"view": 1.0, "click": 2.0, "cart": 4.0, "buy": 8.0}
OF_OTHER_TYPES = 1.0
RECENT = 5  # of the newest activities that `recent` is made of
RECENT_DECAY = 0.5  # from one of them to the one before
HALF_LIFE_MS = 7 * 86_400_000  # of an activity's weight in `often`
LEAST_SHARE = 0.15  # of a level in `recent` and `often`
MOST_LEVELS = 3  # of a field in `recent` and `often`

MOST_FIELDS = 8  # of an item
MOST_TEXT = 64  # characters of a text; longer ones are left out
MOST_MEMBERS = 8  # of a list of texts; longer ones are left out


@dataclass(frozen=True, slots=True)
class Activity:
    """What a user did with an item. `number` counts what was accepted of this user, from 1."""

    number: int
    at: int  # unix milliseconds
    item: str
    type: str


def user_state(done: Sequence[Activity], items: Mapping[str, Mapping[str, Any]], *, at: int) -> dict[str, Any]:
    """Fold a user's activity into the fields of his state.

    `last` is the activity with the newest time, of several the one that was accepted last. So one that comes late
    does not become the last. A level's weight in `recent` is the sum of ½ to the power of the activity's place among
    the newest; in `often` it is the sum of w(type) 2^(-age / 7 days), where the age counts from the last activity.
    Kept are the three levels of a field that weigh most, with at least .15 of the field's weight.

    Args:
        done: the activity that is kept, in the order in which it was accepted.
        items: the catalogue. An item that it lacks counts without fields.
        at: when the decision is made, in unix milliseconds.

    Returns:
        The fields; {} where there is no activity.
    """
    if not done:
        return {}
    newest = sorted(done, key=lambda one: one.at)  # stable: of equal times the one accepted last stays behind
    last = newest[-1]
    fields = {item: _fields(items.get(item, {})) for item in dict.fromkeys(one.item for one in done)}
    state: dict[str, Any] = {
        "last": fields[last.item],
        "last_item": last.item,
        "last_type": last.type,
        "seconds_since": max(0, at - last.at) // 1000,
        "recent": _levels(
            [(fields[one.item], RECENT_DECAY**place) for place, one in enumerate(reversed(newest[-RECENT:]))]
        ),
        "often": _levels(
            [
                (fields[one.item], WEIGHTS.get(one.type, OF_OTHER_TYPES) * 2.0 ** ((one.at - last.at) / HALF_LIFE_MS))
                for one in done
            ]
        ),
        "count": done[-1].number,
        "kept": len(done),
    }
    return {name: value for name, value in state.items() if value != {}}


def _fields(features: Mapping[str, Any]) -> dict[str, Any]:
    """Return the first fields of an item that are short: texts, numbers, booleans, lists of texts."""
    found: dict[str, Any] = {}
    for path, value in leaves(features)[0]:
        if isinstance(value, list):
            short = 0 < len(value) <= MOST_MEMBERS and all(
                isinstance(one, str) and len(one) <= MOST_TEXT for one in value
            )
        else:
            short = value is not None and not (isinstance(value, str) and len(value) > MOST_TEXT)
        if short and len(found) < MOST_FIELDS:
            found[path] = value
    return found


def _levels(weighed: Sequence[tuple[Mapping[str, Any], float]]) -> dict[str, list[str]]:
    """Return field -> the levels that weigh most. A level is a text, or a member of a list of texts."""
    sums: dict[str, dict[str, float]] = {}
    for fields, weight in weighed:
        for path, value in fields.items():
            for level in (value,) if isinstance(value, str) else value if isinstance(value, list) else ():
                of_field = sums.setdefault(path, {})
                of_field[level] = of_field.get(level, 0.0) + weight
    return {
        path: [
            level
            for level in sorted(of_field, key=lambda level: (-of_field[level], level))[:MOST_LEVELS]
            if of_field[level] >= LEAST_SHARE * sum(of_field.values())
        ]
        for path, of_field in sums.items()
    }
