"""Which fields does a policy predict by? How much worse it predicts held-out events when a field's values are mixed up.

The policy learns the log in blocks. Before it learns a block, it predicts it (progressive validation): as it is, and
with a field's values permuted among the block's events (Breiman 2001, "Random forests", section 10). The loss that the
permutation adds is the field's importance. Of a field that tells nothing it is 0 on average, whatever the policy makes
of it, for with other values of it the events would look the same.

A pair's importance is what the two do together, beyond each by itself:

    loss(context field permuted) + loss(item field permuted) - loss(both permuted) - loss.

It is 0 on average where the prediction is a sum of a function of the one and a function of the other (Friedman &
Popescu 2008, "Predictive learning via rule ensembles", section 8.1, put that to use).

Letters: **B** events of a block, **F** fields and pairs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np

from service.evaluate.intervals import Interval
from service.policies import Array, Arrays, Batch, Candidates, Policy, Scorer
from service.policies.base import sigmoid
from service.represent.parts import Pair
from service.represent.stored import AnyEncoder

BLOCK = 100  # events that are predicted before they are learned
HELD_OUT = 0.75  # share of the events that are predicted: the newest; a policy predicts by nothing at first
MOST_FIELDS = 20  # of each side: those with values in most events
SEED = 20_260_102


class Observed(NamedTuple):
    """An event, as it was asked and shown."""

    context: Mapping[str, Any]
    features: Mapping[str, Any]  # of the item
    item: str
    user: str | None
    reward: float  # as a share of the reward range
    propensity: float  # nan: not known


@dataclass(frozen=True, slots=True)
class Importance:
    """What permuting a field, or the two of a pair, adds to the mean squared error of the expected reward."""

    pair: Pair
    loss: Interval


@dataclass(frozen=True, slots=True)
class Findings:
    """The importance of each field and pair, the most important first."""

    held_out: int  # events that were predicted
    loss: float  # mean squared error of the expected reward, as a share of the reward range
    confidence: float  # of each interval, so that all hold together
    found: Sequence[Importance]


def fields_of(events: Sequence[Observed]) -> list[Pair]:
    """Return the fields of both sides that most events have, then all pairs of one of each."""
    context = _most(event.context for event in events)
    item = _most(event.features for event in events)
    return [
        *(Pair(name, None) for name in context),
        *(Pair(None, name) for name in item),
        *(Pair(one, other) for one in context for other in item),
    ]


def _most(objects: Iterable[Mapping[str, Any]]) -> list[str]:
    counts: dict[str, int] = {}
    for one in objects:
        for name in one:
            counts[name] = counts.get(name, 0) + 1
    return sorted(sorted(counts, key=lambda name: (-counts[name], name))[:MOST_FIELDS])


def importance(
    policy: Policy[Any],
    scorer_of: Callable[[Arrays], Scorer],
    encoder: AnyEncoder,
    events: Sequence[Observed],
    *,
    confidence: float,
) -> Generator[int, None, Findings]:
    """Find what a policy predicts by, as it learns events; yield how many it has learned.

    Args:
        policy: has learned nothing, and learns from every event.
        scorer_of: makes its serving half from a snapshot.
        encoder: of its rows.
        confidence: that all intervals hold at once (Bonferroni).

    Raises:
        ValueError: the events are too few for an interval.
    """
    pairs, rng = fields_of(events), np.random.default_rng(SEED)
    first = len(events) - round(HELD_OUT * len(events))
    losses: list[Array] = []  # (B,) of each block as it is
    added: list[Array] = []  # (B, F)
    for start in range(0, len(events), BLOCK):
        block = events[start : start + BLOCK]
        if start >= first and len(block) > 1:
            scorer = None if policy.comparable else scorer_of(policy.snapshot())
            loss, more = _losses(policy, scorer, encoder, block, pairs, rng)
            losses.append(loss)
            added.append(more)
        policy.update(_batch(policy, encoder, block))
        yield start + len(block)
    if not losses:
        raise ValueError("too few events")
    all_added = np.concatenate(added)
    each = 1 - (1 - confidence) / max(1, len(pairs))
    half = NormalDist().inv_cdf((1 + each) / 2) * all_added.std(axis=0, ddof=1) / math.sqrt(len(all_added))
    mean = all_added.mean(axis=0)
    found = [
        Importance(pair, Interval(float(m), float(m - h), float(m + h)))
        for pair, m, h in zip(pairs, mean, half, strict=True)
    ]
    found.sort(key=lambda one: -one.loss.estimate)
    return Findings(len(all_added), float(np.concatenate(losses).mean()), each, found)


def _losses(
    policy: Policy[Any],
    scorer: Scorer | None,
    encoder: AnyEncoder,
    block: Sequence[Observed],
    pairs: Sequence[Pair],
    rng: np.random.Generator,
) -> tuple[Array, Array]:
    """Return the squared errors (B,) of a block, and what each field and pair adds to them when permuted (B, F)."""
    reward = np.array([event.reward for event in block])

    def loss(permuted: Sequence[Observed]) -> Array:
        errors: Array = (_expected(policy, scorer, _batch(policy, encoder, permuted)) - reward) ** 2
        return errors

    base = loss(block)
    # Every event gets another's values: a shift of a random order leaves none where it was.
    order = {pair: _others(len(block), rng) for pair in pairs if None in pair}
    alone = {pair: loss(_permuted(block, pair, order[pair])) - base for pair in order}
    added = np.empty((len(block), len(pairs)))
    for at, pair in enumerate(pairs):
        if pair in alone:
            added[:, at] = alone[pair]
            continue
        one, other = Pair(pair.context, None), Pair(None, pair.item)
        both = _permuted(_permuted(block, one, order[one]), other, order[other])
        added[:, at] = alone[one] + alone[other] - (loss(both) - base)
    return base, added


def _others(n: int, rng: np.random.Generator) -> Array:
    shuffled = rng.permutation(n)
    found = np.empty(n, dtype=np.intp)
    found[shuffled] = np.roll(shuffled, 1)
    return found


def _permuted(block: Sequence[Observed], field: Pair, order: Array) -> list[Observed]:
    """Return events in which a field of one side has the value that it has in the event at `order`."""
    found = []
    for event, donor in zip(block, order.tolist(), strict=True):
        if field.context is not None:
            found.append(event._replace(context=_with(event.context, block[donor].context, field.context)))
        else:
            assert field.item is not None
            found.append(event._replace(features=_with(event.features, block[donor].features, field.item)))
    return found


def _with(one: Mapping[str, Any], donor: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    changed = {**one, name: donor.get(name)}
    if name not in donor:
        del changed[name]
    return changed


def _batch(policy: Policy[Any], encoder: AnyEncoder, events: Sequence[Observed]) -> Batch:
    ids = [event.item for event in events]
    x = encoder.pairs([event.context for event in events], [event.features for event in events], ids)
    return Batch(
        x=x[:, : policy.d],
        item=ids,
        user=[event.user for event in events],
        reward=np.array([event.reward for event in events]),
        propensity=np.array([event.propensity for event in events]),
    )


def _expected(policy: Policy[Any], scorer: Scorer | None, batch: Batch) -> Array:
    """Return the expected reward (B,) of each event, before exploration where the kind tells it."""
    if scorer is None:
        return policy.expected(batch)
    found = np.empty(len(batch.item))
    for user in dict.fromkeys(batch.user):
        at = [row for row, other in enumerate(batch.user) if other == user]
        candidates = Candidates(batch.x[at], [batch.item[row] for row in at], user)
        linear = scorer.explain(candidates)
        if linear is None:
            found[at] = scorer.estimate(candidates)[:, 0]
            continue
        weights = np.broadcast_to(linear.weights, (len(at), linear.weights.shape[-1]))
        score = np.vecdot(candidates.x[:, : weights.shape[1]].astype(np.float64), weights) + linear.item + linear.bias
        if linear.user is not None:
            score = score + linear.user
        found[at] = sigmoid(score) if linear.is_logit else score
    return found
