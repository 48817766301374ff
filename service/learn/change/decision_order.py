"""Groups evidence by decision order, because rewards arrive out of order.

Under aggregation `first` a click enters the log at once, and silence when the wait is over: the log's order depends on
the outcomes. Learning hardly suffers from that. A detector of change does: in the newest events of such a log it sees a
change whenever traffic swells or ebbs, or a sweeper was down.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

import numpy as np

from service.policies import Array

GROUP = 64  # decisions that lie so close together are judged together
ENOUGH = 48  # events of a group, and of the next, that must be there: the rest of the group may be a long time coming
FAR = 4  # groups behind the newest at which an event is late, and the first that is not judged is overdue
MOST_HELD = 4096  # groups that wait for those before them
RECENT = 512  # events over which `orderly` looks back
DISORDER = 0.05  # share of late events at which a log is no longer in order

Group: TypeAlias = tuple[list[float], list[float]]  # the two rows of a group, as lists: they grow event by event


class DecisionOrder:
    """What events say, group of decisions by group, each when most of its events are there.

    A group is an array (2, 1 + size): first the sums over its events, of 1 and of what they say; then their CUSUMs,
    C ← max(0, C + what one says), in the order in which they came.

    An event's slate position (`Event.slate_position`) is its place in the order of the decisions. An event that has
    none, such as an imported one, is in order by definition and a group of its own. An event that comes when its group
    was judged is left out.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._first = -1  # the first group that is not judged; -1 before there was any
        self._last = -1  # the last group of which there was an event
        self._held: dict[int, Group] = {}
        self._passed: dict[int, int] = {}  # group -> events of it that say nothing here
        self._disorder = 0.0  # share of the recent events that were late

    def add(self, slate_position: int | None, says: tuple[float, ...]) -> Iterator[Array]:
        """One event; the groups that can be judged now, in order."""
        if slate_position is None:
            yield np.array(_grown(self._empty(), says))
            return
        group = self._seen(slate_position)
        if group >= self._first:
            self._held[group] = _grown(self._held.get(group) or self._empty(), says)
            yield from self._ready()

    def pass_over(self, slate_position: int) -> Iterator[Array]:
        """Note an event that is there, and says nothing here; return the groups that can be judged now."""
        group = self._seen(slate_position)
        if group >= self._first:
            self._passed[group] = self._passed.get(group, 0) + 1
            yield from self._ready()

    def _seen(self, slate_position: int) -> int:
        """Note that there is an event of a group; return the group."""
        group = slate_position // GROUP
        self._first = group if self._first < 0 else self._first
        self._last = max(self._last, group)
        self._disorder += ((self._last - group > FAR) - self._disorder) / RECENT
        return group

    def _ready(self) -> Iterator[Array]:
        while (self._there(self._first) and self._there(self._first + 1)) or self._too_many:
            found = self._held.pop(self._first, None)
            self._passed.pop(self._first, None)
            self._first += 1
            if found is not None:
                yield np.array(found)

    @property
    def _too_many(self) -> bool:
        return max(len(self._held), len(self._passed)) > MOST_HELD

    def _empty(self) -> Group:
        return [0.0] * (1 + self._size), [0.0] * (1 + self._size)

    def _there(self, group: int) -> bool:
        said = self._held[group][0][0] if group in self._held else 0.0
        return said + self._passed.get(group, 0) >= ENOUGH

    @property
    def orderly(self) -> bool:
        """Whether events come about as their decisions were made."""
        return self._disorder < DISORDER and self._last - self._first <= FAR

    @property
    def waiting(self) -> list[Array]:
        """The groups that are not judged yet, as far as they have come, in order."""
        return [np.array(self._held[group]) for group in sorted(self._held)]

    def restart(self) -> None:
        """Go on behind every group of which there was an event: what is left of one is no fair sample of it."""
        self._held.clear()
        self._passed.clear()
        if self._last >= 0:
            self._first = self._last + 1

    def state(self) -> Array:
        """(1 + groups held + groups passed over in part, 3 + 2 size) float64; the latter have a number below 0."""
        head = np.zeros(3 + 2 * self._size)
        head[:3] = self._first, self._last, self._disorder
        passed = np.zeros((len(self._passed), 3 + 2 * self._size))
        for row, (group, count) in zip(passed, sorted(self._passed.items()), strict=True):
            row[:2] = -1 - group, count
        held = ([group, *sums, *cusums] for group, (sums, cusums) in sorted(self._held.items()))
        return np.array([head, *held, *passed])

    def load(self, state: Array) -> None:
        first, last, self._disorder = state[0, :3].tolist()
        self._first, self._last = int(first), int(last)
        self._held, self._passed = {}, {}
        for group, *both in state[1:].tolist():
            if group < 0:
                self._passed[int(-1 - group)] = int(both[0])
                continue
            self._held[int(group)] = both[: 1 + self._size], both[1 + self._size :]


def _grown(group: Group, says: tuple[float, ...]) -> Group:
    """The same group with one event more."""
    event, (sums, cusums) = (1.0, *says), group
    return (
        [total + one for total, one in zip(sums, event, strict=True)],
        [max(0.0, cusum + one) for cusum, one in zip(cusums, event, strict=True)],
    )
