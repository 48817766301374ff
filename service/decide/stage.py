"""The rules of a decision over its candidates: the last stage before the draw.

They are applied inside the draw, so propensities stay exact: the probability that is logged is the one that the item
was drawn with, under the rules and given the places before.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from service.errors import NoCandidates
from service.policies import Array
from service.represent.json_paths import level_of, number_of, value_at
from service.rules import Condition, Rules, Scalar

Key = TypeVar("Key")
Answer = TypeVar("Answer")

REMEMBERED = 64  # columns, and answers to conditions, that a set of items keeps
NO_KIND = -1  # of an item that lacks the field


class Traits:
    """What rules ask of n items, remembered. An item is read once for each field that is asked for."""

    def __init__(self, features: Sequence[Mapping[str, Any]]) -> None:
        self._features = features
        self._levels: dict[str, _Levels] = {}
        self._numbers: dict[str, Array] = {}  # (n,) float64, NaN where it is no number
        self._known: dict[Hashable, NDArray[np.bool_]] = {}

    def __len__(self) -> int:
        return len(self._features)

    def holding(self, condition: Condition) -> NDArray[np.bool_]:
        """Return which items meet a condition, (n,)."""
        return _remembered(self._known, key_of(condition), lambda: self._holding(condition))

    def meeting(self, conditions: Sequence[Condition]) -> NDArray[np.bool_]:
        """Return which items meet all of these conditions, (n,)."""
        met = np.ones(len(self), dtype=np.bool_)
        for condition in conditions:
            met &= self.holding(condition)
        return met

    def kinds(self, field: str) -> NDArray[np.intp]:
        """Return the number of each item's value of a field, (n,); `NO_KIND` where it has none, or a list."""
        return self._levels_of(field).found

    def merged(self, put: Traits, order: NDArray[np.intp], features: Sequence[Mapping[str, Any]]) -> Traits:
        """Return the traits of these items followed by those of `put`, at `order`. Only `put` is asked anew.

        Another thread may ask these items meanwhile.

        Args:
            features: in the new order.
        """
        merged = Traits(features)
        for field, levels in dict(self._levels).items():
            merged._levels[field] = levels.followed_by(_levels(field, put._features, dict(levels.numbers)), order)
        for field, numbers in dict(self._numbers).items():
            merged._numbers[field] = np.concatenate([numbers, put._numbers_of(field)])[order]
        return merged

    def _holding(self, condition: Condition) -> NDArray[np.bool_]:
        if condition.is_in is not None:
            return self._levels_of(condition.field).holding(condition.is_in)
        if condition.not_in is not None:
            return ~self._levels_of(condition.field).holding(condition.not_in)
        numbers = self._numbers_of(condition.field)
        low = -np.inf if condition.min is None else condition.min
        high = np.inf if condition.max is None else condition.max
        within: NDArray[np.bool_] = (low <= numbers) & (numbers <= high)  # NaN is not
        return within

    def _levels_of(self, field: str) -> _Levels:
        return _remembered(self._levels, field, lambda: _levels(field, self._features, {}))

    def _numbers_of(self, field: str) -> Array:
        return _remembered(self._numbers, field, lambda: _numbers(field, self._features))


def key_of(condition: Condition) -> Hashable:
    """Return what tells conditions apart: True equals 1 in Python, and is another level."""
    return condition, tuple(map(type, condition.is_in or condition.not_in or ()))


def _remembered(known: dict[Key, Answer], key: Key, find: Callable[[], Answer]) -> Answer:
    """Return what is known, or find it; when there is too much, all is forgotten."""
    found = known.get(key)
    if found is None:
        if len(known) >= REMEMBERED:
            known.clear()
        found = known[key] = find()
    return found


