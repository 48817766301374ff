"""Implements the batch-trained baseline: user and item embeddings with a small neural network.

The model is that of neural collaborative filtering (He et al. 2017, arXiv:1708.05031). It is trained on the log once
and then frozen, or trained anew every so many events.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection, Iterable, Mapping
from threading import Lock
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from service.policies.base import (
    Array,
    Arrays,
    Batch,
    Candidates,
    NumericalError,
    Params,
    Policy,
    Scorer,
    expect,
    finite_batch,
    greedy_pmf,
    part,
    sigmoid,
)
from service.policies.item_index import ItemIndex

Width = Annotated[int, Field(ge=1, le=1024)]

WEIGHTS = ("user_embedding", "item_embedding", "w1", "b1", "w2", "b2", "w3", "b3")
_one_training = Lock()  # PyTorch's number of threads belongs to the process


class EmbeddingMLPParams(Params):
    """Parameters of `EmbeddingMLP`."""

    embedding_dim: int = Field(default=8, ge=1, le=256, description="Dimension of the user and item embeddings.")
    hidden: tuple[Width, Width] = Field(default=(32, 16), description="Number of units of the two hidden layers.")
    epochs: int = Field(default=6, ge=1, le=1000, description="Number of passes over the log in a training.")
    batch_size: int = Field(default=1024, ge=1, le=1_000_000, description="Number of events per step of AdamW.")
    learning_rate: float = Field(
        default=0.005, gt=0, le=1, description="Initial step size of AdamW; it falls linearly to 0."
    )
    weight_decay: float = Field(default=0.1, ge=0, le=10, description="Decoupled weight decay of AdamW.")
    id_dropout: float = Field(
        default=0.1, ge=0, lt=1, description="Share of events whose user, or item, is trained on as unknown."
    )
    retrain_every: int | None = Field(
        default=None, ge=100, description="Number of events of the log between trainings; null: train on request only."
    )
    window: int | None = Field(
        default=None, ge=100, description="Number of newest events to train on; null: all that are retained."
    )


class EmbeddingMLP(Policy[EmbeddingMLPParams]):
    """Trains a small neural network on user and item embeddings and always chooses the highest estimate.

    score = σ(w3ᵀ relu(W2 relu(W1 [user embedding, item embedding, x] + b1) + b2) + b3) estimates the reward.

    The loss is logistic, for which any reward in [0, 1] is a proper target; rewards outside are clamped. Row 0 of each
    embedding stands for all ids that are not in the log. Hiding some ids while training (`id_dropout`) teaches it the
    average. The same log, seed and machine give the same weights, bit for bit.
    """

    kind = "embedding_mlp"
    batch_trained = True
    Params = EmbeddingMLPParams

    def __init__(self, d: int, params: EmbeddingMLPParams, *, seed: int = 0) -> None:
        super().__init__(d, params, seed=seed)
        weights = {name: np.zeros(shape, dtype=np.float32) for name, shape in _shapes(d, params, 0, 0).items()}
        self._model = _model(weights, users=ItemIndex(), items=ItemIndex(), rows=0, loss=0.0)

    def update(self, batch: Batch) -> None:
        """Do nothing: the weights are frozen between trainings."""

    def forget(self, keep: float) -> None:
        """Do nothing: the policy learns from the log."""

    def forget_items(self, gone: Collection[str]) -> None:
        """Drop the embeddings of these items. The network keeps its other weights until the next training."""
        items = ItemIndex.from_array(self._model["items"])
        kept = items.forget(gone)
        if kept is not None:
            embedding = self._model["item_embedding"][[0, *(kept + 1)]]
            self._model = {**self._model, "item_embedding": embedding, "items": items.to_array()}

    def train_due(self, events: int) -> bool:
        return self.params.retrain_every is not None and events % self.params.retrain_every == 0

    def train(self, history: Iterable[Batch]) -> None:
        """Learn the weights anew from the history, or from its last `window` events.

        200 000 events take about 4 s on one core. An empty history changes nothing.

        Raises:
            NumericalError: a feature, a reward or a trained weight is not finite. The old weights then stay.
        """
        user: list[int] = []
        item: list[int] = []
        users, items = ItemIndex(), ItemIndex()
        x, reward = [np.zeros((0, self.d), dtype=np.float32)], [np.zeros(0)]
        for batch in history if self.params.window is None else _newest(history, self.params.window):
            finite_batch(batch, self.d)
            user += [0 if u is None else users.add(u) + 1 for u in batch.user]
            item += [items.add(i) + 1 for i in batch.item]
            x.append(batch.x)
            reward.append(batch.reward)
        if not item:
            return
        shapes = _shapes(self.d, self.params, len(users), len(items))
        rows = (np.array(user, dtype=np.int64), np.array(item, dtype=np.int64), np.concatenate(x))
        with _one_training:
            weights, loss = _fit(shapes, rows, np.concatenate(reward).clip(0, 1), self.params, self.seed)
        if not all(np.isfinite(weight).all() for weight in weights.values()):
            raise NumericalError("the weights left the finite numbers: lower `learning_rate`")
        self._model = _model(weights, users=users, items=items, rows=len(user), loss=loss)

    def state(self) -> Arrays:
        return {name: array.copy() for name, array in self._model.items()}

    def load(self, state: Arrays) -> None:
        self._model = {name: array.copy() for name, array in state.items()}

    def snapshot(self) -> Arrays:
        """Copy the weights (float32), `users` and `items` (the ids of rows 1, 2, …), `rows` (1,) and `loss` (1,).

        `rows` is the number of events trained on, `loss` their mean loss over the last epoch.
        """
        return self.state()

    @classmethod
    def scorer(cls, snapshot: Mapping[str, Array], *, d: int, params: EmbeddingMLPParams) -> EmbeddingMLPScorer:
        return EmbeddingMLPScorer(snapshot, d, params)


class EmbeddingMLPScorer(Scorer):
    """score = the forward pass; pmf puts all mass on the best, ties shared.

    The first layer is a sum of three parts. The items' part is computed once per snapshot, the user's once per request.
    """

    def __init__(self, snapshot: Mapping[str, Array], d: int, params: EmbeddingMLPParams) -> None:
        self._users = ItemIndex.from_array(expect(snapshot, "users", (None,)))
        self._items = ItemIndex.from_array(expect(snapshot, "items", (None,)))
        shapes = _shapes(d, params, len(self._users), len(self._items))
        weights = {name: expect(snapshot, name, shape) for name, shape in shapes.items()}
        self._rows = int(expect(snapshot, "rows", (1,))[0])
        self._loss = float(expect(snapshot, "loss", (1,))[0])
        of_user, of_item, of_x = np.split(weights["w1"], [params.embedding_dim, 2 * params.embedding_dim])
        self._user_embedding, self._of_user = weights["user_embedding"].copy(), of_user.copy()
        item_part = weights["item_embedding"] @ of_item + weights["b1"]  # (items + 1, h1); row 0 is an unknown item
        self._item_part = np.roll(item_part, -1, axis=0)  # where `ItemIndex.rows` has the unknown: last
        self._of_x = of_x.copy()
        self._layers = [(weights[w].copy(), weights[b].copy()) for w, b in (("w2", "b2"), ("w3", "b3"))]

    def estimate(self, candidates: Candidates) -> Array:
        user = None if candidates.user is None else self._users.get(candidates.user)
        h = candidates.x @ self._of_x  # (n, h1)
        h += self._item_part[self._items.rows(candidates.item)]
        h += self._user_embedding[0 if user is None else user + 1] @ self._of_user
        for w, b in self._layers:
            h = np.maximum(h, 0.0) @ w + b  # (n, h2), then (n, 1)
        score: Array = sigmoid(h.astype(np.float64))
        return score

    def pmf(self, estimates: Array) -> Array:
        return greedy_pmf(estimates[:, 0])

    def summary(self) -> dict[str, Any]:
        """Count what the weights were trained on, and show the mean loss over the last epoch (nats per event)."""
        return {"rows": self._rows, "users": len(self._users), "items": len(self._items), "training_loss": self._loss}


def _newest(history: Iterable[Batch], window: int) -> Iterable[Batch]:
    """Yield the last `window` events of a history."""
    kept: deque[Batch] = deque()
    total = 0
    for batch in history:
        kept.append(batch)
        total += len(batch.item)
        while total - len(kept[0].item) >= window:
            total -= len(kept.popleft().item)
    for batch in kept:
        yield part(batch, slice(max(0, total - window), None))
        total = min(total, window)


def _shapes(d: int, params: EmbeddingMLPParams, users: int, items: int) -> dict[str, tuple[int, ...]]:
    """List the shape of each weight; inputs come first."""
    e, (h1, h2) = params.embedding_dim, params.hidden
    shapes = ((users + 1, e), (items + 1, e), (2 * e + d, h1), (h1,), (h1, h2), (h2,), (h2, 1), (1,))
    return dict(zip(WEIGHTS, shapes, strict=True))


def _model(weights: Arrays, *, users: ItemIndex, items: ItemIndex, rows: int, loss: float) -> Arrays:
    ids = {"users": users.to_array(), "items": items.to_array()}
    return {**weights, **ids, "rows": np.array([rows], dtype=np.int64), "loss": np.array([loss])}


def _fit(
    shapes: Mapping[str, tuple[int, ...]],
    rows: tuple[Array, Array, Array],
    reward: Array,
    params: EmbeddingMLPParams,
    seed: int,
) -> tuple[Arrays, float]:
    """Train the weights. Return them and their mean loss over the last epoch.

    Args:
        rows: user (B,), item (B,) and x (B, d).
        reward: (B,), in [0, 1].
    """
    import torch
    from torch.nn.functional import binary_cross_entropy_with_logits, embedding

    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in shapes.items():
        scale = 0.1 if name.endswith("embedding") else (2.0 / shape[0]) ** 0.5 if len(shape) == 2 else 0.0
        weights[name] = (scale * torch.randn(shape, generator=generator)).requires_grad_()
    user_embedding, item_embedding, w1, b1, w2, b2, w3, b3 = (weights[name] for name in WEIGHTS)
    user, item, x = map(torch.from_numpy, rows)
    target = torch.from_numpy(reward.astype(np.float32))

    steps = params.epochs * math.ceil(len(target) / params.batch_size)
    optimizer = torch.optim.AdamW(weights.values(), lr=params.learning_rate, weight_decay=params.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 - step / steps)
    losses = 0.0
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # several threads would add sums up in any order
    try:
        for _ in range(params.epochs):
            losses = 0.0
            for at in torch.split(torch.randperm(len(target), generator=generator), params.batch_size):
                shown = torch.rand((2, len(at)), generator=generator) >= params.id_dropout
                u = embedding(user[at] * shown[0], user_embedding)
                i = embedding(item[at] * shown[1], item_embedding)
                h = torch.relu(torch.cat([u, i, x[at]], dim=1) @ w1 + b1)
                logit = (torch.relu(h @ w2 + b2) @ w3 + b3)[:, 0]
                loss = binary_cross_entropy_with_logits(logit, target[at])
                optimizer.zero_grad()
                torch.autograd.backward(loss)
                optimizer.step()
                schedule.step()
                losses += loss.item() * len(at)
    finally:
        torch.set_num_threads(threads)
    return {name: w.detach().numpy() for name, w in weights.items()}, losses / len(target)
