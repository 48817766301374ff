"""Implements the network of the neural policies: fully connected, ReLU units, one output that is a logit.

    a₀ = x (n, d),   aₗ = relu(aₗ₋₁ Wₗ + bₗ),   f(x; θ) = a_L w + b (n,)

Learning uses NumPy: at these sizes a step takes less time than PyTorch needs to build its graph. All p parameters are
one vector θ; the layers are views of it.

The prior of the parameters is N(θ₀, scale² / λ). θ₀ are the initial weights, and `scale` is the standard deviation that
they were drawn with: up to a constant, 1 / √(inputs of the layer). So every layer contributes about the same share of
the prior variance of f, and Adam's steps are in proportion to `scale`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, NamedTuple, TypeAlias

import numpy as np
from pydantic import Field

from service.policies.base import DETECT_CHANGE, Array, Arrays, Params, sigmoid

Width = Annotated[int, Field(ge=2, le=1024, multiple_of=2)]
Layers: TypeAlias = Sequence[tuple[Array, Array]]  # W (i, o) and b (o,) of each layer, from the inputs up

BLOCK = 8  # events that are learned together, counted from the first
STEPS = 3  # of Adam after each block
MINIBATCH = 64  # rows of a step: the BLOCK newest, the rest from the reservoir
BETAS, EPSILON = (0.9, 0.999), 1e-8  # of Adam
BIAS_SCALE = 0.5  # as the weight of a constant input
SETTLED = 2000.0  # evidence at which the learning rate has halved
NO_ITEM = -1  # the row of an event whose item was forgotten


class NetworkParams(Params):
    """Parameters of the network."""

    hidden: tuple[Width, ...] = Field(
        default=(64, 64), min_length=1, max_length=4, description="Number of units of each hidden layer, all even."
    )
    learning_rate: float = Field(
        default=0.01, gt=0, le=1, description="Initial step size of Adam, relative to the scale of each weight."
    )
    prior: float = Field(
        default=1.0, ge=1e-9, le=1e9, description="Prior precision of each weight, relative to 1 / scale²."
    )
    buffer: int = Field(
        default=4096, ge=MINIBATCH, le=1_000_000, description="Number of events that are kept to learn from again."
    )
    detect_change: bool = Field(default=True, description=DETECT_CHANGE)


def sizes(d: int, hidden: Sequence[int]) -> list[tuple[int, int]]:
    """List (inputs, outputs) of each layer."""
    widths = (d, *hidden, 1)
    return list(pairwise(widths))


def count(d: int, hidden: Sequence[int]) -> int:
    """Count the parameters, p."""
    return sum((i + 1) * o for i, o in sizes(d, hidden))


def layers_of(theta: Array, d: int, hidden: Sequence[int]) -> Layers:
    """Split a vector (p,) into layers, which are views of it."""
    layers, start = [], 0
    for i, o in sizes(d, hidden):
        middle, stop = start + i * o, start + (i + 1) * o
        layers.append((theta[start:middle].reshape(i, o), theta[middle:stop]))
        start = stop
    return layers


def initial(d: int, hidden: Sequence[int], seed: int) -> tuple[Array, Array]:
    """Draw θ₀ (p,) and compute `scale` (p,).

    As in Zhou et al. 2020, Algorithm 1, the network is two equal halves whose outputs are subtracted. So f(x; θ₀) = 0
    for every x, and its gradient is not 0. The first layer assumes |x| = 1 whatever d is: encoder rows are no longer.
    """
    rng = np.random.default_rng([seed, 0])
    theta, scale = np.zeros(count(d, hidden)), np.zeros(count(d, hidden))
    layers = list(zip(layers_of(theta, d, hidden), layers_of(scale, d, hidden), strict=True))
    for depth, ((W, _), (W_scale, b_scale)) in enumerate(layers):
        i, o = W.shape
        first, last = depth == 0, depth == len(layers) - 1
        W_scale[:] = math.sqrt((1.0 if last else 2.0) / (1 if first else i))
        b_scale[:] = BIAS_SCALE
        half_i, half_o = i if first else i // 2, o if last else o // 2
        # A half has half the inputs: its weights are larger by √2 for the same variance.
        half = rng.normal(size=(half_i, half_o)) * W_scale[0, 0] * math.sqrt(i / half_i)
        W[:half_i, :half_o] = half
        W[i - half_i :, o - half_o :] = -half if last else half
    return theta, scale


def forward(layers: Layers, x: Array) -> tuple[list[Array], Array]:
    """Compute the inputs of each layer, [(n, i)], and f (n,)."""
    inputs = [x]
    for W, b in layers[:-1]:
        a = inputs[-1] @ W
        a += b
        inputs.append(np.maximum(a, 0, out=a))
    w, b = layers[-1]
    return inputs, inputs[-1] @ w[:, 0] + b[0]


def backward(layers: Layers, inputs: Sequence[Array], of_output: Array) -> list[Array]:
    """Compute the deltas δ of each layer, [(n, o)], for a loss with derivative `of_output` (n,) with respect to f."""
    deltas = [of_output[:, None]]
    for (W, _), a in zip(layers[:0:-1], inputs[:0:-1], strict=True):
        delta = deltas[0] * W[:, 0] if W.shape[1] == 1 else deltas[0] @ W.T
        delta *= a > 0
        deltas.insert(0, delta)
    return deltas


def gradient(inputs: Sequence[Array], deltas: Sequence[Array]) -> Array:
    """Sum the gradients with respect to θ over the rows: (p,)."""
    parts = []
    for a, delta in zip(inputs, deltas, strict=True):
        parts += [(a.T @ delta).ravel(), delta.sum(axis=0)]
    return np.concatenate(parts)


def quadratic(weights: Layers, inputs: Sequence[Array], deltas: Sequence[Array]) -> Array:
    """Compute Σⱼ weightⱼ gⱼ² (n,) for the gradient g (p,) of each row, without forming g.

    A layer's part of g is the outer product of its inputs a and its deltas δ. So the sum over its i · o weights is
    ((δ² @ weightᵀ) · a²) summed over i, and the sum over its biases is δ² @ weight.

    Args:
        weights: for W and b of each layer, as layers.
        inputs: squares a² [(n, i)].
        deltas: squares δ² [(n, o)].
    """
    total = np.zeros(len(inputs[0]), dtype=inputs[0].dtype)
    for (W, b), a, delta in zip(weights, inputs, deltas, strict=True):
        total += a @ W[:, 0] * delta[:, 0] if W.shape[1] == 1 else np.vecdot(a @ W, delta)
        total += delta @ b
    return total


class Events(NamedTuple):
    """B events to learn from, one column each."""

    x: Array  # (B, d) float32
    reward: Array  # (B,) float64 in [0, 1]
    row: Array  # (B,) int64: the row of the event's item, NO_ITEM where it was forgotten


class OnlineNetwork:
    """Fits θ to a stream of events and keeps a reservoir of them to learn from again.

    The loss is logistic, plus the prior. After every BLOCK-th event come STEPS steps of Adam (Kingma & Ba 2015,
    arXiv:1412.6980).

    The reservoir is a uniform sample of all events (Vitter 1985, Algorithm R): event t replaces one of the N rows with
    probability N / t. `evidence` takes the place of t: the number of events, less those forgotten. When evidence fades,
    the ages of the rows follow it. The reservoir never has more rows than evidence. Each row weighs evidence / N, which
    is 1 until the reservoir is full.

    Args:
        d: number of features.
        params: parameters of the network.
        seed: seed of θ₀, of the reservoir and of the minibatches.
    """

    def __init__(self, d: int, params: NetworkParams, *, seed: int) -> None:
        self.d, self.params, self.seed = d, params, seed
        self.origin, self.scale = initial(d, params.hidden, seed)
        self.events = 0
        self.clear()

    def clear(self) -> None:
        """Return to the prior. Only the number of events goes on."""
        self.theta, self.evidence = self.origin.copy(), 0.0
        self._momentum, self._power, self._steps = np.zeros_like(self.theta), np.zeros_like(self.theta), 0
        self._kept, self._size = _no_events(0, self.d), 0  # longer than needed: it doubles when it is full
        self._block, self._waiting = _no_events(BLOCK, self.d), 0

    def fade(self, keep: float) -> None:
        """Multiply by `keep`, in [0, 1), the distance of the weights from the prior's mean, and the evidence."""
        if keep == 0:
            self.clear()
        else:
            self.theta = self.origin + keep * (self.theta - self.origin)
            self.evidence *= keep
            start, stop = max(0, self._size - int(self.evidence)), self._size
            if start:
                self._kept, self._size = Events(*(column[start:stop].copy() for column in self._kept)), stop - start

    @property
    def layers(self) -> Layers:
        """θ as layers."""
        return layers_of(self.theta, self.d, self.params.hidden)

    @property
    def kept(self) -> Events:
        """The events of the reservoir, as views."""
        return Events(*(column[: self._size] for column in self._kept))

    def expected(self, x: Array) -> float:
        """Compute the expected reward of one row (d,) float64."""
        for W, b in self.layers[:-1]:
            x = np.maximum(x @ W + b, 0)
        w, b = self.layers[-1]
        return sigmoid(float(x @ w[:, 0] + b[0]))

    def add(self, x: Array, reward: float, row: int = 0) -> Events | None:
        """Add one event, x (d,). Return the block of events that it completes, if any."""
        for column, value in zip(self._block, (x, reward, row), strict=True):
            column[self._waiting] = value
        self.events += 1
        self._waiting = (self._waiting + 1) % BLOCK
        return None if self._waiting else self._block

    def learn(self, block: Events) -> None:
        """Sample the block into the reservoir and take STEPS steps."""
        rng = np.random.default_rng([self.seed, self.events])
        self._keep(block, rng)
        for at in rng.integers(self._size, size=(STEPS, MINIBATCH - BLOCK)):
            self._step(block, at)

    def renumber(self, new_row: Array) -> None:
        """Replace the row of every event by new_row[row], in the reservoir and in the block that is not yet full."""
        for events in (self.kept, Events(*(column[: self._waiting] for column in self._block))):
            events.row[:] = np.append(new_row, NO_ITEM)[events.row]  # NO_ITEM, -1, stays what it is

    def _step(self, block: Events, at: Array) -> None:
        """Take one step of Adam on the block and the rows `at` of the reservoir."""
        x = np.concatenate([block.x, self._kept.x[at]]).astype(np.float64)
        reward = np.concatenate([block.reward, self._kept.reward[at]])
        layers = self.layers
        inputs, f = forward(layers, x)
        slope = gradient(inputs, backward(layers, inputs, (sigmoid(f) - reward) / MINIBATCH)) * self.scale
        slope += self.params.prior / self.evidence * (self.theta - self.origin) / self.scale
        self._adam(slope)

    def _keep(self, block: Events, rng: np.random.Generator) -> None:
        N = self.params.buffer
        if min(N, self._size + BLOCK) > len(self._kept.x):
            more = min(N, max(2 * self._size, 16 * BLOCK)) - len(self._kept.x)
            self._kept = Events(*(np.pad(c, [(0, more)] + [(0, 0)] * (c.ndim - 1)) for c in self._kept))
        for event, uniform in enumerate(rng.random(BLOCK).tolist()):
            self.evidence += 1.0
            slot = self._size if self._size < N else int(uniform * max(self.evidence, N))
            if slot < N:
                for column, new in zip(self._kept, block, strict=True):
                    column[slot] = new[event]
                self._size = max(self._size, slot + 1)

    def _adam(self, slope: Array) -> None:
        """Step in units of `scale`, at a rate that falls as evidence grows."""
        self._steps += 1
        (beta1, beta2), t = BETAS, self._steps
        self._momentum += (1 - beta1) * (slope - self._momentum)
        self._power += (1 - beta2) * (slope * slope - self._power)
        rate = self.params.learning_rate / (1.0 + self.evidence / SETTLED)
        rate *= math.sqrt(1.0 - beta2**t) / (1.0 - beta1**t)
        self.theta -= rate * self.scale * self._momentum / (np.sqrt(self._power) + EPSILON)

    def state(self) -> Arrays:
        """Copy all that learning needs to go on, bit for bit."""
        waiting = Events(*(column[: self._waiting] for column in self._block))
        return {
            "theta": self.theta.copy(),
            "momentum": self._momentum.copy(),
            "power": self._power.copy(),
            **{f"kept_{name}": column.copy() for name, column in self.kept._asdict().items()},
            **{f"waiting_{name}": column.copy() for name, column in waiting._asdict().items()},
            "counts": np.array([self.events, self._steps]),
            "evidence": np.array([self.evidence]),
        }

    def load(self, state: Arrays) -> None:
        """Replace what was learned by a `state()` with the same d, params and seed."""
        self.theta, self._momentum, self._power = (state[name].copy() for name in ("theta", "momentum", "power"))
        self._kept = Events(*(state[f"kept_{name}"].copy() for name in Events._fields))
        self._size, self._waiting = len(self._kept.x), len(state["waiting_x"])
        for name, column in self._block._asdict().items():
            column[: self._waiting] = state[f"waiting_{name}"]
        self.events, self._steps = state["counts"].tolist()
        self.evidence = float(state["evidence"][0])


def _no_events(size: int, d: int) -> Events:
    return Events(np.zeros((size, d), dtype=np.float32), np.zeros(size), np.zeros(size, dtype=np.int64))
