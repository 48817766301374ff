"""NeuralLinear (Riquelme, Tucker & Snoek 2018, arXiv:1802.09127): features from a network, a Bayesian layer on top.

It differs from the paper in four places:

- The Bayesian layer is logistic, with a Laplace posterior: rewards are probabilities, and the noise scales by itself.
- It sees the rows themselves beside the features made of them. What the network has not seen it maps to features that
  it knows well (they collapse), so nothing new would be explored; in the row, a new direction keeps its uncertainty.
- Each item has an intercept of its own, so that what the features do not tell about an item can be learned, and an item
  that nobody has seen is uncertain whatever it looks like.
- In place of a draw from the posterior (Thompson sampling), whose probabilities would need Monte Carlo, it explores as
  `adaptive` does: by confidence bounds that an ensemble of draws directs (`_ensemble`), with exact probabilities.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

import numpy as np
from pydantic import BaseModel, Field

from service.policies._base import (
    Array,
    Arrays,
    Batch,
    Candidates,
    Policy,
    Scorer,
    expect,
    ids_from_array,
    ids_to_array,
)
from service.policies._ensemble import MEMBERS, bounds, directed_bounds_pmf, noise
from service.policies._linalg import finite_batch, root_of_inverse
from service.policies._network import BLOCK, Events, Layers, Learner, NetworkParams, count, forward, layers_of, sigmoid

ROWS = 512  # of the reservoir, worked on at once


class NeuralLinearParams(NetworkParams):
    """The knobs of `NeuralLinear`."""

    # The mean width, in standard deviations of the logit. At .5 the pet shop gives a hundredth more of the oracle's
    # clicks, but `digits` a fifth less (docs/policies.md).
    alpha: float = Field(default=1.0, ge=0, le=100)
    ridge: float = Field(default=0.25, gt=0, le=1e9)  # prior precision of the weight of every feature and column
    item_ridge: float = Field(default=100.0, gt=0, le=1e9)  # prior precision of every item's intercept


class NeuralLinear(Policy):
    """z = [φ(x) / √h, x, 1] (D = h + d + 1), φ(x) (h,) being the units of the last hidden layer of a network as it was
    when the statistics were last renewed, w (D,) its own last layer, p = σ(wᵀz) and k = p (1 - p):

        P = ridge I + Σ k z zᵀ,   m = w + P⁻¹ (Σ (r - p) z - ridge w),

    which is one step of Newton's method from the network's own solution to that of the Bayesian layer. The intercepts
    take what is left, item by item, given m:

        oᵢ = sᵢ Σ (r - p - k zᵀ(m - w)),   1 / sᵢ = item_ridge + Σ k,   over the events of item i.

    The network goes on learning. When an eighth more events have come, its present units become φ, and the sums are
    worked out anew from the reservoir (`_network.Learner`), each row of which stands for evidence / rows events.
    """

    kind = "neural_linear"
    Params = NeuralLinearParams
    params: NeuralLinearParams

    def __init__(self, d: int, params: NeuralLinearParams, *, seed: int = 0) -> None:
        super().__init__(d, params, seed=seed)
        self.D = params.hidden[-1] + d + 1
        self._learner = Learner(d, params, seed=seed)
        self._row: dict[str, int] = {}
        self._renew()

    def update(self, batch: Batch) -> Array:
        x = finite_batch(batch, self.d)
        expected = np.empty(len(x))
        rewards = batch.reward.clip(0.0, 1.0).tolist()
        for at, (features, item, reward) in enumerate(zip(x, batch.item, rewards, strict=True)):
            expected[at] = self._learner.expected(features)
            block = self._learner.add(features, reward, self._row.setdefault(item, len(self._row)))
            if block is not None:
                self._learner.learn(block)
                self._add(block, 1.0)
                if self._learner.events >= self._due:
                    self._renew()
        return expected

    def _renew(self) -> None:
        """Statistics of all that is remembered, by the network of now."""
        learner = self._learner
        self._network, self._renewed = learner.theta.copy(), learner.evidence
        self._due = learner.events + max(8 * BLOCK, int(learner.evidence / 8))
        self._w = last_layer(layers_of(self._network, self.d, self.params.hidden), self.d)
        self._precision, self._slope = np.zeros((self.D, self.D)), np.zeros(self.D)
        # Of each item: Σ k, Σ (r - p), Σ k z.
        self._items = np.zeros((0, 2 + self.D))
        kept = learner.kept
        for start in range(0, len(kept.x), ROWS):
            self._add(Events(*(column[start : start + ROWS] for column in kept)), learner.evidence / len(kept.x))

    def _add(self, events: Events, weight: float) -> None:
        z = features_of(layers_of(self._network, self.d, self.params.hidden), events.x.astype(np.float64))
        p = sigmoid(z @ self._w)
        k, slope = weight * p * (1.0 - p), weight * (events.reward - p)
        kz = k[:, None] * z
        self._precision += kz.T @ z
        self._slope += slope @ z
        self._reserve()
        np.add.at(self._items, events.row, np.column_stack([k, slope, kz]))

    def _reserve(self) -> None:
        """A row for every item; longer than needed: it doubles when it is full."""
        if len(self._row) > len(self._items):
            more = max(len(self._row), 2 * len(self._items)) - len(self._items)
            self._items = np.pad(self._items, ((0, more), (0, 0)))

    def forget(self, keep: float) -> None:
        self._learner.fade(keep)
        if keep == 0:
            self._row.clear()
            self._renew()
            return
        for sums in (self._precision, self._slope, self._items):
            sums *= keep
        if self._learner.evidence < 0.5 * self._renewed:
            self._renew()

    def state(self) -> Arrays:
        self._reserve()
        return {
            **self._learner.state(),
            "network": self._network.copy(),
            "precision": self._precision.copy(),
            "slope": self._slope.copy(),
            "items": ids_to_array(self._row),
            "of_items": self._items[: len(self._row)].copy(),
            "renewed": np.array([self._renewed]),
            "due": np.array([self._due]),
        }

    def load(self, state: Arrays) -> None:
        self._learner.load(state)
        self._network, self._precision = state["network"].copy(), state["precision"].copy()
        self._w = last_layer(layers_of(self._network, self.d, self.params.hidden), self.d)
        self._slope, self._items = state["slope"].copy(), state["of_items"].copy()
        self._row = {item: row for row, item in enumerate(ids_from_array(state["items"]))}
        self._renewed, self._due = float(state["renewed"][0]), int(state["due"][0])

    def snapshot(self) -> Arrays:
        """network (p,), mean (D,), root (D, D), for which P⁻¹ = rootᵀ root, noise (MEMBERS, D), and of each item its
        intercept and the variance of that.

        Raises:
            NumericalError: the precision cannot be factored.
        """
        ridge = self.params.ridge * np.eye(self.D)
        root = root_of_inverse(self._precision + ridge)
        move = root.T @ (root @ (self._slope - self.params.ridge * self._w))
        self._reserve()
        of_items = self._items[: len(self._row)]
        variance = 1.0 / (self.params.item_ridge + of_items[:, 0])
        return {
            "network": self._network.copy(),
            "mean": self._w + move,
            "root": root,
            "noise": noise(self.seed, self._learner.events, self.D),
            "items": ids_to_array(self._row),
            "intercept": variance * (of_items[:, 1] - of_items[:, 2:] @ move),
            "variance": variance,
            "events": np.array([self._learner.events]),
        }

    @classmethod
    def scorer(cls, snapshot: Mapping[str, Array], *, d: int, params: BaseModel) -> NeuralLinearScorer:
        return NeuralLinearScorer(snapshot, d, cast(NeuralLinearParams, params))


class NeuralLinearScorer(Scorer):
    """estimates: σ(logit), logit, alpha √variance, root z / |root z| (D,), the logit being mᵀz + o and its variance
    |root z|² + s; pmf: of having the highest bound.
    """

    def __init__(self, snapshot: Mapping[str, Array], d: int, params: NeuralLinearParams) -> None:
        items = ids_from_array(expect(snapshot.get("items"), "items", (None,)))
        self._row = {item: row for row, item in enumerate(items)}
        network = expect(snapshot.get("network"), "network", (count(d, params.hidden),)).copy()
        self._layers = layers_of(network, d, params.hidden)
        D = params.hidden[-1] + d + 1
        mean, root = expect(snapshot.get("mean"), "mean", (D,)), expect(snapshot.get("root"), "root", (D, D))
        self._model = np.concatenate([mean[:, None], root.T], axis=1)  # (D, 1 + D)
        self._members = expect(snapshot.get("noise"), "noise", (MEMBERS, D)).copy()
        # One more item stands for those that nobody has seen.
        self._intercept = np.append(expect(snapshot.get("intercept"), "intercept", (len(items),)), 0.0)
        self._variance = np.append(expect(snapshot.get("variance"), "variance", (len(items),)), 1.0 / params.item_ridge)
        self._events = int(expect(snapshot.get("events"), "events", (1,))[0])
        self._alpha = params.alpha

    def estimate(self, candidates: Candidates) -> Array:
        find, unknown = self._row.get, len(self._row)
        rows = np.array([find(item, unknown) for item in candidates.item], dtype=np.intp)
        z = features_of(self._layers, candidates.x.astype(np.float64))  # (n, D)
        return bounds(z @ self._model, self._intercept[rows], self._variance[rows], self._alpha)

    def pmf(self, estimates: Array) -> Array:
        return directed_bounds_pmf(estimates, self._members)

    def summary(self) -> dict[str, Any]:
        """The number of events, and of items seen in them."""
        return {"events": self._events, "items": len(self._row)}


def features_of(layers: Layers, x: Array) -> Array:
    """z (n, D) of x (n, d)."""
    inputs, _ = forward(layers, x)
    phi = inputs[-1]
    return np.concatenate([phi / math.sqrt(phi.shape[1]), x, np.ones((len(x), 1))], axis=1)


def last_layer(layers: Layers, d: int) -> Array:
    """w (D,), so that wᵀz is the network's own f."""
    weights, bias = layers[-1]
    return np.concatenate([math.sqrt(len(weights)) * weights[:, 0], np.zeros(d), bias])
