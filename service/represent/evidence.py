"""Learns how much groups of weights matter, from rewards: empirical Bayes for a logistic model in layers.

    logit of record i = Σ over layers: columns of the layer (i) · weights of its owner (i)

The shared layer has one owner, others have one for each item or user. The weights of a group of columns have the prior
N(0, v), with one v for all owners. `estimate` finds the mode of all weights by Newton's method, layer by layer, and
after each round moves every v towards the evidence (MacKay 1992, "Bayesian interpolation", for groups of weights).

Letters: **N** records, **q** columns of a layer, **m** owners.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

ROUNDS = 7
LARGEST_STEP = 1.2  # of a variance's logarithm
SMALLEST, LARGEST = 1e-5, 25.0  # variance
SPREAD_OF_DEFAULT = 4.0  # prior variance of a variance's logarithm, around its default


class Layer:
    """One layer.

    Args:
        parts: the columns (N, width) of each group.
        defaults: the variance of each group before anything was learned; its prior's centre.
        owners: (N,), who owns each record's weights; None: all share one owner.
    """

    def __init__(
        self, parts: Sequence[Array], defaults: Sequence[float], owners: Sequence[Hashable] | None = None
    ) -> None:
        self.columns = np.concatenate(parts, axis=1)  # (N, q)
        self.group = np.repeat(np.arange(len(parts)), [part.shape[1] for part in parts])  # (q,)
        self.default = np.array(defaults)
        self.variance = self.default.copy()  # of each group
        self._owner: Array | None = None
        self.m = 1
        if owners is not None:
            index: dict[Hashable, int] = {}
            self._owner = np.array([index.setdefault(one, len(index)) for one in owners])
            self.m = len(index)
            self._order = np.argsort(self._owner, kind="stable")
            self._starts = np.searchsorted(self._owner[self._order], np.arange(self.m))
        self._mode = np.zeros((self.m, self.columns.shape[1]))
        self._spread = np.zeros_like(self._mode)

    @property
    def value(self) -> Array:
        """Part of every logit (N,)."""
        if self._owner is None:
            value: Array = self.columns @ self._mode[0]
        else:
            value = np.vecdot(self.columns, self._mode[self._owner])
        return value

    def solve(self, h: Array, target: Array) -> None:
        """Set the weights to their mode, given the curvatures h (N,) and h · value + residual, (N,)."""
        prior = 1.0 / self.variance[self.group]  # (q,) precisions
        q = len(prior)
        rows, weights, sums = self.columns, h, target
        precision = np.empty((self.m, q, q))
        if self._owner is None:
            precision[0] = (rows * weights[:, None]).T @ rows
            worth = (rows.T @ sums)[None]  # (m, q)
        else:
            rows, weights, sums = rows[self._order], weights[self._order], sums[self._order]
            for j in range(q):  # column by column: the products of all records at once would fill the memory
                precision[:, j] = np.add.reduceat((rows[:, j] * weights)[:, None] * rows, self._starts)
            worth = np.add.reduceat(rows * sums[:, None], self._starts)
        precision[:, np.arange(q), np.arange(q)] += prior
        self._mode = np.linalg.solve(precision, worth[:, :, None])[:, :, 0]
        self._spread = np.diagonal(np.linalg.inv(precision), axis1=1, axis2=2)

    def weigh(self) -> None:
        """Move the logarithm of every variance v by one damped Fisher step.

            gradient = ½ Σ (mode² / v - b) - log(v / default) / 4,   information = ½ Σ b² + ¼,   b = 1 - spread / v

        summed over the group's weights of all owners.
        """
        for group, (v, default) in enumerate(zip(self.variance, self.default, strict=True)):
            mode, spread = self._mode[:, self.group == group], self._spread[:, self.group == group]
            b = 1.0 - np.minimum(spread / v, 1.0)
            gradient = 0.5 * float((mode**2 / v - b).sum()) - math.log(v / default) / SPREAD_OF_DEFAULT
            information = 0.5 * float((b**2).sum()) + 1.0 / SPREAD_OF_DEFAULT
            step = min(max(gradient / information, -LARGEST_STEP), LARGEST_STEP)
            self.variance[group] = min(max(v * math.exp(step), SMALLEST), LARGEST)

    def contribution(self) -> Array:
        """Return the prior variance that each group adds to the logit of a record, on average."""
        squares = np.bincount(self.group, weights=(self.columns**2).mean(axis=0), minlength=len(self.variance))
        contribution: Array = self.variance * squares
        return contribution


def estimate(layers: Sequence[Layer], reward: Array, *, weigh: bool) -> None:
    """Fit all layers to rewards (N,) in [0, 1].

    Args:
        weigh: whether to learn the variances; else they stay as they are.
    """
    for _ in range(ROUNDS):
        for layer in layers:
            logit = sum((other.value for other in layers), np.zeros(len(reward))).clip(-30.0, 30.0)
            p = 1.0 / (1.0 + np.exp(-logit))
            h = np.maximum(p * (1.0 - p), 1e-6)
            layer.solve(h, h * layer.value + (reward - p))
        if weigh:
            for layer in layers:
                layer.weigh()


def interaction(c: Array, z: Array, reward: Array) -> float:
    """Score a pair of fields: how far their products explain what an additive fit of the two leaves over.

    Args:
        c, z: columns (N, ·) of the two fields.

    Returns:
        The score statistic minus its expectation, in standard deviations, had the pair no effect.
    """
    main = np.concatenate([np.ones((len(c), 1)), c, z], axis=1)
    ridge = 0.1 * np.eye(main.shape[1])
    residual = reward - main @ np.linalg.solve(main.T @ main + ridge, main.T @ reward)
    found = ((c * residual[:, None]).T @ z) ** 2
    by_chance = residual.var() * ((c**2).T @ z**2)
    return float((found - by_chance).sum() / math.sqrt(2.0 * (by_chance**2).sum() + 1e-12))


def most_telling(
    scores: Mapping[tuple[str | None, str | None], float],
    widths: Mapping[tuple[str | None, str | None], int],
    room: int,
) -> set[tuple[str | None, str | None]]:
    """Return the pairs with the best scores whose columns fit into so much room."""
    kept = set()
    for pair in sorted(scores, key=lambda pair: -scores[pair]):
        if widths[pair] <= room:
            room -= widths[pair]
            kept.add(pair)
    return kept
