"""The default: a logistic model shared by all items, explored by confidence bounds that the posterior directs.

The model is a Bayesian logistic regression on the encoder's columns, crosses of context and item among them, with a
Laplace posterior that is updated event by event (extended Kalman filter; Fahrmeir 1992, "Posterior mode estimation by
extended Kalman filtering"), and an intercept of each item's own. Exploration is by confidence bounds of random width
(RandUCB, Vaswani et al. 2020, arXiv:1910.04928), shared out by draws from the posterior (`_ensemble`): nothing is
locked in, stale snapshots do not repeat one choice, and the probabilities are exact. Rewards are in [0, 1]; ones
between are proper targets of the logistic loss.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, cast

import numpy as np
from pydantic import BaseModel, Field

from service.policies._base import (
    Array,
    Arrays,
    Batch,
    Candidates,
    NumericalError,
    Params,
    Policy,
    Scorer,
    expect,
    ids_from_array,
    ids_to_array,
)
from service.policies._ensemble import MEMBERS, bounds, directed_bounds_pmf, noise
from service.policies._linalg import Information, finite_batch, root_of_inverse

REFRESH = 4096  # events after which the covariance is solved anew from the precision: rounding never adds up


class AdaptiveParams(Params):
    """The knobs of `Adaptive`."""

    alpha: float = Field(default=0.8, ge=0, le=100)  # the mean width, in standard deviations of the logit
    ridge: float = Field(default=0.1, gt=0, le=1e9)  # prior precision of every column's weight
    item_ridge: float = Field(default=200.0, gt=0, le=1e9)  # prior precision of every item's intercept
    detect_change: bool = True


class Adaptive(Policy):
    """P(click) = σ(mᵀx + o_item), with x's weights ~ N(m, S), S (d, d), and intercepts ~ N(o_i, s_i), apart from S.

    For an event with logit f, variance v = xᵀSx + s, p = σ(f), h = p (1 - p) and g = 1 / (1 + h v):

        m += g (r - p) S x,   S -= g h S x xᵀ S,   and likewise o and s with x = 1.

    The precision P = ridge I + Σ h / (1 + h s) x xᵀ is kept beside S, which is its inverse but for rounding: what an
    event says about x is the less certain, the less is known of its item.
    """

    kind = "adaptive"
    Params = AdaptiveParams
    comparable = True
    params: AdaptiveParams

    def __init__(self, d: int, params: AdaptiveParams, *, seed: int = 0) -> None:
        super().__init__(d, params, seed=seed)
        self._events = 0
        self._mean = np.zeros(d)
        self._information = Information(params.ridge * np.eye(d), np.eye(d) / params.ridge)  # P and S
        self._row: dict[str, int] = {}
        self._intercept: list[float] = []
        self._variance: list[float] = []

    def update(self, batch: Batch) -> Array:
        expected = np.empty(len(batch.item))
        for at, (x, item, reward) in enumerate(
            zip(finite_batch(batch, self.d), batch.item, batch.reward.tolist(), strict=True)
        ):
            expected[at] = self._learn(x, item, min(max(reward, 0.0), 1.0))
        return expected

    def _learn(self, x: Array, item: str, reward: float) -> float:
        """What was expected of the event (d,), before it changed anything."""
        row = self._row.setdefault(item, len(self._row))
        if row == len(self._intercept):
            self._intercept.append(0.0)
            self._variance.append(1.0 / self.params.item_ridge)
        Sx = self._information.inverse_times(x)
        s = self._variance[row]
        p = sigmoid(float(self._mean @ x) + self._intercept[row])
        h = p * (1.0 - p)
        g = 1.0 / (1.0 + h * (max(float(x @ Sx), 0.0) + s))
        self._mean += (g * (reward - p)) * Sx
        self._information.add(x, h / (1.0 + h * s), Sx, g * h)
        self._intercept[row] += g * (reward - p) * s
        self._variance[row] = s - g * h * s * s
        self._events += 1
        if self._events % REFRESH == 0:
            with suppress(NumericalError):  # then what the recursion found is as good as can be had
                self._restart(self._information.matrix)
        return p

    def _restart(self, precision: Array) -> None:
        root = root_of_inverse(precision)
        self._information.set(precision, root.T @ root)

    def expected(self, batch: Batch) -> Array:
        find = self._row.get
        rows = [find(item) for item in batch.item]
        intercept = np.array([0.0 if row is None else self._intercept[row] for row in rows])
        logit = np.vecdot(finite_batch(batch, self.d), self._mean) + intercept  # row by row: the same in any batch
        return np.array([sigmoid(f) for f in logit.tolist()])

    def forget(self, keep: float) -> None:
        """Precisions return to the prior's, and with them what they were worth: P m fades as P does, o / s as 1 / s."""
        prior, precision = self.params.ridge * np.eye(self.d), self._information.matrix
        worth = precision @ self._mean
        self._restart(prior + keep * (precision - prior))
        self._mean = self._information.inverse @ (keep * worth)
        for row, (o, s) in enumerate(zip(self._intercept, self._variance, strict=True)):
            of_item = self.params.item_ridge + keep * (1.0 / s - self.params.item_ridge)
            self._variance[row] = 1.0 / of_item
            self._intercept[row] = keep * o / s / of_item

    def state(self) -> Arrays:
        return {
            "mean": self._mean.copy(),
            **self._information.state(),
            "events": np.array([self._events]),
            **self._of_items(),
        }

    def load(self, state: Arrays) -> None:
        self._events = int(state["events"][0])
        self._mean = state["mean"].copy()
        self._information.load(state)
        self._row = {item: row for row, item in enumerate(ids_from_array(state["items"]))}
        self._intercept, self._variance = state["intercept"].tolist(), state["variance"].tolist()

    def snapshot(self) -> Arrays:
        """mean (d,); root (d, d), for which S = rootᵀ root; noise (MEMBERS, d); each item's intercept and its variance.

        Raises:
            NumericalError: the precision cannot be factored.
        """
        return {
            "mean": self._mean.copy(),
            "root": root_of_inverse(self._information.matrix),
            "noise": noise(self.seed, self._events, self.d),
            **self._of_items(),
        }

    def _of_items(self) -> Arrays:
        return {
            "items": ids_to_array(self._row),
            "intercept": np.array(self._intercept, dtype=np.float64),
            "variance": np.array(self._variance, dtype=np.float64),
        }

    @classmethod
    def scorer(cls, snapshot: Mapping[str, Array], *, d: int, params: BaseModel) -> AdaptiveScorer:
        return AdaptiveScorer(snapshot, d, cast(AdaptiveParams, params))


