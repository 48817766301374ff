"""What the log and the changes of the catalogue say of each item: the half of retrieval that is learned.

Letters: **m** items that are known, **N** items of a catalogue.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.policies.item_index import ItemIndex
from service.records import Event, ItemChange, order
from service.retrieve.covisits import Covisits

Array = NDArray[Any]

HALF_LIFE_S = 86_400.0  # of an impression's weight
MOST_ITEMS = 1_000_000
KEPT = 0.9  # of them, when there are more
COVISITS = "covisits."  # before the names of its arrays in a state
MOST_HALVINGS = 64.0  # by which the weight of a new impression may exceed that of the oldest, in powers of 2


class Standing(NamedTuple):
    """What is known of each item of a catalogue."""

    born: Array  # (N,) int64: version of the catalogue in which it came; 0: not known, or before what is known
    looks: Array  # (N,) int64: how often it was shown
    shown: Array  # (N,) float64: the same, decayed
    reward: Array  # (N,) float64: sum of its rewards, decayed alike


class Counts:
    """Counts impressions and rewards of items, and remembers when each came.

    An impression weighs 2^(-age / 1 day), by the events' own times. Weights are relative to a landmark, so nothing is
    touched as time goes on; when they grow too large, all are scaled at once. An item that is deleted is forgotten.
    Beyond a million items those go that weigh least.

    Attributes:
        catalogue: the newest version of the catalogue whose changes it has followed.
        events: that it has counted.
        covisits: what is taken together, where a source needs it.
    """

    def __init__(self) -> None:
        self._index = ItemIndex()
        self._of_items = Standing(*(np.zeros(0, dtype) for dtype in (np.int64, np.int64, np.float64, np.float64)))
        self._landmark = 0.0
        self.catalogue = self.events = 0
        self.covisits = Covisits()

    def __len__(self) -> int:
        return len(self._index)

    def add(self, events: Sequence[Event]) -> None:
        """Count events, in the order of the log."""
        if not events:
            return
        # An import may say that it happens in the future: everything else would weigh nothing beside it.
        times = np.array([min(event.time, order(event.position)[0] / 1000) for event in events])
        rewards = np.array([event.reward for event in events])
        rows = self._rows(event.item for event in events)
        start = 0
        while start < len(events):
            halvings = (times[start:] - self._landmark) / HALF_LIFE_S
            beyond = np.flatnonzero(halvings > MOST_HALVINGS)
            if len(beyond) and beyond[0] == 0:
                self._move_landmark(times[start])
                continue
            here = slice(start, start + int(beyond[0])) if len(beyond) else slice(start, len(events))
            weights = np.exp2(halvings[: here.stop - start])
            np.add.at(self._of_items.looks, rows[here], 1)
            np.add.at(self._of_items.shown, rows[here], weights)
            np.add.at(self._of_items.reward, rows[here], weights * rewards[here])
            start = here.stop
        self.events += len(events)
        self._drop_lightest()

    def follow(self, changes: Iterable[ItemChange]) -> None:
        """Take note of changes of the catalogue, oldest first."""
        gone: dict[str, None] = {}
        for change in changes:
            if not change.now:
                gone[change.item] = None
            elif not change.was:
                row = self._rows([change.item])
                if change.item in gone:  # and made again: another item
                    del gone[change.item]
                    for array in self._of_items:
                        array[row] = 0
                self._of_items.born[row] = change.version
            self.catalogue = max(self.catalogue, change.version)
        self._forget(gone)
        self._drop_lightest()

    def standing(self, ids: Sequence[str]) -> Standing:
        """Return what is known of N items; of an unknown one, zeros."""
        at = self._index.find(ids)
        known = len(self._index)
        return Standing(*(np.append(array[:known], array.dtype.type(0))[at] for array in self._of_items))

    def state(self) -> dict[str, Array]:
        """Copy all that it takes to go on."""
        known = len(self._index)
        arrays = {name: array[:known].copy() for name, array in self._of_items._asdict().items()}
        numbers = np.array([self.catalogue, self.events], dtype=np.int64)
        together = (
            {f"{COVISITS}{name}": array for name, array in self.covisits.state().items()} if self.covisits else {}
        )
        own = {"ids": self._index.to_array(), "numbers": numbers, "landmark": np.array([self._landmark])}
        return {**own, **arrays, **together}

    @classmethod
    def load(cls, state: Mapping[str, Array]) -> Counts:
        """Go on from a state.

        Raises:
            ValueError: it is no such state.
        """
        counts = cls()
        try:
            counts._index = ItemIndex.from_array(state["ids"])
            arrays = [state[name] for name in Standing._fields]
            counts.catalogue, counts.events = map(int, state["numbers"])
            [counts._landmark] = map(float, state["landmark"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"no counts of items: {error}") from error
        for name, found, own in zip(Standing._fields, arrays, counts._of_items, strict=True):
            if found.dtype != own.dtype or found.shape != (len(counts),) or not np.isfinite(found).all():
                raise ValueError(f"counts of items: array {name!r} does not fit")
        counts._of_items = Standing(*(array.copy() for array in arrays))
        together = {name.removeprefix(COVISITS): array for name, array in state.items() if name.startswith(COVISITS)}
        counts.covisits = Covisits.load(together) if together else Covisits()
        return counts

    def _rows(self, items: Iterable[str]) -> Array:
        """Return the rows of items; new ones get one."""
        rows = np.array([self._index.add(item) for item in items], dtype=np.intp)
        room, needed = len(self._of_items.looks), len(self._index)
        if needed > room:
            more = max(needed, 2 * room) - room
            self._of_items = Standing(*(np.append(array, np.zeros(more, array.dtype)) for array in self._of_items))
        return rows

    def _move_landmark(self, to: float) -> None:
        keep = np.exp2(max((self._landmark - to) / HALF_LIFE_S, -1000.0))
        self._of_items.shown[:] *= keep
        self._of_items.reward[:] *= keep
        self._landmark = to

    def _drop_lightest(self) -> None:
        known = len(self._index)
        if known > MOST_ITEMS:
            heaviest = np.argsort(-self._of_items.shown[:known], kind="stable")
            lightest = set(heaviest[int(KEPT * MOST_ITEMS) :].tolist())
            self._forget([item for row, item in enumerate(self._index) if row in lightest])

    def _forget(self, items: Collection[str]) -> None:
        kept = self._index.forget(items)
        if kept is not None:
            self._of_items = Standing(*(array[kept] for array in self._of_items))
