"""Fits a learned schema to a log: which fields there are, and how much each pair of them matters.

The fields come from the values that were seen (`seen.py`), the variances of the blocks from the rewards
(`evidence.py`): noise shrinks to nothing within some hundred events, and what matters grows.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from service.represent.evidence import Layer, estimate, interaction, most_telling
from service.represent.json_paths import ITEM_ID
from service.represent.learned import Block, Columns, LearnedSchema, Levels
from service.represent.profile import Profile
from service.represent.seen import fields_of

Array = NDArray[Any]
Pair: TypeAlias = tuple[str | None, str | None]  # a context field and an item field; None: the constant

MAX_FITTED = 360  # columns of all blocks in the fit
MAX_SERVED = 224  # columns of the blocks in the schema
MAX_OF_ITEM, MAX_OF_USER = 28, 24  # columns of the effects of one's own
MAX_NUMBERS = 2_000_000  # of all items' covariances
MAX_OF_FEW, NUMBERS_OF_FEW = 64, 100_000  # the same where few items have nothing but effects of their own
SMALLEST_SHARE = 0.003  # of the prior variance of a logit, for a block to be served
IDS_SHOWN = 16  # items that have a column of their own in the users' effects
PATIENCE = 60  # events of the rarer outcome before variances leave their defaults


WINDOW = 12_000  # newest events that a fit looks at


class Raw(NamedTuple):
    """One record of the log, as the client sent it, with its reward."""

    context: Mapping[str, Any]
    item: str
    features: Mapping[str, Any]
    user: str | None
    reward: float


@dataclass(frozen=True)
class Fitted:
    """What a fit found: the schema, and for people the paths that were left out, each with its reason."""

    schema: LearnedSchema
    left_out: Mapping[str, str]


class _Side:
    """One side's fields, and their columns in N records."""

    def __init__(
        self, columns: Columns, records: Sequence[Mapping[str, Any]], items: Sequence[str] | None = None
    ) -> None:
        every = columns.encode_all(records, np.zeros((len(records), columns.size)), items)
        self.fields = columns.fields
        self.of = {name: every[:, at] for name, at in columns.at.items()}  # field, None for the constant -> (N, width)

    def limited(self, room: int) -> list[str]:
        """Return the names of the fields whose columns fit into so much room, in order."""
        kept = []
        for name in self.fields:
            width = self.of[name].shape[1]
            if width <= room:
                room -= width
                kept.append(name)
        return kept


def fit(records: Sequence[Raw], profile: Profile, former: LearnedSchema | None = None) -> Fitted:
    """Fit a schema to N records, oldest first.

    Args:
        profile: of these records, or of a log that ends with them.
        former: the schema before; the search for the variances begins at its.
    """
    ids = [record.item for record in records]
    of_context, out = fields_of(profile, "context", [record.context for record in records])
    of_item, item_out = fields_of(profile, "item", [record.features for record in records])
    featureless = not of_item
    shown = [item for item, _ in Counter(ids).most_common(IDS_SHOWN)]
    of_item[ITEM_ID] = Levels(path=ITEM_ID, levels=sorted(shown))
    context = _Side(Columns("context", of_context), [record.context for record in records])
    item = _Side(Columns("item", of_item), [record.features for record in records], ids)

    reward, reward_range = _standardised(np.array([record.reward for record in records]))
    rate = min(max(float(reward.mean()), 0.005), 0.995)
    follow = (4.0 * rate * (1.0 - rate)) ** -0.5  # effects on the logit of a rare reward are larger
    pairs = _pairs(context, item, reward, follow)
    shared = Layer([_products(context.of[f], item.of[g]) for f, g in pairs], list(pairs.values()))

    n_context, n_item = max(1, len(context.fields)), max(1, len(item.fields) - 1)
    room = _room_of_item(len(set(ids)), featureless)
    own: list[str | None] = [None, *_telling(context, item.of[ITEM_ID], reward, room - 1)]
    intercept, others = (0.8, 0.6) if featureless else (0.15 * follow, 0.05 * follow)
    defaults = [intercept, *(others / math.sqrt(n_context) for _ in own[1:])]
    of_items = Layer([context.of[name] for name in own], defaults, ids)

    taste: list[str | None] = [None, *item.limited(MAX_OF_USER - 1)]
    defaults = [0.02, *(0.03 / math.sqrt(n_item) for _ in taste[1:])]
    users = [("", at) if record.user is None else record.user for at, record in enumerate(records)]
    of_users = Layer([item.of[name] for name in taste], defaults, users)

    weigh = min(float(reward.sum()), float((1.0 - reward).sum())) >= PATIENCE
    if weigh and former is not None:
        before = {(block.context, block.item): block.variance for block in former.blocks}
        shared.variance = np.array([before.get(pair, 0.3 * default) for pair, default in pairs.items()])
    at_first = float(of_items.contribution().sum())
    estimate([shared, of_items, of_users], reward, weigh=weigh)
    if featureless:  # a log shows little of the items that were given up, and says too soon that all are alike
        of_items.variance *= max(1.0, at_first / float(of_items.contribution().sum()))

    blocks = _worth_serving(list(pairs), shared)
    own_of_items = _worth_keeping([(name, None) for name in own], of_items)
    own_of_users = _worth_keeping([(None, name) for name in taste], of_users)
    used = [*blocks, *own_of_items, *own_of_users]
    schema = LearnedSchema(
        context={name: field for name, field in of_context.items() if name in {block.context for block in used}},
        item={name: field for name, field in of_item.items() if name in {block.item for block in used}},
        blocks=blocks,
        own_of_items=own_of_items,
        own_of_users=own_of_users,
        reward_range=reward_range,
    )
    left_out = {f"context.{path}": why for path, why in out.items()} | {
        f"item.{path}": why for path, why in item_out.items()
    }
    return Fitted(schema, left_out)


