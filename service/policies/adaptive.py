"""Implements the default policy: a logistic model shared by all items, explored by randomized confidence bounds.

The model is a Bayesian logistic regression on the encoder's columns, which include crosses of context and item, plus
an intercept per item. Its Laplace posterior is updated event by event by an extended Kalman filter (Fahrmeir 1992,
"Posterior mode estimation by extended Kalman filtering"). Exploration uses confidence bounds of random width (RandUCB,
Vaswani et al. 2020, arXiv:1910.04928), distributed among the candidates by draws from the posterior
(`ensemble.Bounds`). The probabilities are exact.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from service.policies.adaptive_layers import AdaptiveOnLayers, AdaptiveParams
from service.policies.base import (
    Array,
    Arrays,
    Batch,
    Candidates,
    LinearScore,
    NumericalError,
    Policy,
    Scorer,
    expect,
    finite_batch,
    sigmoid,
)
from service.policies.ensemble import MEMBERS, PAIRS, Bounds, noise, pmf_of_estimates, squares
from service.policies.information import REFRESH, Information
from service.policies.item_index import ItemIndex
from service.policies.linalg import root_of_inverse


class Adaptive(Policy[AdaptiveParams]):
    """Fits a Bayesian logistic model with an intercept per item and explores by randomized confidence bounds.

    P(click) = σ(mᵀx + o_item). The weights of x are N(m, S), S (d, d). The intercepts are N(oᵢ, sᵢ), independent of
    them. For an event with logit f, variance v = xᵀSx + s, p = σ(f), h = p (1 - p) and g = 1 / (1 + h v):

        m += g (r - p) S x,   S -= g h S x xᵀ S,   and likewise o and s with x = 1.

    Rewards are clamped to [0, 1]; one in between is a proper target of the logistic loss.

    The precision P = ridge I + Σ h / (1 + h s) x xᵀ is kept beside S. S is its inverse up to rounding. An event tells
    less about x when less is known of its item.
    """

    kind = "adaptive"
    Params = AdaptiveParams
    comparable = True
    on_layers = AdaptiveOnLayers

    def __init__(self, d: int, params: AdaptiveParams, *, seed: int = 0) -> None:
        super().__init__(d, params, seed=seed)
        self._events = 0
        self._information = Information(params.ridge * np.eye(d), np.eye(d) / params.ridge)  # P and S
        self._items = ItemIndex()
        self._intercept: list[float] = []
        self._variance: list[float] = []

    def update(self, batch: Batch) -> Array:
        x, rewards = finite_batch(batch, self.d), batch.reward.clip(0.0, 1.0).tolist()
        expected: list[float] = []
        for rows in self._information.parts(len(x), self._events):
            expected += self._learn(x[rows], batch.item[rows], rewards[rows])
        return np.array(expected, dtype=np.float64)

    def _learn(self, x: Array, items: Sequence[str], rewards: Sequence[float]) -> list[float]:
        """Learn a part, x (B, d). Return the click probability (B,) that was expected of each event."""
        expected, information = [], self._information
        information.enter(x)
        for item, reward in zip(items, rewards, strict=True):
            row = self._items.add(item)
            if row == len(self._intercept):
                self._intercept.append(0.0)
                self._variance.append(1.0 / self.params.item_ridge)
            s = self._variance[row]
            value, variance = information.look()
            p = sigmoid(value + self._intercept[row])
            h = p * (1.0 - p)
            g = 1.0 / (1.0 + h * (variance + s))
            step = g * (reward - p)
            information.learn(step, g * h, h / (1.0 + h * s))
            self._intercept[row] += step * s
            self._variance[row] = s - g * h * s * s
            expected.append(p)
        information.leave()
        self._events += len(x)
        if self._events % REFRESH == 0:
            with suppress(NumericalError):  # the updated inverse is then the best there is
                information.restart(information.matrix)
        return expected

    def expected(self, batch: Batch) -> Array:
        rows = [self._items.get(item) for item in batch.item]
        intercept = np.array([0.0 if row is None else self._intercept[row] for row in rows])
        logit = (
            np.vecdot(finite_batch(batch, self.d), self._information.mean) + intercept
        )  # row by row: the same in any batch
        return np.array([sigmoid(f) for f in logit.tolist()])

    def forget(self, keep: float) -> None:
        """Fade the precisions to the prior's, and P m and o / s to 0, by the factor `keep`."""
        prior, precision = self.params.ridge * np.eye(self.d), self._information.matrix
        worth = precision @ self._information.mean
        self._information.restart(prior + keep * (precision - prior))
        self._information.mean = self._information.inverse @ (keep * worth)
        for row, (o, s) in enumerate(zip(self._intercept, self._variance, strict=True)):
            of_item = self.params.item_ridge + keep * (1.0 / s - self.params.item_ridge)
            self._variance[row] = 1.0 / of_item
            self._intercept[row] = keep * o / s / of_item

    def forget_items(self, gone: Collection[str]) -> None:
        """Drop the intercepts of these items. The shared weights keep what the items' events taught them."""
        kept = self._items.forget(gone)
        if kept is not None:
            self._intercept = [self._intercept[row] for row in kept.tolist()]
            self._variance = [self._variance[row] for row in kept.tolist()]

    def state(self) -> Arrays:
        return {
            "mean": self._information.mean.copy(),
            **self._information.state(),
            "events": np.array([self._events]),
            **self._of_items(),
        }

    def load(self, state: Arrays) -> None:
        self._events = int(state["events"][0])
        self._information.load(state)
        self._information.mean = state["mean"].copy()
        self._items = ItemIndex.from_array(state["items"])
        self._intercept, self._variance = state["intercept"].tolist(), state["variance"].tolist()

    def snapshot(self) -> Arrays:
        """Compute `mean` (d,), `root` (d, d) with S = rootᵀ root, `noise` (MEMBERS, d), and the m items' arrays.

        These are `items`, `intercept` (m,) and `variance` (m,): row i is item i.

        Raises:
            NumericalError: the precision cannot be factored.
        """
        return {
            "mean": self._information.mean.copy(),
            "root": root_of_inverse(self._information.matrix),
            "noise": noise(self.seed, self._events, self.d),
            **self._of_items(),
        }

    def _of_items(self) -> Arrays:
        return {
            "items": self._items.to_array(),
            "intercept": np.array(self._intercept, dtype=np.float64),
            "variance": np.array(self._variance, dtype=np.float64),
        }

    @classmethod
    def scorer(cls, snapshot: Mapping[str, Array], *, d: int, params: AdaptiveParams) -> AdaptiveScorer:
        return AdaptiveScorer(snapshot, d, params)


