"""The rules of a decision over its candidates: the last stage before the draw.

They are applied inside the draw, so propensities stay exact: the probability that is logged is the one that the item
was drawn with, under the rules and given the places before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from service.errors import NoCandidates
from service.policies import Array
from service.represent.json_paths import level_of, number_of, value_at
from service.rules import Condition, Rules

REMEMBERED = 64  # answers to conditions that a set of items keeps
NO_KIND = -1  # of an item that lacks the field


class Traits:
    """What rules ask of n items, remembered."""

    def __init__(self, features: Sequence[Mapping[str, Any]]) -> None:
        self._features = features
        self._known: dict[Any, Any] = {}

    def __len__(self) -> int:
        return len(self._features)

    def holding(self, condition: Condition) -> NDArray[np.bool_]:
        """Return which items meet a condition, (n,)."""
        found: NDArray[np.bool_] = self._remembered(condition, lambda: _holding(condition, self._features))
        return found

    def kinds(self, field: str) -> NDArray[np.intp]:
        """Return the number of each item's value of a field, (n,); `NO_KIND` where it has none, or a list."""
        return self._kinds(field).found

    def _kinds(self, field: str) -> _Kinds:
        return cast(_Kinds, self._remembered(field, lambda: _kinds(field, self._features, {})))

    def merged(self, put: Traits, order: NDArray[np.intp], features: Sequence[Mapping[str, Any]]) -> Traits:
        """Return the traits of these items followed by those of `put`, at `order`. Only `put` is asked anew.

        Another thread may ask these items meanwhile.

        Args:
            features: in the new order.
        """
        merged = Traits(features)
        for key, known in dict(self._known).items():
            if isinstance(known, _Kinds):
                kinds = _kinds(key, put._features, dict(known.numbers))
                merged._known[key] = _Kinds(np.concatenate([known.found, kinds.found])[order], kinds.numbers)
            else:
                merged._known[key] = np.concatenate([known, put.holding(key)])[order]
        return merged

    def _remembered(self, key: Any, find: Callable[[], Any]) -> Any:
        found = self._known.get(key)
        if found is None:
            if len(self._known) == REMEMBERED:
                self._known.clear()
            found = self._known[key] = find()
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


def _holding(condition: Condition, features: Sequence[Mapping[str, Any]]) -> NDArray[np.bool_]:
    """Return which of n items meet a condition, (n,)."""
    values = (value_at(one, condition.field) for one in features)
    if condition.is_in is not None:
        wanted = {level_of(value) for value in condition.is_in}
        met = (not wanted.isdisjoint(_levels(value)) for value in values)
    elif condition.not_in is not None:
        unwanted = {level_of(value) for value in condition.not_in}
        met = (unwanted.isdisjoint(_levels(value)) for value in values)
    else:
        low = -np.inf if condition.min is None else condition.min
        high = np.inf if condition.max is None else condition.max
        met = ((v := number_of(value)) is not None and low <= v <= high for value in values)
    return np.fromiter(met, dtype=np.bool_, count=len(features))


def _levels(value: Any) -> set[str]:
    """Return the levels of a value: of a list those of its elements; none where there is no value."""
    if value is None:
        return set()
    return {level_of(one) for one in value} if isinstance(value, list) else {level_of(value)}


class _Kinds(NamedTuple):
    found: NDArray[np.intp]  # (n,) number of each item's level
    numbers: dict[str, int]  # level -> its number


def _kinds(field: str, features: Sequence[Mapping[str, Any]], numbers: dict[str, int]) -> _Kinds:
    """Number the items' levels of a field; new ones are added to `numbers`."""
    values = (value_at(one, field) for one in features)
    found = (
        NO_KIND if value is None or isinstance(value, list) else numbers.setdefault(level_of(value), len(numbers))
        for value in values
    )
    return _Kinds(np.fromiter(found, dtype=np.intp, count=len(features)), numbers)
