"""What a user is up to: a pure fold over his activity, which becomes fields of the context.

    {"@user": {"last": {"category": "dog toy", "price": 4}, "last_item": "sku-9", "last_type": "click",
               "seconds_since": 12, "recent": {"category": ["dog toy", "leash"]}, "often": {"category": ["dog toy"]},
               "count": 17, "kept": 17}}

The record of a decision holds these fields. So what was served is what is learned, and what a replay computes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from operator import attrgetter
from typing import Any, NamedTuple

from service.represent.json_paths import leaves

USER = "@user"  # the name in the context, which is not for clients

WEIGHTS: Mapping[str, float] = {"view": 1.0, "click": 2.0, "reward": 2.0, "cart": 4.0, "buy": 8.0}
OF_OTHER_TYPES = 1.0
RECENT = 5  # of the newest activities that `recent` is made of
RECENT_DECAY = 0.5  # from one of them to the one before
HALF_LIFE_MS = 7 * 86_400_000  # of an activity's weight in `often`
LEAST_SHARE = 0.15  # of a level in `recent` and `often`
MOST_LEVELS = 3  # of a field in `recent` and `often`

MOST_FIELDS = 8  # of an item
MOST_TEXT = 64  # characters of a text; longer ones are left out
MOST_MEMBERS = 8  # of a list of texts; longer ones are left out


class Activity(NamedTuple):
    """What a user did with an item. `number` counts what was accepted of this user, from 1."""

    number: int
    at: int  # unix milliseconds
    item: str
    type: str


class ItemFields:
    """The fields and levels of items that states hold. Each item's are found once; an unknown item has none.

    Args:
        items: the catalogue.
    """

    def __init__(self, items: Mapping[str, Mapping[str, Any]]) -> None:
        self._items = items
        self._found: dict[str, tuple[dict[str, Any], tuple[tuple[str, str], ...]]] = {}

    def __getitem__(self, item: str) -> tuple[dict[str, Any], tuple[tuple[str, str], ...]]:
        """Return the short fields of an item, and the pairs (field, level) of its texts."""
        if item not in self._items:
            return {}, ()
        if item not in self._found:
            fields = _short(self._items[item])
            texts = {path: [value] if isinstance(value, str) else value for path, value in fields.items()}
            pairs = [(path, level) for path, levels in texts.items() if isinstance(levels, list) for level in levels]
            self._found[item] = fields, tuple(pairs)
        return self._found[item]


def last_items(done: Sequence[Activity]) -> tuple[str, ...]:
    """Return a user's last items, at most five different ones, the newest first."""
    newest = sorted(done, key=attrgetter("at"))
    return tuple(islice(dict.fromkeys(one.item for one in reversed(newest)), RECENT))


def user_state(done: Sequence[Activity], items: ItemFields, *, at: int) -> dict[str, Any]:
    """Fold a user's activity into the fields of his state.

    `last` is the activity with the newest time, of several the one that was accepted last. So one that comes late
    does not become the last. A level's weight in `recent` is the sum of ½ to the power of the activity's place among
    the newest; in `often` it is the sum of w(type) 2^(-age / 7 days), where the age counts from the last activity.
    Kept are the three levels of a field that weigh most, with at least .15 of the field's weight.

    Args:
        done: the activity that is kept, in the order in which it was accepted.
        items: of the catalogue. An item that it lacks counts without fields.
        at: when the decision is made, in unix milliseconds.

    Returns:
        The fields; {} where there is no activity.
    """
    if not done:
        return {}
    newest = sorted(done, key=attrgetter("at"))  # stable: of equal times the one accepted last stays behind
    last = newest[-1]
    recent: dict[tuple[str, str], float] = {}
    for place, one in enumerate(reversed(newest[-RECENT:])):
        for pair in items[one.item][1]:
            recent[pair] = recent.get(pair, 0.0) + RECENT_DECAY**place
    often: dict[tuple[str, str], float] = {}
    for one in done:
        weight = WEIGHTS.get(one.type, OF_OTHER_TYPES) * 2.0 ** ((one.at - last.at) / HALF_LIFE_MS)
        for pair in items[one.item][1]:
            often[pair] = often.get(pair, 0.0) + weight
    state: dict[str, Any] = {
        "last": items[last.item][0],
        "last_item": last.item,
        "last_type": last.type,
        "seconds_since": max(0, at - last.at) // 1000,
        "recent": heaviest(recent),
        "often": heaviest(often),
        "count": done[-1].number,
        "kept": len(done),
    }
    return {name: value for name, value in state.items() if value != {}}


def _short(features: Mapping[str, Any]) -> dict[str, Any]:
    """Return the first fields of an item that are short: texts, numbers, booleans, lists of texts."""
    found: dict[str, Any] = {}
    for path, value in leaves(features)[0]:
        if isinstance(value, list):
            texts = all(isinstance(one, str) and len(one) <= MOST_TEXT for one in value)
            short = texts and 0 < len(value) <= MOST_MEMBERS
        else:
            short = value is not None and not (isinstance(value, str) and len(value) > MOST_TEXT)
        if short and len(found) < MOST_FIELDS:
            found[path] = value
    return found


def heaviest(weights: Mapping[tuple[str, str], float]) -> dict[str, list[str]]:
    """Return field -> its levels that weigh most, the heaviest first: three at most, each with .15 of the field."""
    of_fields: dict[str, list[tuple[float, str]]] = {}
    for (path, level), weight in weights.items():
        of_fields.setdefault(path, []).append((-weight, level))
    return {
        path: [
            level
            for weight, level in sorted(levels)[:MOST_LEVELS]
            if weight <= LEAST_SHARE * sum(weight for weight, _ in levels)
        ]
        for path, levels in of_fields.items()
    }
