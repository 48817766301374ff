"""Keeps what is an item's or a user's own: a small Gaussian for each id."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from service.policies.base import Array, Arrays, expect
from service.policies.item_index import ItemIndex
from service.policies.linalg import pack, packed_index, unpack


class Effects:
    """Weights of each of m ids on q columns: N(mean, S), S (q, q). An id never seen has N(0, I / ridge).

    Args:
        q: number of columns; 0 keeps nothing.
        ridge: prior precision.
        limit: ids that are kept; beyond, those that were not seen for longest are dropped, a tenth at a time.
    """

    def __init__(self, q: int, *, ridge: float, limit: int | None = None) -> None:
        self.q, self.ridge, self._limit = q, ridge, limit
        self._clear()

    def _clear(self) -> None:
        self.ids = ItemIndex()
        self._mean, self._S = np.zeros((16, self.q)), np.zeros((16, self.q, self.q))
        self._seen, self._events = np.zeros(16, dtype=np.int64), 0

    def row(self, one: str) -> int:
        """Return the row of an id, a new one if the id is new."""
        row = self.ids.add(one)
        if row == len(self._seen):
            self._mean = np.concatenate([self._mean, np.zeros_like(self._mean)])
            self._S = np.concatenate([self._S, np.zeros_like(self._S)])
            self._seen = np.concatenate([self._seen, np.zeros_like(self._seen)])
        if self._seen[row] == 0:
            self._mean[row], self._S[row] = 0.0, np.eye(self.q) / self.ridge
        return row

    def until_full(self, ids: Sequence[str | None]) -> int:
        """Return how many events of these ids may come before some id has to be dropped, at least 1."""
        if self._limit is None or len(self.ids) + len(ids) <= self._limit:
            return len(ids)
        new: set[str] = set()
        for at, one in enumerate(ids):
            if one is not None and self.ids.get(one) is None:
                new.add(one)
            if len(self.ids) + len(new) > self._limit:
                return at + 1
        return len(ids)

    def enter(self, ids: Sequence[str | None], x: Array) -> None:
        """Take in a part, x (B, q); None: nobody's event. Then come `look` and `learn` for each event, and `leave`.

        Args:
            ids: (B,), at most `until_full`.
        """
        B = len(ids)
        self._x, self._Sx = x, np.zeros((B, self.q))
        self._rows = [None if one is None else self.row(one) for one in ids]
        self._found = [(0.0, 0.0)] * B  # mean and variance of each event's effect
        self._said = [(0.0, 0.0)] * B  # step and shrink of each event
        self._open: dict[int, int] = {}  # row -> its newest event, which is not added yet
        first: dict[int, int] = {}
        for at, row in enumerate(self._rows):
            if row is not None:
                first.setdefault(row, at)
        if first:
            rows, events = list(first), list(first.values())
            its = x[events]
            self._Sx[events] = Sx = np.matvec(self._S[rows], its)
            means, variances = np.vecdot(self._mean[rows], its).tolist(), np.vecdot(Sx, its).tolist()
            for at, mean, variance in zip(events, means, variances, strict=True):
                self._found[at] = mean, max(variance, 0.0)

    def look(self, at: int) -> tuple[float, float]:
        """Return mean and variance of the effect on event `at` of the part; 0 and 0 of an event of nobody's."""
        row = self._rows[at]
        if row in self._open:  # the id comes a second time: what it has just learned counts
            self._add(row, self._open.pop(row))
            x, Sx = self._x[at], self._Sx[at]
            np.matvec(self._S[row], x, out=Sx)
            return float(np.vecdot(self._mean[row], x)), max(float(np.vecdot(Sx, x)), 0.0)
        return self._found[at]

    def learn(self, at: int, step: float, shrink: float) -> None:
        """Learn event `at` of the part: add step · Sx to the mean and take shrink · (Sx)(Sx)ᵀ from S."""
        row = self._rows[at]
        if row is not None:
            self._said[at] = step, shrink
            self._open[row] = at
            self._events += 1
            self._seen[row] = self._events

    def _add(self, row: int, at: int) -> None:
        Sx, (step, shrink) = self._Sx[at], self._said[at]
        mean, S, root = self._mean[row], self._S[row], math.sqrt(shrink) * Sx
        mean += step * Sx
        S -= root[:, None] * root  # the product of a vector with itself is symmetric to the last bit

    def _add_all(self) -> None:
        """Do what `_add` does for the events that are left, each of an id of its own: the same, bit for bit."""
        rows, events = list(self._open), list(self._open.values())
        Sx, said = self._Sx[events], np.array([self._said[at] for at in events])
        self._mean[rows] += said[:, :1] * Sx
        roots = np.sqrt(said[:, 1:]) * Sx
        self._S[rows] -= roots[:, :, None] * roots[:, None, :]
        self._open.clear()

    def leave(self) -> None:
        """End the part. Rows may move up afterwards."""
        if self._open:
            self._add_all()
        if self._limit is not None and len(self.ids) > self._limit:
            oldest = np.argsort(self._seen[: len(self.ids)], kind="stable")[: max(1, self._limit // 10)].tolist()
            ids = list(self.ids)
            self.forget_ids([ids[at] for at in oldest])

    def means_of(self, ids: Sequence[str | None], x: Array) -> Array:
        """Return the means (B,) of the effects of B ids, each on its row of x (B, q); 0 for an id never seen."""
        means = np.zeros(len(ids))
        known = [(at, row) for at, one in enumerate(ids) if one is not None and (row := self.ids.get(one)) is not None]
        if known:
            events, rows = map(list, zip(*known, strict=True))
            means[events] = np.vecdot(self._mean[rows], x[events])
        return means

    def forget(self, keep: float) -> None:
        """Fade every precision to the prior's and every S⁻¹ mean to 0, by the factor `keep`."""
        if keep == 0:
            self._clear()
            return
        m = len(self.ids)
        if not (m and self.q):
            return
        precision = np.linalg.inv(self._S[:m])
        worth = np.vecdot(precision, self._mean[:m, None, :])  # (m, q)
        faded = np.linalg.inv(self.ridge * np.eye(self.q) * (1.0 - keep) + keep * precision)
        self._S[:m] = 0.5 * (faded + faded.transpose(0, 2, 1))
        self._mean[:m] = np.vecdot(self._S[:m], keep * worth[:, None, :])

    def forget_ids(self, gone: Collection[str]) -> None:
        """Drop ids; they are then as if never seen."""
        kept = self.ids.forget(gone)
        if kept is not None:
            m, size = len(kept), len(self._seen)
            for array in (self._mean, self._S, self._seen):
                array[:m] = array[kept]
                array[m:size] = 0

    def state(self, name: str) -> Arrays:
        """Copy all there is to know, under names that begin with `name`."""
        m = len(self.ids)
        return {
            name: self.ids.to_array(),
            name + "_mean": self._mean[:m].copy(),
            name + "_S": pack(self._S[:m]),
            name + "_seen": np.append(self._seen[:m], self._events),
        }

    def load(self, name: str, state: Mapping[str, Array]) -> None:
        """Take up a `state`."""
        self._clear()
        self.ids = ItemIndex.from_array(state[name])
        m = len(self.ids)
        size = max(16, m)
        self._mean, self._S = np.zeros((size, self.q)), np.zeros((size, self.q, self.q))
        self._seen = np.zeros(size, dtype=np.int64)
        self._mean[:m] = state[name + "_mean"]
        self._S[:m] = unpack(state[name + "_S"], self.q)
        self._seen[:m], self._events = state[name + "_seen"][:m], int(state[name + "_seen"][-1])

    def snapshot(self, name: str) -> Arrays:
        """Copy what serving needs, in float32."""
        m = len(self.ids)
        return {
            name: self.ids.to_array(),
            name + "_mean": self._mean[:m].astype(np.float32),
            name + "_S": pack(self._S[:m]).astype(np.float32),
        }


class ServedEffects:
    """The serving half of `Effects`: immutable; the last of its m + 1 ids is one never seen."""

    def __init__(self, snapshot: Mapping[str, Array], name: str, q: int, *, ridge: float) -> None:
        self.ids = ItemIndex.from_array(expect(snapshot, name, (None,)))
        m = len(self.ids)
        mean = np.concatenate([expect(snapshot, name + "_mean", (m, q)), np.zeros((1, q), dtype=np.float32)])
        unknown = pack(np.eye(q, dtype=np.float32)[None] / np.float32(ridge))
        S = np.concatenate([expect(snapshot, name + "_S", (m, q * (q + 1) // 2)), unknown])
        # An id's numbers stand in a column: a context that has few columns needs few rows of these. Covariances count
        # twice in a quadratic form, and are kept doubled.
        left, right = packed_index(q)
        self._twice = np.where(left == right, np.float32(1), np.float32(2))
        self._mean, self._S = np.ascontiguousarray(mean.T), S.T * self._twice[:, None]  # (q, m + 1), (P, m + 1)
        self._element = unpack(np.arange(len(left))[None], q)[0]  # (q, q): the row of _S
        self.q = q

    def of_each(self, ids: Sequence[str], x: Array) -> tuple[Array, Array]:
        """Return mean and variance (n,) of the effects of n ids, on x (q,), or each on its row of x (n, q)."""
        rows = self.ids.rows(ids)
        if x.ndim == 2:
            left, right = packed_index(self.q)
            products = x[:, left] * x[:, right]
            return np.vecdot(self._mean.T[rows], x), np.maximum(np.vecdot(self._S.T[rows], products), 0.0)
        used = x.nonzero()[0]
        left, right = packed_index(len(used))
        first, second = used[left], used[right]
        products, elements = x[first] * x[second], self._element[first, second]
        if 4 * len(rows) < self._S.shape[1]:  # few of many
            mean, S = self._mean[used[:, None], rows], self._S[elements[:, None], rows]
            return x[used] @ mean, np.maximum(products @ S, 0.0)
        return (x[used] @ self._mean[used])[rows], np.maximum(products @ self._S[elements], 0.0)[rows]

    def of_one(self, one: str) -> tuple[Array, Array]:
        """Return an id's mean (q,) and S (q, q)."""
        row = self.ids.get(one)
        row = len(self.ids) if row is None else row
        return self._mean[:, row], unpack((self._S[:, row] / self._twice)[None], self.q)[0]
