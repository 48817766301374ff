"""Implements the default policy on rows that have layers, those of a learned schema.

As `adaptive.py`, with more of its own for each id: a logistic model with weights that all items share, weights of each
item on some of the context's columns, and weights of each user on some of the items' columns. An item without features
is learned as itself; one with features is learned through them and then corrected; and so are users.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any
from zlib import crc32

import numpy as np
from pydantic import Field

from service.layout import Layout
from service.policies.base import (
    DETECT_CHANGE,
    Array,
    Arrays,
    Batch,
    Candidates,
    LinearScore,
    NumericalError,
    Params,
    Policy,
    Scorer,
    expect,
    finite_batch,
    sigmoid,
)
from service.policies.effects import Effects, ServedEffects
from service.policies.ensemble import MEMBERS, PAIRS, Bounds, noise, pmf_of_estimates, squares
from service.policies.information import REFRESH, WAITING, Information
from service.policies.item_index import Ids
from service.policies.linalg import root_of_inverse

USERS = 10_000  # whose own weights are kept
DRAWS = 4096  # rows of the fixed noise in which an item's own draws are found
MODELS = 1024  # of users, that a scorer keeps


class AdaptiveParams(Params):
    """Parameters of `Adaptive`."""

    alpha: float = Field(
        default=0.8, ge=0, le=100, description="Mean width of a confidence bound, in standard deviations of the logit."
    )
    ridge: float = Field(default=0.1, ge=1e-9, le=1e9, description="Prior precision of the weight of every column.")
    item_ridge: float = Field(
        default=200.0,
        ge=1e-9,
        le=1e9,
        description="Prior precision of the intercept of every item. A fitted schema has its own for each column.",
    )
    detect_change: bool = Field(default=True, description=DETECT_CHANGE)


class AdaptiveOnLayers(Policy[AdaptiveParams]):
    """Fits the three layers of a row x = [x₀ | x₁ | x₂]: P(click) = σ(mᵀx₀ + aᵀx₁ + bᵀx₂).

    a is the item's own, b the user's. Each has a Gaussian posterior, independent of the others: S, Sₐ, S_b. For an
    event with logit f, variance v = x₀ᵀSx₀ + x₁ᵀSₐx₁ + x₂ᵀS_bx₂, p = σ(f), h = p (1 - p) and g = 1 / (1 + h v), each
    layer takes its part of one common step (extended Kalman filter, Fahrmeir 1992):

        m += g (r - p) S x₀,   S -= g h S x₀ x₀ᵀ S,   and likewise a, Sₐ, b and S_b.

    Args:
        layout: of the rows.
    """

    Params = AdaptiveParams
    comparable = True

    def __init__(self, layout: Layout, params: AdaptiveParams, *, seed: int = 0) -> None:
        super().__init__(layout.d, params, seed=seed)
        self._layout, shared = layout, layout.shared
        self._events = 0
        self._information = Information(params.ridge * np.eye(shared), np.eye(shared) / params.ridge)
        self._items = Effects(layout.of_item, ridge=params.ridge)
        self._users = Effects(layout.of_user, ridge=params.ridge, limit=USERS)

    def fresh(self) -> AdaptiveOnLayers:
        return type(self)(self._layout, self.params, seed=self.seed)

    def update(self, batch: Batch) -> Array:
        x, rewards = finite_batch(batch, self.d), batch.reward.clip(0.0, 1.0).tolist()
        expected: list[float] = []
        while (start := len(expected)) < len(x):
            most = self._users.until_full(batch.user[start : start + WAITING])
            rows = next(self._information.parts(min(most, len(x) - start), self._events))
            rows = slice(start, start + rows.stop)
            expected += self._learn(x[rows], batch.item[rows], batch.user[rows], rewards[rows])
        return np.array(expected, dtype=np.float64)

    def _learn(
        self, x: Array, items: Sequence[str], users: Sequence[str | None], rewards: Sequence[float]
    ) -> list[float]:
        """Learn a part, x (B, d). Return the click probability (B,) that was expected of each event."""
        expected = []
        information, of_items, of_users = self._information, self._items, self._users
        shared, of_item, of_user = self._layout.split(x)
        information.enter(shared)
        of_items.enter(items, of_item)
        of_users.enter(users, of_user)
        for at, reward in enumerate(rewards):
            value, variance = information.look()
            item_value, item_variance = of_items.look(at)
            user_value, user_variance = of_users.look(at)
            own = item_variance + user_variance
            p = sigmoid(value + item_value + user_value)
            h = p * (1.0 - p)
            g = 1.0 / (1.0 + h * (variance + own))
            step, shrink = g * (reward - p), g * h
            information.learn(step, shrink, h / (1.0 + h * own))
            of_items.learn(at, step, shrink)
            of_users.learn(at, step, shrink)
            expected.append(p)
        for layer in (information, of_items, of_users):
            layer.leave()
        self._events += len(x)
        if self._events % REFRESH == 0:
            with suppress(NumericalError):  # the updated inverse is then the best there is
                information.restart(information.matrix)
        return expected

    def expected(self, batch: Batch) -> Array:
        shared, of_item, of_user = self._layout.split(finite_batch(batch, self.d))
        logit = np.vecdot(shared, self._information.mean)  # row by row: the same in any batch
        logit += self._items.means_of(batch.item, of_item)
        logit += self._users.means_of(batch.user, of_user)
        return np.array([sigmoid(f) for f in logit.tolist()])

    def forget(self, keep: float) -> None:
        """Fade the precisions to the priors', and each precision times its mean to 0, by the factor `keep`."""
        prior, precision = self.params.ridge * np.eye(self._layout.shared), self._information.matrix
        worth = precision @ self._information.mean
        self._information.restart(prior + keep * (precision - prior))
        self._information.mean = self._information.inverse @ (keep * worth)
        self._items.forget(keep)
        self._users.forget(keep)

    def forget_items(self, gone: Collection[str]) -> None:
        """Drop the own weights of these items. The shared weights keep what the items' events taught them."""
        self._items.forget_ids(gone)

    def state(self) -> Arrays:
        return {
            "mean": self._information.mean.copy(),
            **self._information.state(),
            "events": np.array([self._events]),
            **self._items.state("items"),
            **self._users.state("users"),
        }

    def load(self, state: Arrays) -> None:
        self._events = int(state["events"][0])
        self._information.load(state)
        self._information.mean = state["mean"].copy()
        self._items.load("items", state)
        self._users.load("users", state)

    def snapshot(self) -> Arrays:
        """Compute what serving needs.

        Returns:
            `layout` (3,), `mean` (D,), `draws` (MEMBERS, D) of the shared weights around their mean, and the own
            weights of items and users (`effects.py`).

        Raises:
            NumericalError: the precision cannot be factored.
        """
        root = root_of_inverse(self._information.matrix)
        return {
            "layout": np.array([self._layout.shared, self._layout.of_item, self._layout.of_user]),
            "mean": self._information.mean.astype(np.float32),
            "draws": (self._noise() @ root).astype(np.float32),
            **self._items.snapshot("items"),
            **self._users.snapshot("users"),
        }

    def _noise(self) -> Array:
        """Draw (MEMBERS, D) in ± pairs, orthogonal, of mean square 1.

        So the draws of the weights have exactly the posterior's variance in every direction, as long as D is at most
        half the number of draws; beyond, on average.
        """
        half = noise(self.seed, self._events, self._layout.shared)[: MEMBERS // 2].astype(np.float64)
        pairs, shared = half.shape
        if pairs >= shared:
            half = np.linalg.qr(half)[0] * math.sqrt(pairs)
        else:
            half = np.linalg.qr(half.T)[0].T * math.sqrt(shared)
        return np.concatenate([half, -half])

    @classmethod
    def scorer(cls, snapshot: Mapping[str, Array], *, d: int, params: AdaptiveParams) -> AdaptiveOnLayersScorer:
        return AdaptiveOnLayersScorer(snapshot, d, params)


class AdaptiveOnLayersScorer(Scorer):
    """estimates: those of `ensemble.Bounds`; a draw is one of all three layers, in standard deviations of the logit."""

    def __init__(self, snapshot: Mapping[str, Array], d: int, params: AdaptiveParams) -> None:
        self._layout = Layout(*expect(snapshot, "layout", (3,)).tolist())
        if self._layout.d != d:
            raise ValueError(f"array 'layout': {self._layout}, expected {d} columns")
        shared = self._layout.shared
        mean, draws = expect(snapshot, "mean", (shared,)), expect(snapshot, "draws", (MEMBERS, shared))
        self._model = np.concatenate([mean[None], draws[:PAIRS]]).T.astype(np.float32)  # (D, 1 + PAIRS)
        self._items = ServedEffects(snapshot, "items", self._layout.of_item, ridge=params.ridge)
        self._users = ServedEffects(snapshot, "users", self._layout.of_user, ridge=params.ridge)
        self._models_of_users: dict[int | None, Array] = {}  # by rows; None: a user never seen
        self._alpha = params.alpha

    def rank(self, candidates: Candidates) -> Bounds:
        return self._ranked(candidates, self._alpha)

    def explain(self, candidates: Candidates) -> LinearScore:
        _, of_item, of_user = self._layout.split(candidates.x.astype(np.float64))
        of_each = np.array([self._items.of_one(one)[0] for one in candidates.item], dtype=np.float64)  # (n, q)
        user = None if candidates.user is None else self._users.of_one(candidates.user)[0].astype(np.float64)
        return LinearScore(
            self._model[:, 0].astype(np.float64),
            np.vecdot(of_each, of_item),
            user=None if user is None else of_user @ user,
            sd=self._ranked(candidates, 1.0).spread.astype(np.float64),
            width=self._alpha,
            is_logit=True,
        )

    def _ranked(self, candidates: Candidates, alpha: float) -> Bounds:
        shared, of_item, of_user = candidates.rows.layers(self._layout)
        z, W = shared.z, shared.fold(self._model)  # (n, p) float64 and (p, 1 + PAIRS) float32
        R = W[:, 1:] * np.float32(PAIRS**-0.5)
        if candidates.user is not None and self._layout.of_user:
            U = of_user.fold(self._model_of(candidates.user))  # (p, 1 + PAIRS + q)
            W = W + U[:, : 1 + PAIRS]
            R = np.concatenate([R, U[:, 1 + PAIRS :]], axis=1)
        W = W.astype(np.float64)
        same = of_item.same()
        mean, own = self._items.of_each(candidates.item, of_item.dense() if same is None else same)
        f = z @ W[:, 0] + mean
        deviation = np.sqrt(squares(z, R.astype(np.float64)) + own)

        def draws(at: Array) -> Array:
            t = z[at] @ W[:, 1:]
            t += np.sqrt(own[at])[:, None] * _own_draws()[_own_rows(candidates.item, at)]
            t /= np.maximum(deviation[at], 1e-18)[:, None]
            return t.astype(np.float32)

        return Bounds(f, alpha * deviation, draws)

    def _model_of(self, user: str) -> Array:
        """Return mean, PAIRS draws around 0, and a root of the covariance of a user's weights: (q, 1 + PAIRS + q)."""
        row = self._users.ids.get(user)
        known = self._models_of_users.get(row)
        if known is not None:
            return known
        mean, S = self._users.of_one(user)
        q = len(S)
        root = np.linalg.cholesky(S + np.float32(1e-7) * np.eye(q, dtype=np.float32))
        model: Array = np.concatenate([mean[:, None], root @ _own_draws()[-q:], root], axis=1)
        if len(self._models_of_users) == MODELS:
            self._models_of_users.clear()
        self._models_of_users[row] = model
        return model

    def estimate(self, candidates: Candidates) -> Array:
        return self.rank(candidates).estimates()

    def pmf(self, estimates: Array) -> Array:
        return pmf_of_estimates(estimates)

    def summary(self) -> dict[str, Any]:
        """Count the items and users seen."""
        return {"items": len(self._items.ids), "users": len(self._users.ids)}


@lru_cache(maxsize=1)
def _own_draws() -> Array:
    """Return the fixed noise (DRAWS, PAIRS) float32 in which each item has a row, found by its id."""
    return np.ascontiguousarray(noise(0, 0, DRAWS)[:PAIRS].T)


class _OwnRows:
    """Finds an item's row in the fixed noise."""

    def find(self, items: Sequence[str]) -> Array:
        return np.array([crc32(item.encode()) % DRAWS for item in items], dtype=np.intp)


_OWN_ROWS = _OwnRows()


def _own_rows(items: Sequence[str], at: Array) -> Array:
    """Return the rows of those of the items that stand at `at`."""
    return items.rows(_OWN_ROWS)[at] if isinstance(items, Ids) else _OWN_ROWS.find([items[row] for row in at.tolist()])
