"""Trains the two towers of learned embeddings (`service/retrieve/towers.py`) by a sampled softmax.

For an event whose item brought more than the default reward, the softmax over all items says how likely this user was
to be rewarded for this item. It is computed over a sample: the items of the batch's other events, and as many that are
drawn from the whole catalogue. A popular item is in a batch more often. So each logit is corrected by the logarithm of
how many times its item is expected in the sample, log Q (Yi et al. 2019, "Sampling-bias-corrected neural modeling for
large corpus item recommendations", eq. 3; the mixture with the catalogue: Yang et al. 2020, "Mixed negative sampling"):

    loss = -Σ r log softmax_j(u · v_j / τ - log Q_j)[the event's item]

u and v are the towers' vectors, r is what the event brought beyond the default. Ids are hidden now and then, so that
features and context learn to do without them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from service.retrieve.towers import COLUMNS, Bags, Tower, Towers, bags_of, hashes_of

if TYPE_CHECKING:
    import torch

Array = NDArray[Any]

SIZE = 32  # numbers of a vector
BATCH, DRAWN = 256, 256  # events of a step; items that are drawn for it from the catalogue
EPOCHS, MOST_STEPS = 12, 4000
RATE, ID_RATE, LAYER_RATE = 0.05, 0.02, 0.005  # of Adam: for embeddings of tokens, of ids, and for the layers
BETAS, EPSILON = (0.9, 0.999), 1e-8
TEMPERATURE = 0.2
HIDDEN = 0.2  # share of ids that are hidden in a step
SCALE = 0.1  # standard deviation of the embeddings of tokens at the start; those of ids begin at 0
MOST_IDS = 100_000  # that have an embedding of their own, on each side: the most frequent
LEAST = 2  # times that such an id was rewarded
MOST_WEIGHT = 10.0  # of an event, in means
POPULAR = 100


@dataclass(frozen=True)
class Examples:
    """P rewarded events over a catalogue of N items. An item that is gone from the catalogue follows it: N' ≥ N."""

    users: Array  # (P,) uint64 hashes; 0: nobody is named
    contexts: Bags  # P
    items: Array  # (P,) intp, rows of the N' items
    brought: Array  # (P,) float64 > 0
    ids: Array  # (N',) uint64 hashes of the items
    features: Bags  # N'
    catalogue: int  # N


def train(examples: Examples, *, seed: int) -> Towers:
    """Train towers. The same examples, seed and machine give the same, bit for bit.

    Raises:
        ValueError: there is no example.
        FloatingPointError: the weights left the finite numbers.
    """
    import torch

    if not len(examples.users):
        raise ValueError("there is nothing to train on")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # several would add sums up in any order
    try:
        towers = _train(examples, torch.Generator().manual_seed(seed))
    finally:
        torch.set_num_threads(threads)
    if not all(np.isfinite(array).all() for array in towers.state().values()):
        raise FloatingPointError("the weights left the finite numbers")
    return towers


