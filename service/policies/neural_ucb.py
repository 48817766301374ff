"""Implements NeuralUCB (Zhou, Li & Gu 2020, arXiv:1911.04462, Algorithm 1) with a diagonal Z and no Jacobian.

One network f(x; θ) serves all items. Its uncertainty about a candidate is √(gᵀ Z⁻¹ g) with g = ∇f(x; θ). As in the
authors' experiments, Z is diagonal. A layer's part of gᵀ Z⁻¹ g then takes two matrix products for all candidates at
once (`network.quadratic`), in place of a backward pass per candidate.

It differs from the paper in four places:

- f is a logit, with logistic loss: rewards are probabilities, and the noise scales by itself.
- Z starts at λ / scale², so that all layers share the prior variance. With λ I, the upper layers, whose units all rows
  have in common, outweigh the first layer, whose weights distinguish the rows.
- A diagonal Z does not know that p parameters moved together: after an event, about p times the variance is left that
  the full matrix would leave. So each event counts c times (formula at `NeuralUCB`).
- The width of the bound is random (`envelope.random_width_pmf`), which gives smooth and exact probabilities.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from pydantic import Field

from service.policies.base import Array, Arrays, Batch, Candidates, Policy, Scorer, expect, finite_batch, sigmoid
from service.policies.envelope import random_width_pmf
from service.policies.network import (
    MINIBATCH,
    Events,
    Layers,
    NetworkParams,
    OnlineNetwork,
    backward,
    count,
    forward,
    gradient,
    layers_of,
    quadratic,
)

ROWS = 256  # candidates that are processed at once


class NeuralUCBParams(NetworkParams):
    """Parameters of `NeuralUCB`."""

    # As the search found them, except for the prior (docs/policies.md).
    alpha: float = Field(
        default=1.1, ge=0, le=100, description="Mean width of a confidence bound, in standard deviations of the logit."
    )
    learning_rate: float = Field(
        default=0.0033, gt=0, le=1, description="Initial step size of Adam, relative to the scale of each weight."
    )
    buffer: int = Field(
        default=2048, ge=MINIBATCH, le=1_000_000, description="Number of events that are kept to learn from again."
    )


class NeuralUCB(Policy[NeuralUCBParams]):
    """Fits one network for all items and explores by confidence bounds of random width.

    Over all events, at the θ of the moment they were learned, elementwise (p,):

        Z = λ / scale² + Σ c h g²,   h = σ(f) (1 - σ(f)), the curvature of the logistic loss.

    With v = gᵀ Z⁻¹ g, the full matrix leaves the event's own direction the variance v - h v² + O(h²), and a diagonal
    one v - c h Σⱼ gⱼ⁴ / Zⱼ². So c = v² / Σⱼ gⱼ⁴ / Zⱼ², which is p for a gradient that is the same in all parameters.

    Events are learned in blocks of 8, counted from the first. Those of a block not yet full wait in the state.
    """

    kind = "neural_ucb"
    rows_alone = True
    Params = NeuralUCBParams

    def __init__(self, d: int, params: NeuralUCBParams, *, seed: int = 0) -> None:
        super().__init__(d, params, seed=seed)
        self._online = OnlineNetwork(d, params, seed=seed)
        self._prior = params.prior / self._online.scale**2  # (p,)
        self._Z = self._prior.copy()

    def update(self, batch: Batch) -> Array:
        x = finite_batch(batch, self.d)
        expected = np.empty(len(x))
        for at, (row, reward) in enumerate(zip(x, batch.reward.clip(0.0, 1.0).tolist(), strict=True)):
            expected[at] = self._online.expected(row)
            block = self._online.add(row, reward)
            if block is not None:
                self._shrink(block)
                self._online.learn(block)
        return expected

    def _shrink(self, block: Events) -> None:
        """Add a block of events to Z."""
        layers = self._online.layers
        inputs, f = forward(layers, block.x.astype(np.float64))
        deltas = backward(layers, inputs, np.ones_like(f))
        squares = [a * a for a in inputs], [delta * delta for delta in deltas]
        fourths = [a * a for a in squares[0]], [delta * delta for delta in squares[1]]
        inverse = 1.0 / self._Z
        v = quadratic(layers_of(inverse, self.d, self.params.hidden), *squares)
        c = v * v / quadratic(layers_of(inverse * inverse, self.d, self.params.hidden), *fourths)
        p = sigmoid(f)
        weight = (c * p * (1.0 - p))[:, None]
        self._Z += gradient(squares[0], [weight * delta for delta in squares[1]])

    def forget(self, keep: float) -> None:
        self._online.fade(keep)
        self._Z = self._prior + keep * (self._Z - self._prior)

    def state(self) -> Arrays:
        return {**self._online.state(), "Z": self._Z.copy()}

    def load(self, state: Arrays) -> None:
        self._online.load(state)
        self._Z = state["Z"].copy()

    def snapshot(self) -> Arrays:
        """Copy `theta` (p,) and `precision` (p,), the diagonal of Z, in float32, and the number of `events` (1,)."""
        return {
            "theta": self._online.theta.astype(np.float32),
            "precision": self._Z.astype(np.float32),
            "events": np.array([self._online.events]),
        }

    @classmethod
    def scorer(cls, snapshot: Mapping[str, Array], *, d: int, params: NeuralUCBParams) -> NeuralUCBScorer:
        return NeuralUCBScorer(snapshot, d, params)


class NeuralUCBScorer(Scorer):
    """estimates: σ(f), f, alpha √(gᵀ Z⁻¹ g); pmf: `random_width_pmf`.

    An estimate takes, in float32, a forward pass, one backward pass for all candidates, and twice that in squares.
    """

    def __init__(self, snapshot: Mapping[str, Array], d: int, params: NeuralUCBParams) -> None:
        p = count(d, params.hidden)
        theta = expect(snapshot, "theta", (p,)).copy()
        variance = 1.0 / expect(snapshot, "precision", (p,))
        layers, of_variance = (layers_of(array, d, params.hidden) for array in (theta, variance))
        self._bounds, self._parameters = Bounds(layers, of_variance), p
        self._events = int(expect(snapshot, "events", (1,))[0])
        self._alpha = params.alpha

    def estimate(self, candidates: Candidates) -> Array:
        f, variance = self._bounds(candidates.x)
        estimates = np.empty((len(f), 3))
        # Rounded, so that equal candidates tie: a float32 product rounds by its rows' positions.
        estimates[:, 1] = np.round(f.astype(np.float64), 4)
        estimates[:, 2] = np.round(self._alpha * np.sqrt(variance.astype(np.float64)), 4)
        estimates[:, 0] = sigmoid(estimates[:, 1])
        return estimates

    def pmf(self, estimates: Array) -> Array:
        return random_width_pmf(estimates[:, 1], estimates[:, 2])

    def summary(self) -> dict[str, Any]:
        """Count the learned events and the parameters."""
        return {"events": self._events, "parameters": self._parameters}


class Bounds:
    """Computes f and gᵀ Z⁻¹ g of many candidates without a Jacobian.

    It does what `network.quadratic` does, with fewer products. The deltas of the last hidden layer are the output
    weights w where a unit is on, and 0 elsewhere. So w is multiplied once into the factors of those deltas, and the
    0-1 pattern of the units takes the deltas' place. Rows are processed in blocks of ROWS, which stay in the cache.

    Args:
        layers: θ as layers.
        variance: the diagonal of Z⁻¹ as layers.
    """

    def __init__(self, layers: Layers, variance: Layers) -> None:
        self._layers = layers
        *below, (W, b), self._of_output = variance
        w = layers[-1][0][:, 0]
        self._variance = [(np.ascontiguousarray(W.T), b) for W, b in (*below, (W * w**2, b * w**2))]  # (o, i) and (o,)
        back = [W for W, _ in layers[1:-1]]
        self._back = [np.ascontiguousarray(W.T) for W in (*back[:-1], *(W * w for W in back[-1:]))]

    def __call__(self, x: Array) -> tuple[Array, Array]:
        """Compute f (n,) and gᵀ Z⁻¹ g (n,) of x (n, d)."""
        f, bonus = np.empty(len(x), dtype=x.dtype), np.empty(len(x), dtype=x.dtype)
        for start in range(0, len(x), ROWS):
            rows = slice(start, start + ROWS)
            inputs, f[rows] = forward(self._layers, x[rows])
            bonus[rows] = self._bonus(inputs)
        return f, bonus

    def _bonus(self, inputs: list[Array]) -> Array:
        top = inputs[-1]
        # The deltas of each layer and their squares, from the last hidden layer down.
        delta = squares = (top > 0).astype(top.dtype)
        w, b = self._of_output
        bonus: Array = np.square(top, out=top) @ w[:, 0] + b[0]
        for depth in range(len(self._variance) - 1, 0, -1):
            a = inputs[depth]
            below = delta @ self._back[depth - 1]
            below *= a > 0
            bonus += self._of_layer(depth, squares, np.square(a, out=a))
            delta, squares = below, np.square(below)
        bonus += self._of_layer(0, squares, np.square(inputs[0]))
        return bonus

    def _of_layer(self, depth: int, delta: Array, a: Array) -> Array:
        """Compute one layer's part of the bonus, (n,), from squares: δ² (n, o) and a² (n, i)."""
        W, b = self._variance[depth]
        part: Array = np.vecdot(delta @ W, a)
        part += delta @ b
        return part
