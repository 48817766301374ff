"""Which items the same users take one after the other, counted from the log of activity.

Each activity is paired with the last few other items of its user, both ways. A pair weighs 2^(-age / 7 days). An item
has 16 neighbours: a new one takes the place of the lightest and inherits its weight, so heavy ones are not lost
(Space-Saving: Metwally, Agrawal and El Abbadi, "Efficient computation of frequent and top-k elements in data streams",
ICDT 2005). Letters: **m** items that are known, **u** users.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.policies.item_index import ItemIndex
from service.records import START, LoggedActivity, order

Array = NDArray[Any]

HALF_LIFE_MS = 7 * 86_400_000.0  # of a pair's weight
NEIGHBOURS = 16  # of an item
WITH = 5  # last items of the user that an activity is paired with
MOST_ITEMS = 50_000
MOST_USERS = 50_000  # whose last items are known; those go that were away longest
KEPT = 0.9  # of the items, when there are more
MOST_HALVINGS = 64.0  # by which the weight of a new pair may exceed that of the oldest, in powers of 2
NOBODY = -1  # an item has no such neighbour


class Covisits:
    """Counts pairs of items. Users stand here by digests of their ids.

    Weights are relative to a landmark, so nothing is touched as time goes on; when they grow too large, all are scaled.
    Beyond 50 000 items those go that weigh least.

    Attributes:
        position: in the log of activity, up to which it has counted.
        erased: activities that were deleted from the log before it began to count.
    """

    def __init__(self, *, erased: int = 0) -> None:
        self.position, self.erased = START, erased
        self._neighbours: Array = np.zeros((0, NEIGHBOURS), dtype=np.int32)
        self._weights: Array = np.zeros((0, NEIGHBOURS), dtype=np.float64)
        self._index = ItemIndex()
        self._touched: dict[int, dict[int, float]] = {}  # row -> neighbour -> weight, since the arrays were written
        self._last: dict[int, list[int]] = {}  # digest of a user -> rows of his last items, the newest last
        self._landmark = 0.0

    def __len__(self) -> int:
        return len(self._index)

    def find(self, ids: Sequence[str]) -> Array:
        """Return the rows of items, (N,) intp; of unknown ones, a number that is no row: m or more."""
        return self._index.find(ids)

    def add(self, activity: Sequence[LoggedActivity], position: str) -> None:
        """Count activity, in the order of the log, up to a position of it."""
        for one in activity:
            row = self._index.add(one.item)
            user = int.from_bytes(blake2b(one.user.encode(), digest_size=8).digest(), "big")
            last = self._last.pop(user, [])
            if others := [other for other in last if other != row]:
                weight = self._weight(float(one.at))
                for other in others:
                    self._pair(row, other, weight)
                    self._pair(other, row, weight)
            self._last[user] = [*others, row][-WITH:]
        for user in list(self._last)[: max(0, len(self._last) - MOST_USERS)]:
            del self._last[user]
        self.position = position
        if len(self._index) > MOST_ITEMS:
            self._drop_lightest()

    def arrays(self) -> tuple[Array, Array]:
        """Return the neighbours of the items and their weights, which do not change any more.

        Returns:
            (m, 16) int32: rows of the items, NOBODY where there are fewer; (m, 16) float64.
        """
        self._write()
        return self._neighbours, self._weights

    def state(self) -> dict[str, Array]:
        """Copy all that it takes to go on."""
        neighbours, weights = self.arrays()
        last = np.full((len(self._last), WITH), NOBODY, dtype=np.int32)
        for at, rows in enumerate(self._last.values()):
            last[at, : len(rows)] = rows
        return {
            "ids": self._index.to_array(),
            "neighbours": neighbours,
            "weights": weights,
            "users": np.array(list(self._last), dtype=np.uint64),
            "last": last,
            "landmark": np.array([self._landmark]),
            "numbers": np.array([*order(self.position), self.erased], dtype=np.int64),
        }

    @classmethod
    def load(cls, state: Mapping[str, Array]) -> Covisits:
        """Go on from a state.

        Raises:
            ValueError: it is no such state.
        """
        made = cls()
        try:
            made._index = ItemIndex.from_array(state["ids"])
            made._neighbours, made._weights = state["neighbours"], state["weights"]
            last = [[row for row in rows if row != NOBODY] for rows in state["last"].tolist()]
            made._last = dict(zip(state["users"].tolist(), last, strict=True))
            [made._landmark] = map(float, state["landmark"])
            ms, sequence, made.erased = map(int, state["numbers"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"no counts of items that were taken together: {error}") from error
        known = len(made._index)
        shapes = (made._neighbours.shape, made._weights.shape)
        rows = [made._neighbours, state["last"]]
        if shapes != ((known, NEIGHBOURS),) * 2 or any(((one < NOBODY) | (one >= known)).any() for one in rows):
            raise ValueError("counts of items that were taken together do not fit their items")
        if not np.isfinite(made._weights).all():
            raise ValueError("counts of items that were taken together are not finite")
        made.position = f"{ms}-{sequence}"
        return made

    def _weight(self, at: float) -> float:
        halvings = (at - self._landmark) / HALF_LIFE_MS
        if halvings > MOST_HALVINGS:
            self._write()
            self._weights = self._weights * np.exp2(max((self._landmark - at) / HALF_LIFE_MS, -1000.0))
            self._landmark, halvings = at, 0.0
        return float(2.0 ** max(halvings, -1000.0))

    def _pair(self, row: int, other: int, weight: float) -> None:
        near = self._touched.get(row)
        if near is None:
            near = self._touched[row] = self._read(row)
        if other in near:
            near[other] += weight
        elif len(near) < NEIGHBOURS:
            near[other] = weight
        else:
            lightest = min(near, key=near.__getitem__)
            near[other] = near.pop(lightest) + weight

    def _read(self, row: int) -> dict[int, float]:
        if row >= len(self._neighbours):
            return {}
        pairs = zip(self._neighbours[row].tolist(), self._weights[row].tolist(), strict=True)
        return {other: weight for other, weight in pairs if other != NOBODY}

    def _write(self) -> None:
        """Write what was counted since into new arrays."""
        known = len(self._index)
        if not self._touched and known == len(self._neighbours):
            return
        more = known - len(self._neighbours)
        neighbours = np.concatenate([self._neighbours, np.full((more, NEIGHBOURS), NOBODY, dtype=np.int32)])
        weights = np.concatenate([self._weights, np.zeros((more, NEIGHBOURS))])
        for row, near in self._touched.items():
            neighbours[row], weights[row] = NOBODY, 0.0
            neighbours[row, : len(near)], weights[row, : len(near)] = list(near), list(near.values())
        self._neighbours, self._weights, self._touched = neighbours, weights, {}

    def _drop_lightest(self) -> None:
        self._write()
        heaviest = np.argsort(-self._weights.sum(axis=1), kind="stable")
        lightest = set(heaviest[int(KEPT * MOST_ITEMS) :].tolist())
        self._forget([item for row, item in enumerate(self._index) if row in lightest])

    def _forget(self, items: Collection[str]) -> None:
        before = len(self._index)
        kept = self._index.forget(items)
        if kept is None:
            return
        now = np.full(before + 1, NOBODY, dtype=np.int32)  # NOBODY stays nobody: it is the last of these
        now[:-1][kept] = np.arange(len(self._index), dtype=np.int32)
        neighbours = now[self._neighbours[kept]]
        self._weights = np.where(neighbours == NOBODY, 0.0, self._weights[kept])
        self._neighbours = neighbours
        self._last = {user: [int(now[row]) for row in rows if now[row] != NOBODY] for user, rows in self._last.items()}