def _train(examples: Examples, generator: torch.Generator) -> Towers:
    import torch

    n, total = len(examples.users), len(examples.ids)
    count = np.bincount(examples.items, minlength=total)
    known_users, known_items = _frequent(examples.users), _frequent(examples.ids[examples.items])
    user = _Side(known_users, examples.users, examples.contexts, generator)
    item = _Side(known_items, examples.ids, examples.features, generator)
    batch = min(BATCH, n)
    # How often an item is expected in the sample, by its share of the events and by the draws.
    expected = batch * count / n
    expected[: examples.catalogue] += DRAWN / max(1, examples.catalogue)
    log_q = torch.from_numpy(np.log(expected).astype(np.float32))
    weight = torch.from_numpy(np.minimum(examples.brought / examples.brought.mean(), MOST_WEIGHT).astype(np.float32))
    of_event = torch.from_numpy(examples.items)

    steps = max(1, min(MOST_STEPS, EPOCHS * n // batch))
    order = torch.randperm(n, generator=generator)
    start = 0
    for step in range(steps):
        if start + batch > n:
            order, start = torch.randperm(n, generator=generator), 0
        events = order[start : start + batch]
        start += batch
        drawn = torch.randint(max(1, examples.catalogue), (DRAWN if examples.catalogue else 0,), generator=generator)
        items, place = torch.unique(torch.cat([of_event[events], drawn]), return_inverse=True)
        u = user.vectors(events, generator)
        v = item.vectors(items, generator)
        logits = u @ v.T / TEMPERATURE - log_q[items] + _copies(place, batch, len(items))
        loss = torch.nn.functional.cross_entropy(logits, place[:batch], reduction="none")
        torch.autograd.backward((weight[events] * loss).mean())
        for side in (user, item):
            side.learn(step, rate=1.0 - step / steps)
    worth = np.bincount(examples.items, examples.brought, minlength=total)
    best = np.argsort(-worth, kind="stable")[:POPULAR]
    return Towers(user.tower(), item.tower(), examples.ids[best[worth[best] > 0]])


def _copies(place: torch.Tensor, batch: int, items: int) -> torch.Tensor:
    """Return log of how often each different item is in the sample, (items,): it is computed once and counts often.

    An event's own item counts once for it: its other copies in the sample are no wrong answers. (batch, items)
    """
    import torch

    copies = torch.bincount(place, minlength=items).float().log().expand(batch, items).clone()
    copies[torch.arange(batch), place[:batch]] = 0.0
    return copies


def _frequent(hashes: Array) -> Array:
    """Return the ids that have an embedding of their own, ascending; 0 stands for nobody."""
    ids, counts = np.unique(hashes[hashes != 0], return_counts=True)
    often = np.flatnonzero(counts >= LEAST)
    most = often[np.argsort(-counts[often], kind="stable")[:MOST_IDS]]
    found: Array = ids[np.sort(most)]
    return found


class _Adam:
    """Weights that Adam changes (Kingma and Ba 2015), of a table only the rows that a step uses.

    torch.optim does the same, but to import it takes longer than most trainings.
    """

    def __init__(self, weights: torch.Tensor, rate: float) -> None:
        import torch

        self.weights, self._rate = weights, rate
        self._mean, self._square = torch.zeros_like(weights), torch.zeros_like(weights)
        self._at: Any = slice(None)
        self._used: torch.Tensor

    def use(self, at: Any = slice(None)) -> torch.Tensor:
        """Return these rows, different ones, to compute with."""
        self._at, self._used = at, self.weights[at].clone().requires_grad_()
        return self._used

    def learn(self, step: int, rate: float) -> None:
        """Change the rows that were used by their gradient; `step` counts from 0."""
        gradient, at = self._used.grad, self._at
        assert gradient is not None
        self._mean[at] = mean = BETAS[0] * self._mean[at] + (1 - BETAS[0]) * gradient
        self._square[at] = square = BETAS[1] * self._square[at] + (1 - BETAS[1]) * gradient**2
        size = rate * self._rate / (1 - BETAS[0] ** (step + 1))
        self.weights[at] -= size * mean / ((square / (1 - BETAS[1] ** (step + 1))).sqrt() + EPSILON)


class _Side:
    """One tower while it is trained, over all its users or items."""

    def __init__(self, known: Array, ids: Array, bags: Bags, generator: torch.Generator) -> None:
        import torch

        def drawn(*shape: int) -> torch.Tensor:
            return SCALE * torch.randn(shape, generator=generator)

        self._known, self._bags = known, bags
        self._of_ids = _Adam(torch.zeros((len(known) + 1, SIZE)), ID_RATE)
        self._of_tokens = _Adam(drawn(COLUMNS, SIZE), RATE)
        self._layer = _Adam(drawn(SIZE, SIZE), LAYER_RATE), _Adam(drawn(SIZE), LAYER_RATE)
        at = np.searchsorted(known, ids)
        found = (known[np.minimum(at, len(known) - 1)] == ids) if len(known) else np.zeros(len(ids), dtype=np.bool_)
        self._rows = torch.from_numpy(np.where(found, at, len(known)))

    def vectors(self, at: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Return the vectors of these users or items, with some ids hidden."""
        import torch

        unknown = len(self._known)
        rows = torch.where(torch.rand(len(at), generator=generator) < HIDDEN, unknown, self._rows[at])
        used, rows = torch.unique(torch.cat([rows, torch.tensor([unknown])]), return_inverse=True)
        bags = self._bags.take(at.numpy())
        columns, place = np.unique(bags.columns, return_inverse=True)
        return forward(
            rows[:-1],
            replace(bags, columns=place),
            self._of_ids.use(used),
            self._of_tokens.use(torch.from_numpy(columns.astype(np.int64))),
            *(one.use() for one in self._layer),
        )

    def learn(self, step: int, rate: float) -> None:
        """Learn from the gradient of the vectors that were asked for last."""
        for one in (self._of_ids, self._of_tokens, *self._layer):
            one.learn(step, rate)

    def tower(self) -> Tower:
        arrays = (self._of_ids.weights[:-1], self._of_tokens.weights, *(one.weights for one in self._layer))
        return Tower(self._known, *(one.numpy().copy() for one in arrays))


def forward(
    rows: torch.Tensor,
    bags: Bags,
    of_ids: torch.Tensor,
    of_tokens: torch.Tensor,
    weights: torch.Tensor,
    bias: torch.Tensor,
) -> torch.Tensor:
    """Compute vectors (n, e) of length 1; the last row of `of_ids` stands for unknown ids, and counts as 0."""
    import torch
    from torch.nn.functional import embedding, embedding_bag

    known = (rows < len(of_ids) - 1).float()[:, None]
    tokens = embedding_bag(
        torch.from_numpy(bags.columns.astype(np.int64)),
        of_tokens,
        torch.from_numpy(bags.starts[:-1].astype(np.int64)),
        per_sample_weights=torch.from_numpy(bags.weights),
        mode="sum",
    )
    s = known * embedding(rows, of_ids) + tokens
    z = s + torch.tanh(s @ weights + bias)
    return torch.nn.functional.normalize(z, dim=1, eps=1e-6)


def examples_of(
    events: Sequence[tuple[str | None, Mapping[str, Any], str, float, Mapping[str, Any] | None]],
    catalogue: Mapping[str, Mapping[str, Any]],
) -> Examples:
    """Make examples of events.

    Args:
        events: user, context, item, what it brought, the item's features as shown; None: those of the catalogue.
        catalogue: item -> features.
    """
    rows = {item: row for row, item in enumerate(catalogue)}
    features = list(catalogue.values())
    for _, _, item, _, shown in events:
        if item not in rows:
            rows[item] = len(features)
            features.append(shown or {})
    known = [user is not None for user, *_ in events]
    users = np.where(known, hashes_of(user or "" for user, *_ in events), np.uint64(0))
    return Examples(
        users,
        bags_of((context for _, context, *_ in events), "context"),
        np.array([rows[item] for _, _, item, *_ in events], dtype=np.intp),
        np.array([brought for *_, brought, _ in events]),
        hashes_of(rows),
        bags_of(features, "item"),
        len(catalogue),
    )
