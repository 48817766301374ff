"""Implements NeuralLinear (Riquelme, Tucker & Snoek 2018, arXiv:1802.09127): a Bayesian layer on a network's features.

It differs from the paper in four places:

- The Bayesian layer is logistic, with a Laplace posterior: rewards are probabilities, and the noise scales by itself.
- The layer sees the rows themselves beside the network's features. A network maps new kinds of rows to features that it
  knows well (they collapse), so the features alone would not be explored; a new direction of the row stays uncertain.
- Each item has an intercept, for what the features do not tell about it. An item never seen is therefore uncertain,
  whatever its features are.
- Exploration is that of `adaptive` (`ensemble.directed_bounds_pmf`), with exact probabilities. Those of a draw from the
  posterior (Thompson sampling) would need Monte Carlo.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from pydantic import Field

from service.policies.base import Array, Arrays, Batch, Candidates, Policy, Scorer, expect, finite_batch, sigmoid
from service.policies.ensemble import MEMBERS, bounds, directed_bounds_pmf, noise
from service.policies.item_index import ItemIndex
from service.policies.linalg import root_of_inverse
from service.policies.network import (
    BLOCK,
    NO_ITEM,
    Events,
    Layers,
    NetworkParams,
    OnlineNetwork,
    count,
    forward,
    layers_of,
)

ROWS = 512  # of the reservoir that are processed at once


class NeuralLinearParams(NetworkParams):
    """Parameters of `NeuralLinear`."""

    # At alpha = .5 the pet shop gives a hundredth more of the oracle's clicks, but `digits` a fifth less
    # (docs/policies.md).
    alpha: float = Field(
        default=1.0, ge=0, le=100, description="Mean width of a confidence bound, in standard deviations of the logit."
    )
    ridge: float = Field(
        default=0.25, ge=1e-9, le=1e9, description="Prior precision of the weight of every feature and column."
    )
    item_ridge: float = Field(
        default=100.0, ge=1e-9, le=1e9, description="Prior precision of the intercept of every item."
    )


class NeuralLinear(Policy[NeuralLinearParams]):
    """Fits a Bayesian logistic layer to the features of a network and explores by randomized confidence bounds.

    z = [φ(x) / √h, x, 1] (D = h + d + 1), where φ(x) (h,) are the units of the network's last hidden layer when the
    statistics were last renewed, and w (D,) is its last layer then. With p = σ(wᵀz) and k = p (1 - p):

        P = ridge I + Σ k z zᵀ,   m = w + P⁻¹ (Σ (r - p) z - ridge w).

    This is one step of Newton's method from the network's own solution to that of the Bayesian layer. Given m, the
    intercepts fit what is left, item by item:

        oᵢ = sᵢ Σ (r - p - k zᵀ(m - w)),   1 / sᵢ = item_ridge + Σ k,   over the events of item i.

    The network goes on learning. When the evidence has grown by an eighth, its present units become φ, and the sums are
    computed anew from the reservoir of `OnlineNetwork`, each row of which stands for evidence / rows events.
    """

    kind = "neural_linear"
    Params = NeuralLinearParams

    def __init__(self, d: int, params: NeuralLinearParams, *, seed: int = 0) -> None:
        super().__init__(d, params, seed=seed)
        self.D = params.hidden[-1] + d + 1
        self._online = OnlineNetwork(d, params, seed=seed)
        self._items = ItemIndex()
        self._renew()

    def update(self, batch: Batch) -> Array:
        x = finite_batch(batch, self.d)
        expected = np.empty(len(x))
        rewards = batch.reward.clip(0.0, 1.0).tolist()
        for at, (features, item, reward) in enumerate(zip(x, batch.item, rewards, strict=True)):
            expected[at] = self._online.expected(features)
            block = self._online.add(features, reward, self._items.add(item))
            if block is not None:
                self._online.learn(block)
                self._add(block, 1.0)
                if self._online.events >= self._due:
                    self._renew()
        return expected

    def _renew(self) -> None:
        """Compute the statistics of all events that are kept, with the features of the present network."""
        online = self._online
        self._network, self._renewed = online.theta.copy(), online.evidence
        self._due = online.events + max(8 * BLOCK, int(online.evidence / 8))
        self._w = last_layer(layers_of(self._network, self.d, self.params.hidden), self.d)
        self._precision, self._slope = np.zeros((self.D, self.D)), np.zeros(self.D)
        self._of_items = np.zeros((0, 2 + self.D))  # per item: Σ k, Σ (r - p), Σ k z
        kept = online.kept
        for start in range(0, len(kept.x), ROWS):
            self._add(Events(*(column[start : start + ROWS] for column in kept)), online.evidence / len(kept.x))

    def _add(self, events: Events, weight: float) -> None:
        """Add events to the statistics. An event whose item was forgotten counts in the shared ones only."""
        z = features_of(layers_of(self._network, self.d, self.params.hidden), events.x.astype(np.float64))
        p = sigmoid(z @ self._w)
        k, slope = weight * p * (1.0 - p), weight * (events.reward - p)
        kz = k[:, None] * z
        self._precision += kz.T @ z
        self._slope += slope @ z
        self._reserve()
        known = events.row != NO_ITEM
        np.add.at(self._of_items, events.row[known], np.column_stack([k, slope, kz])[known])

    def _reserve(self) -> None:
        """Make room for every item. The array is longer than needed: it doubles when it is full."""
        if len(self._items) > len(self._of_items):
            more = max(len(self._items), 2 * len(self._of_items)) - len(self._of_items)
            self._of_items = np.pad(self._of_items, ((0, more), (0, 0)))

    def forget(self, keep: float) -> None:
        self._online.fade(keep)
        if keep == 0:
            self._items = ItemIndex()
            self._renew()
            return
        for sums in (self._precision, self._slope, self._of_items):
            sums *= keep
        if self._online.evidence < 0.5 * self._renewed:
            self._renew()

    def forget_items(self, gone: Collection[str]) -> None:
        """Drop the intercepts of these items. Their events stay in the reservoir, without the item."""
        self._reserve()
        new_row = np.full(len(self._items), NO_ITEM, dtype=np.int64)
        kept = self._items.forget(gone)
        if kept is not None:
            self._of_items = self._of_items[kept]
            new_row[kept] = np.arange(len(kept))
            self._online.renumber(new_row)

    def state(self) -> Arrays:
        self._reserve()
        return {
            **self._online.state(),
            "network": self._network.copy(),
            "precision": self._precision.copy(),
            "slope": self._slope.copy(),
            "items": self._items.to_array(),
            "of_items": self._of_items[: len(self._items)].copy(),
            "renewed": np.array([self._renewed]),
            "due": np.array([self._due]),
        }

    def load(self, state: Arrays) -> None:
        self._online.load(state)
        self._network, self._precision = state["network"].copy(), state["precision"].copy()
        self._w = last_layer(layers_of(self._network, self.d, self.params.hidden), self.d)
        self._slope, self._of_items = state["slope"].copy(), state["of_items"].copy()
        self._items = ItemIndex.from_array(state["items"])
        self._renewed, self._due = float(state["renewed"][0]), int(state["due"][0])

    def snapshot(self) -> Arrays:
        """Compute `network` (p,), `mean` (D,), `root` (D, D) with P⁻¹ = rootᵀ root, `noise` (MEMBERS, D), and the rest.

        The rest is `items`, `intercept` (m,), `variance` (m,) and the number of `events` (1,).

        Raises:
            NumericalError: the precision cannot be factored.
        """
        ridge = self.params.ridge * np.eye(self.D)
        root = root_of_inverse(self._precision + ridge)
        move = root.T @ (root @ (self._slope - self.params.ridge * self._w))
        self._reserve()
        of_items = self._of_items[: len(self._items)]
        variance = 1.0 / (self.params.item_ridge + of_items[:, 0])
        return {
            "network": self._network.copy(),
            "mean": self._w + move,
            "root": root,
            "noise": noise(self.seed, self._online.events, self.D),
            "items": self._items.to_array(),
            "intercept": variance * (of_items[:, 1] - of_items[:, 2:] @ move),
            "variance": variance,
            "events": np.array([self._online.events]),
        }

    @classmethod
    def scorer(cls, snapshot: Mapping[str, Array], *, d: int, params: NeuralLinearParams) -> NeuralLinearScorer:
        return NeuralLinearScorer(snapshot, d, params)


class NeuralLinearScorer(Scorer):
    """estimates: σ(logit), logit, alpha √variance, root z / |root z| (D,); pmf: `directed_bounds_pmf`.

    The logit is mᵀz + o, its variance |root z|² + s.
    """

    def __init__(self, snapshot: Mapping[str, Array], d: int, params: NeuralLinearParams) -> None:
        self._items = ItemIndex.from_array(expect(snapshot, "items", (None,)))
        m = len(self._items)
        network = expect(snapshot, "network", (count(d, params.hidden),)).copy()
        self._layers = layers_of(network, d, params.hidden)
        D = params.hidden[-1] + d + 1
        mean, root = expect(snapshot, "mean", (D,)), expect(snapshot, "root", (D, D))
        self._model = np.concatenate([mean[:, None], root.T], axis=1)  # (D, 1 + D)
        self._members = expect(snapshot, "noise", (MEMBERS, D)).copy()
        # The last row is an item never seen.
        self._intercept = np.append(expect(snapshot, "intercept", (m,)), 0.0)
        self._variance = np.append(expect(snapshot, "variance", (m,)), 1.0 / params.item_ridge)
        self._events = int(expect(snapshot, "events", (1,))[0])
        self._alpha = params.alpha

    def estimate(self, candidates: Candidates) -> Array:
        rows = self._items.rows(candidates.item)
        z = features_of(self._layers, candidates.x.astype(np.float64))  # (n, D)
        return bounds(z @ self._model, self._intercept[rows], self._variance[rows], self._alpha)

    def pmf(self, estimates: Array) -> Array:
        return directed_bounds_pmf(estimates, self._members)

    def summary(self) -> dict[str, Any]:
        """Count the learned events and the items seen in them."""
        return {"events": self._events, "items": len(self._items)}


def features_of(layers: Layers, x: Array) -> Array:
    """Compute z (n, D) of x (n, d)."""
    inputs, _ = forward(layers, x)
    phi = inputs[-1]
    return np.concatenate([phi / math.sqrt(phi.shape[1]), x, np.ones((len(x), 1))], axis=1)


def last_layer(layers: Layers, d: int) -> Array:
    """Compute w (D,) with which wᵀz is the network's own f."""
    weights, bias = layers[-1]
    return np.concatenate([math.sqrt(len(weights)) * weights[:, 0], np.zeros(d), bias])
