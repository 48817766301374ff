"""NeuralUCB (Zhou, Li & Gu 2020, arXiv:1911.04462, Algorithm 1) with a diagonal design matrix and no Jacobian.

One network f(x; θ) for all items; its uncertainty about a candidate is √(gᵀ Z⁻¹ g), g = ∇f(x; θ). As in the authors'
experiments Z is diagonal. Then a layer's part of gᵀ Z⁻¹ g takes two matrix products for all candidates at once
(`_network.quadratic`), instead of a backward pass for each.

It differs from the paper in four places, each of which is what makes it work here:

- f is a logit, with logistic loss: rewards are probabilities, and the noise scales by itself.
- Z starts at λ / scale², so that all layers share the prior variance. With λ I, the upper layers, whose units all rows
  have in common, drown the weights of the first, which tell one row from another.
- A diagonal Z forgets that p parameters moved together: an event g would still leave about p times the variance that
  the full matrix leaves, so the policy explores p times too long. Each event counts c times (equation below).
- The width of the bound is random (`_envelope`), which gives smooth exact probabilities and locks nothing in.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
from pydantic import BaseModel, Field

from service.policies._base import Array, Arrays, Batch, Candidates, Policy, Scorer, expect
from service.policies._envelope import random_width_pmf
from service.policies._linalg import finite_batch
from service.policies._network import (
    MINIBATCH,
    Events,
    Layers,
    Learner,
    NetworkParams,
    backward,
    count,
    forward,
    gradient,
    layers_of,
    quadratic,
    sigmoid,
)

ROWS = 256  # candidates worked on at once


class NeuralUCBParams(NetworkParams):
    """The knobs of `NeuralUCB`."""

    # As the search found them, but for the prior (docs/policies.md).
    alpha: float = Field(default=1.1, ge=0, le=100)  # the mean width, in standard deviations of the logit
    learning_rate: float = Field(default=0.0033, gt=0, le=1)  # at first, in units of `scale`
    buffer: int = Field(default=2048, ge=MINIBATCH, le=1_000_000)  # events kept to learn from again


class NeuralUCB(Policy):
    """Z = λ / scale² + Σ c h g², elementwise (p,), over all events, at the θ of the moment they were learned;
    h = σ(f) (1 - σ(f)) is the logistic loss's curvature.

    The full matrix leaves an event's own direction with the variance v - h v² + O(h²), v = gᵀ Z⁻¹ g; a diagonal one
    with v - c h Σⱼ gⱼ⁴ / Zⱼ². So c = v² / Σⱼ gⱼ⁴ / Zⱼ², which is p for a gradient that is the same in all parameters.

    Events are learned in blocks of 8, counted from the first; those of a block not yet full wait in the state.
    """

    kind = "neural_ucb"
    Params = NeuralUCBParams
    params: NeuralUCBParams

    def __init__(self, d: int, params: NeuralUCBParams, *, seed: int = 0) -> None:
        super().__init__(d, params, seed=seed)
        self._learner = Learner(d, params, seed=seed)
        self._prior = params.prior / self._learner.scale**2  # (p,)
        self._Z = self._prior.copy()

    def update(self, batch: Batch) -> Array:
        x = finite_batch(batch, self.d)
        expected = np.empty(len(x))
        for at, (row, reward) in enumerate(zip(x, batch.reward.clip(0.0, 1.0).tolist(), strict=True)):
            expected[at] = self._learner.expected(row)
            block = self._learner.add(row, reward)
            if block is not None:
                self._shrink(block)
                self._learner.learn(block)
        return expected

    def _shrink(self, block: Events) -> None:
        """The variances, by a block of events."""
        layers = self._learner.layers
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
        self._learner.fade(keep)
        self._Z = self._prior + keep * (self._Z - self._prior)

    def state(self) -> Arrays:
        return {**self._learner.state(), "Z": self._Z.copy()}

    def load(self, state: Arrays) -> None:
        self._learner.load(state)
        self._Z = state["Z"].copy()

    def snapshot(self) -> Arrays:
        """theta (p,) and precision (p,), the diagonal of Z, in float32."""
        return {
            "theta": self._learner.theta.astype(np.float32),
            "precision": self._Z.astype(np.float32),
            "events": np.array([self._learner.events]),
        }

    @classmethod
    def scorer(cls, snapshot: Mapping[str, Array], *, d: int, params: BaseModel) -> NeuralUCBScorer:
        return NeuralUCBScorer(snapshot, d, cast(NeuralUCBParams, params))


class NeuralUCBScorer(Scorer):
    """estimates: σ(f), f, alpha √(gᵀ Z⁻¹ g); pmf: of being the best at a random width.

    In float32: a forward pass, the backward pass of all candidates at once, and twice that in squares.
    """

    def __init__(self, snapshot: Mapping[str, Array], d: int, params: NeuralUCBParams) -> None:
        p = count(d, params.hidden)
        theta = expect(snapshot.get("theta"), "theta", (p,)).copy()
        variance = 1.0 / expect(snapshot.get("precision"), "precision", (p,))
        layers, of_variance = (layers_of(array, d, params.hidden) for array in (theta, variance))
        self._bounds, self._parameters = Bounds(layers, of_variance), p
        self._events = int(expect(snapshot.get("events"), "events", (1,))[0])
        self._alpha = params.alpha

    def estimate(self, candidates: Candidates) -> Array:
        f, variance = self._bounds(candidates.x)
        estimates = np.empty((len(f), 3))
        # Rounded, so that equal candidates tie although float32 products depend on where in the matrix a row stands.
        estimates[:, 1] = np.round(f.astype(np.float64), 4)
        estimates[:, 2] = np.round(self._alpha * np.sqrt(variance.astype(np.float64)), 4)
        estimates[:, 0] = sigmoid(estimates[:, 1])
        return estimates

    def pmf(self, estimates: Array) -> Array:
        return random_width_pmf(estimates[:, 1], estimates[:, 2])

    def summary(self) -> dict[str, Any]:
        """The number of events, and of parameters."""
        return {"events": self._events, "parameters": self._parameters}


class Bounds:
    """f and gᵀ Z⁻¹ g of many candidates, from θ and the diagonal of Z⁻¹ as layers: no Jacobian.

    As `_network.quadratic`, with less to do: the deltas of the last hidden layer are its output weights w where a unit
    is on, and 0 elsewhere. So w is multiplied once into what those deltas are multiplied with, and whether units are on
    takes their place. In blocks of ROWS rows, which stay in the cache.
    """

    def __init__(self, layers: Layers, variance: Layers) -> None:
        self._layers = layers
        *below, (W, b), self._of_output = variance
        w = layers[-1][0][:, 0]
        self._variance = [(np.ascontiguousarray(W.T), b) for W, b in (*below, (W * w**2, b * w**2))]  # (o, i) and (o,)
        back = [W for W, _ in layers[1:-1]]
        self._back = [np.ascontiguousarray(W.T) for W in (*back[:-1], *(W * w for W in back[-1:]))]

    def __call__(self, x: Array) -> tuple[Array, Array]:
        """x (n, d) → f (n,) and gᵀ Z⁻¹ g (n,)."""
        f, bonus = np.empty(len(x), dtype=x.dtype), np.empty(len(x), dtype=x.dtype)
        for start in range(0, len(x), ROWS):
            rows = slice(start, start + ROWS)
            inputs, f[rows] = forward(self._layers, x[rows])
            bonus[rows] = self._bonus(inputs)
        return f, bonus

    def _bonus(self, inputs: list[Array]) -> Array:
        top = inputs[-1]
        # The deltas of each layer, from the last hidden one down, and their squares.
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
        """A layer's part of the bonus, (n,), from squares: δ² (n, o) and a² (n, i)."""
        W, b = self._variance[depth]
        part: Array = np.vecdot(delta @ W, a)
        part += delta @ b
        return part