class Stage:
    """The rules of one decision over its n candidates.

    Args:
        rows: of `traits`, (n,), that are candidates; None: all.
        ids: of the candidates.
    """

    def __init__(self, rules: Rules, traits: Traits, rows: NDArray[np.intp] | None, ids: Sequence[str]) -> None:
        def of_candidates(found: NDArray[Any]) -> NDArray[Any]:
            return found if rows is None else found[rows]

        self.n = len(ids)
        self._said: list[tuple[NDArray[np.bool_], str]] = []  # (n,) whom a boost meets, and what it says
        self.odds: Array | None = None  # (n,) factors
        for boost in rules.boost:
            met = of_candidates(traits.holding(boost))
            factor = np.where(met, boost.times, 1.0)
            self.odds = factor if self.odds is None else self.odds * factor
            self._said.append((met, f"boost: {boost}, times {boost.times:g}"))
        known = list(ids) if rules.pin else []
        self._pinned = {pin.place - 1: known.index(pin.item) for pin in rules.pin if pin.item in known}
        self._limits = [(limit.items, of_candidates(traits.kinds(limit.field))) for limit in rules.at_most]

    def left(self, place: int, taken: Sequence[int]) -> NDArray[np.intp]:
        """Return the rows that may stand at a place, from 0 on, given those at the places before; none may be left."""
        pinned = self._pinned.get(place)
        if pinned is not None:
            return np.array([pinned])
        free = np.ones(self.n, dtype=np.bool_)
        free[list(taken)] = False
        free[[row for at, row in self._pinned.items() if at > place]] = False
        for most, kinds in self._limits:
            shown = kinds[list(taken)]
            full = [kind for kind in np.unique(shown).tolist() if kind != NO_KIND and (shown == kind).sum() >= most]
            free &= ~np.isin(kinds, full)
        return np.flatnonzero(free)

    def said(self, row: int) -> tuple[str, ...]:
        """Return the rules that concern a candidate, for people."""
        pins = [f"pin: place {place + 1}" for place, pinned in self._pinned.items() if pinned == row]
        return (*pins, *(text for met, text in self._said if met[row]))

    def weighed(self, pmf: Array, left: NDArray[np.intp]) -> Array:
        """Return the policy's probabilities of the rows that are left, their odds multiplied by the boosts."""
        if self.odds is None:
            return pmf
        weighed = pmf * self.odds[left]
        boosted: Array = weighed / weighed.sum()
        return boosted


def passing(rules: Rules, traits: Traits, rows: NDArray[np.intp] | None) -> NDArray[np.intp]:
    """Return which of the candidates `rows`, None for all, meet the filter.

    Raises:
        NoCandidates: none is left; it names the condition that took the last.
    """
    left = np.arange(len(traits)) if rows is None else rows
    for condition in rules.filter:
        before, left = len(left), left[traits.holding(condition)[left]]
        if before and not len(left):
            raise NoCandidates("rules", f"none of the {before} candidates that were left has {condition}")
    return left


class _Levels(NamedTuple):
    """The levels of a field of n items, as numbers. Of a list each element is one."""

    found: NDArray[np.intp]  # (n,) number of each item's level; `NO_KIND` where it has none, or a list
    listed: NDArray[np.intp]  # (m,) rows of items that have lists, once for each element
    elements: NDArray[np.intp]  # (m,) numbers of the elements' levels
    numbers: dict[str, int]  # level -> its number

    def holding(self, values: Sequence[Scalar]) -> NDArray[np.bool_]:
        """Return which items have one of these values, (n,)."""
        wanted = np.zeros(len(self.numbers) + 1, dtype=np.bool_)  # the last is asked for by `NO_KIND`
        wanted[[self.numbers[level] for level in map(level_of, values) if level in self.numbers]] = True
        met: NDArray[np.bool_] = wanted[self.found]
        met[self.listed[wanted[self.elements]]] = True
        return met

    def followed_by(self, put: _Levels, order: NDArray[np.intp]) -> _Levels:
        """Return the levels of these items followed by those of `put`, whose numbers go on from these, at `order`."""
        n = len(self.found) + len(put.found)
        rows = np.full(n, -1, dtype=np.intp)
        rows[order] = np.arange(len(order))
        listed = rows[np.concatenate([self.listed, put.listed + len(self.found)])]
        stays = listed >= 0
        elements = np.concatenate([self.elements, put.elements])
        found = np.concatenate([self.found, put.found])[order]
        return _Levels(found, listed[stays], elements[stays], put.numbers)


def _levels(field: str, features: Sequence[Mapping[str, Any]], numbers: dict[str, int]) -> _Levels:
    """Number the items' levels of a field; new ones are added to `numbers`."""
    found = np.full(len(features), NO_KIND, dtype=np.intp)
    listed: list[int] = []
    elements: list[int] = []
    for row, one in enumerate(features):
        value = value_at(one, field)
        if isinstance(value, list):
            listed += [row] * len(value)
            elements += [numbers.setdefault(level_of(element), len(numbers)) for element in value]
        elif value is not None:
            found[row] = numbers.setdefault(level_of(value), len(numbers))
    return _Levels(found, np.array(listed, dtype=np.intp), np.array(elements, dtype=np.intp), numbers)


def _numbers(field: str, features: Sequence[Mapping[str, Any]]) -> Array:
    """Return the items' values of a field as numbers, (n,) float64; NaN where there is none."""
    values = (number_of(value_at(one, field)) for one in features)
    return np.fromiter((np.nan if value is None else value for value in values), np.float64, count=len(features))