class AdaptiveScorer(Scorer):
    """estimates: σ(logit), logit, alpha √variance, root x / |root x| (d,); pmf: of having the highest bound."""

    def __init__(self, snapshot: Mapping[str, Array], d: int, params: AdaptiveParams) -> None:
        items = ids_from_array(expect(snapshot.get("items"), "items", (None,)))
        self._row = {item: row for row, item in enumerate(items)}
        mean, root = expect(snapshot.get("mean"), "mean", (d,)), expect(snapshot.get("root"), "root", (d, d))
        self._model = np.concatenate([mean[:, None], root.T], axis=1)  # (d, 1 + d)
        self._members = expect(snapshot.get("noise"), "noise", (MEMBERS, d)).copy()
        # One more item stands for those that nobody has seen.
        self._intercept = np.append(expect(snapshot.get("intercept"), "intercept", (len(items),)), 0.0)
        self._variance = np.append(expect(snapshot.get("variance"), "variance", (len(items),)), 1.0 / params.item_ridge)
        self._alpha = params.alpha

    def estimate(self, candidates: Candidates) -> Array:
        find, unknown = self._row.get, len(self._row)
        rows = np.array([find(item, unknown) for item in candidates.item], dtype=np.intp)
        found = candidates.x.astype(np.float64) @ self._model
        return bounds(found, self._intercept[rows], self._variance[rows], self._alpha)

    def pmf(self, estimates: Array) -> Array:
        return directed_bounds_pmf(estimates, self._members)

    def summary(self) -> dict[str, Any]:
        """How many items were seen."""
        return {"items": len(self._row)}


def sigmoid(f: float) -> float:
    """1 / (1 + exp(-f)), without overflow."""
    return 0.5 + 0.5 * math.tanh(0.5 * f)