def _standardised(reward: Array) -> tuple[Array, tuple[float, float] | None]:
    """Return the rewards as shares of what was seen of their range (N,), and that range; 0 belongs to it."""
    low, high = np.quantile(reward, (0.002, 0.998)).tolist()
    low, high = min(low, 0.0), max(high, 0.0)
    if not high - low > 1e-9:
        return reward.clip(0.0, 1.0), None
    shares: Array = ((reward - low) / (high - low)).clip(0.0, 1.0)
    return shares, (low, high)


def _products(c: Array, z: Array) -> Array:
    """Return all products of the columns of two fields: (N, ·)."""
    products: Array = (c[:, :, None] * z[:, None, :]).reshape(len(c), -1)
    return products


def _pairs(context: _Side, item: _Side, reward: Array, follow: float) -> dict[Pair, float]:
    """Choose the blocks to fit, each with its default variance: all, or those that tell most."""
    names_c, names_z = list(context.fields), [name for name in item.fields if name != ITEM_ID]
    n_c, n_z = max(1, len(names_c)), max(1, len(names_z))
    mains: dict[Pair, float] = {(name, None): 0.3 * follow / n_c for name in names_c}
    mains |= {(None, name): 0.5 * follow / n_z for name in names_z}
    both: dict[Pair, float] = {(f, g): 0.6 * follow / math.sqrt(n_c * n_z) for f in names_c for g in names_z}

    def limited(pairs: dict[Pair, float], room: int) -> dict[Pair, float]:
        widths = {(f, g): context.of[f].shape[1] * item.of[g].shape[1] for f, g in pairs}
        if sum(widths.values()) <= room:
            return pairs
        scores = {(f, g): interaction(context.of[f], item.of[g], reward) for f, g in pairs}
        kept = most_telling(scores, widths, room)
        return {pair: default for pair, default in pairs.items() if pair in kept}

    chosen: dict[Pair, float] = {(None, None): 4.0} | limited(mains, MAX_FITTED // 2)
    fitted = sum(context.of[f].shape[1] * item.of[g].shape[1] for f, g in chosen)
    return chosen | limited(both, MAX_FITTED - fitted)


def _room_of_item(items: int, featureless: bool) -> int:
    """Return how many columns the effects of each item's own may have."""
    room = min(MAX_OF_ITEM, int(math.sqrt(MAX_NUMBERS / items)))
    return max(room, min(MAX_OF_FEW, int(math.sqrt(NUMBERS_OF_FEW / items)))) if featureless else room


def _telling(side: _Side, ids: Array, reward: Array, room: int) -> list[str]:
    """Choose the fields for the items' own effects: all, or those that tell most of what suits which item.

    Args:
        ids: columns (N, ·) of the items that were shown most.
        room: columns.
    """
    widths: dict[Pair, int] = {(name, None): side.of[name].shape[1] for name in side.fields}
    if sum(widths.values()) <= room:
        return list(side.fields)
    kept = most_telling({(f, None): interaction(side.of[f], ids, reward) for f in side.fields}, widths, room)
    return [name for name in side.fields if (name, None) in kept]


def _worth_serving(pairs: Sequence[Pair], layer: Layer) -> list[Block]:
    """Return the bias, and the blocks that contribute most, as many as there is room for."""
    contribution, columns = layer.contribution(), np.bincount(layer.group).tolist()
    least, room = SMALLEST_SHARE * float(contribution[1:].sum()), MAX_SERVED
    kept = {0}
    for at in (1 + np.argsort(-contribution[1:], kind="stable")).tolist():
        if contribution[at] >= least and columns[at] <= room:
            kept.add(at)
            room -= columns[at]
    return [Block(context=pairs[at][0], item=pairs[at][1], variance=float(layer.variance[at])) for at in sorted(kept)]


def _worth_keeping(pairs: Sequence[Pair], layer: Layer) -> list[Block]:
    """Return the constant, and the fields that add something to the effects of one's own."""
    return [
        Block(context=f, item=g, variance=float(v))
        for (f, g), v, contribution in zip(pairs, layer.variance, layer.contribution(), strict=True)
        if (f, g) == (None, None) or contribution >= SMALLEST_SHARE
    ]
