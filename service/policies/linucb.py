"""LinUCB with disjoint linear models (Li, Chu, Langford & Schapire 2010, arXiv:1003.0146, Algorithm 1)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
from pydantic import BaseModel, Field

from service.policies._base import (
    Array,
    Arrays,
    Batch,
    Candidates,
    Params,
    Policy,
    Scorer,
    expect,
    fade,
    greedy,
    ids_from_array,
    ids_to_array,
)
from service.policies._linalg import blocks, finite_batch, matvec, pack, packed_outer, psd_cholesky, unpack


class LinUCBParams(Params):
    """The knobs of `LinUCB`."""

    # Found by search, through a change of tastes on stale snapshots (docs/policies.md); in the paper, ridge is 1.
    alpha: float = Field(default=0.99, ge=0, le=100)  # the width of the bound
    ridge: float = Field(default=8.3, gt=0, le=1e9)  # the prior precision of every coefficient


class LinUCB(Policy):
    """Per item: A = ridge I + Σ x xᵀ (d, d), b = Σ r x (d,), θ = A⁻¹ b (d,), over the item's own events.

    The sums are kept packed, without the prior and in units of `weight`, 8 (d (d + 1) / 2 + d + 1) bytes per item, and
    grow one event after the other. θ and A⁻¹ are worked out when a snapshot is taken, for the items that have changed.
    """

    kind = "linucb"
    Params = LinUCBParams
    params: LinUCBParams

    def __init__(self, d: int, params: LinUCBParams, *, seed: int = 0) -> None:
        super().__init__(d, params, seed=seed)
        self._row: dict[str, int] = {}
        # Stacks of one row per item, longer than needed: they double when they are full.
        self._outer = np.zeros((0, d * (d + 1) // 2))  # Σ x xᵀ, packed
        self._b = np.zeros((0, d))
        self._pulls = np.zeros(0, dtype=np.int64)
        self._weight = 1.0  # of one event in the two sums
        # What is served, and what in it is out of date. Its row 0 is the item that nobody has seen.
        self._inverse = pack(np.eye(d)[None] / self.params.ridge)
        self._theta = np.zeros((1, d))
        self._changed: set[int] = set()

    def update(self, batch: Batch) -> None:
        x = finite_batch(batch, self.d)  # (B, d)
        rows = [self._row.setdefault(item, len(self._row)) for item in batch.item]
        self._reserve(len(self._row))
        for row, outer, rx in zip(rows, packed_outer(x), batch.reward[:, None] * x, strict=True):
            self._outer[row] += self._weight * outer
            self._b[row] += self._weight * rx
            self._pulls[row] += 1
        self._changed.update(rows)

    def forget(self, keep: float) -> None:
        self._weight, scale = fade(self._weight, keep)
        if scale != 1:
            self._outer *= scale
            self._b *= scale
        self._changed = set(range(len(self._row)))

    def _reserve(self, m: int) -> None:
        if m > len(self._pulls):
            more = max(m, 2 * len(self._pulls)) - len(self._pulls)
            self._outer = np.pad(self._outer, ((0, more), (0, 0)))
            self._b = np.pad(self._b, ((0, more), (0, 0)))
            self._pulls = np.pad(self._pulls, (0, more))

    def state(self) -> Arrays:
        m = len(self._row)
        return {
            "items": ids_to_array(self._row),
            "outer": self._outer[:m].copy(),
            "b": self._b[:m].copy(),
            "pulls": self._pulls[:m].copy(),
            "weight": np.array([self._weight]),
        }

    def load(self, state: Arrays) -> None:
        self._row = {item: row for row, item in enumerate(ids_from_array(state["items"]))}
        self._outer, self._b, self._pulls = state["outer"].copy(), state["b"].copy(), state["pulls"].copy()
        self._weight = float(state["weight"][0])
        self._inverse, self._theta = self._inverse[:1], self._theta[:1]
        self._changed = set(range(len(self._row)))

    def snapshot(self) -> Arrays:
        """theta (m + 1, d) and inverse (m + 1, P), the packed A⁻¹: row 0 is the unknown item, row i + 1 item i.

        Raises:
            NumericalError: an A cannot be factored.
        """
        new = len(self._row) + 1 - len(self._theta)
        if new:
            self._theta = np.pad(self._theta, ((0, new), (0, 0)))
            self._inverse = np.pad(self._inverse, ((0, new), (0, 0)))
        changed = np.array(sorted(self._changed), dtype=np.intp)
        for part in blocks(len(changed), self.d**2):
            rows = changed[part]
            theta, inverse = self._solve(self._outer[rows] / self._weight, self._b[rows] / self._weight)
            self._theta[rows + 1], self._inverse[rows + 1] = theta, pack(inverse)
        self._changed.clear()
        return {
            "items": ids_to_array(self._row),
            "pulls": self._pulls[: len(self._row)].copy(),
            "theta": self._theta.copy(),
            "inverse": self._inverse.copy(),
        }

    def _solve(self, outer: Array, b: Array) -> tuple[Array, Array]:
        """θ (m, d) and A⁻¹ (m, d, d) from Σ x xᵀ (m, P) and b (m, d)."""
        eye = np.eye(self.d)
        L = psd_cholesky(unpack(outer, self.d) + self.params.ridge * eye)  # A = L Lᵀ
        root = np.linalg.solve(L, eye)  # L⁻¹, so that A⁻¹ = rootᵀ root is positive semi-definite by its making
        return np.vecmat(np.matvec(root, b), root), root.mT @ root

    @classmethod
    def scorer(cls, snapshot: Mapping[str, Array], *, d: int, params: BaseModel) -> LinUCBScorer:
        return LinUCBScorer(snapshot, d, cast(LinUCBParams, params))


class LinUCBScorer(Scorer):
    """score = xᵀθ + alpha √(xᵀ A⁻¹ x); pmf puts all mass on the best, ties shared.

    Holds A⁻¹ unpacked, with θ as one more row: 8 d (d + 1) bytes per item.
    """

    def __init__(self, snapshot: Mapping[str, Array], d: int, params: LinUCBParams) -> None:
        items = ids_from_array(expect(snapshot.get("items"), "items", (None,)))
        m = len(items)
        order = sorted(range(m), key=items.__getitem__)  # as catalogues are: then no row has to be copied to be used
        self._alpha = params.alpha
        self._row = {items[i]: row for row, i in enumerate(order, start=1)}
        self._pulls = expect(snapshot.get("pulls"), "pulls", (m,))[order].tolist()
        theta = expect(snapshot.get("theta"), "theta", (m + 1, d))
        inverse = expect(snapshot.get("inverse"), "inverse", (m + 1, d * (d + 1) // 2))
        stored = [0, *(i + 1 for i in order)]  # the rows of the snapshot
        self._model = np.concatenate([unpack(inverse[stored], d), theta[stored, None]], axis=1)  # (m + 1, d + 1, d)

    def estimate(self, candidates: Candidates) -> Array:
        find = self._row.get
        rows = np.array([find(item, 0) for item in candidates.item], dtype=np.intp)
        x = candidates.x.astype(np.float64)  # (n, d)
        y = matvec(self._model, rows, x)  # (n, d + 1): A⁻¹ x, and θᵀx
        variance = np.maximum(np.vecdot(y[:, :-1], x), 0.0)  # rounding may leave it just below
        score: Array = y[:, -1] + self._alpha * np.sqrt(variance)
        return score[:, None]

    def pmf(self, estimates: Array) -> Array:
        return greedy(estimates[:, 0])

    def summary(self) -> dict[str, Any]:
        """How many items were seen in how many events, and the 20 seen most."""
        pulls = dict(zip(self._row, self._pulls, strict=True))
        most = sorted(pulls, key=lambda item: (-pulls[item], item))[:20]
        return {"items": len(pulls), "pulls": sum(pulls.values()), "most_pulled": {item: pulls[item] for item in most}}