class AdaptiveScorer(Scorer):
    """estimates: those of `ensemble.Bounds`; a draw is noise_k · root x / |root x|."""

    def __init__(self, snapshot: Mapping[str, Array], d: int, params: AdaptiveParams) -> None:
        self._items = ItemIndex.from_array(expect(snapshot, "items", (None,)))
        m = len(self._items)
        mean, root = expect(snapshot, "mean", (d,)), expect(snapshot, "root", (d, d))
        firsts = expect(snapshot, "noise", (MEMBERS, d))[:PAIRS].astype(np.float64)
        self._model = np.concatenate([mean[:, None], root.T @ firsts.T, root.T], axis=1)  # (d, 1 + PAIRS + d)
        # The last row is an item never seen.
        self._intercept = np.append(expect(snapshot, "intercept", (m,)), 0.0)
        self._variance = np.append(expect(snapshot, "variance", (m,)), 1.0 / params.item_ridge)
        self._alpha = params.alpha

    def rank(self, candidates: Candidates) -> Bounds:
        return self._ranked(candidates, self._alpha)

    def explain(self, candidates: Candidates) -> LinearScore:
        return LinearScore(
            self._model[:, 0],
            self._intercept[self._items.rows(candidates.item)],
            sd=self._ranked(candidates, 1.0).spread.astype(np.float64),
            width=self._alpha,
            is_logit=True,
        )

    def _ranked(self, candidates: Candidates, alpha: float) -> Bounds:
        rows, of_items = candidates.rows, self._items.rows(candidates.item)
        z, W = rows.z, rows.fold(self._model)
        of_features = squares(z, W[:, 1 + PAIRS :])
        f = z @ W[:, 0] + self._intercept[of_items]

        def draws(at: Array) -> Array:
            sd = np.sqrt(np.maximum(of_features[at], np.finfo(np.float64).tiny))
            t: Array = z[at] @ W[:, 1 : 1 + PAIRS] / sd[:, None]
            return t.astype(np.float32)

        return Bounds(f, alpha * np.sqrt(of_features + self._variance[of_items]), draws)

    def estimate(self, candidates: Candidates) -> Array:
        return self.rank(candidates).estimates()

    def pmf(self, estimates: Array) -> Array:
        return pmf_of_estimates(estimates)

    def summary(self) -> dict[str, Any]:
        """Count the items seen."""
        return {"items": len(self._items)}
