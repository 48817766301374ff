"""Why did it show that? The score of each candidate as a sum over fields and pairs of fields.

A score that is linear in the row is taken apart exactly: score = bias + Σ parts + item + user. Of any other score the
parts are Shapley values of the request's fields (`shapley.py`), and add up just the same, but are estimates: each has
its standard error.

Long work is a generator that stops for breath, so that whoever runs it can see to other things, or give it up.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from service.decide.active import ActiveLoop, ServedPolicy
from service.decide.decision import Request, weigh
from service.decide.shapley import Logged, Sample, Ways
from service.policies import Array, Candidates, LinearScore
from service.represent.json_paths import ITEM_ID
from service.represent.parts import CONSTANT, Pair, Parts
from service.represent.stored import AnyEncoder

MOST = 50  # candidates that are explained
MOST_SAMPLED = 3  # of these where the score is not linear: each takes thousands of scores
ROWS = 32  # that are scored without a stop for breath: a few milliseconds
FEWEST_LOGGED = 4  # requests to compare with: fewer have no standard error
MOST_PARTS = 60  # of a candidate; the smallest beyond are added up as one part of no field

T = TypeVar("T")
Steps = Generator[None, None, T]


class NotLinear(ValueError):
    """A score can be explained by comparison with logged requests alone, and there are none."""


@dataclass(frozen=True, slots=True)
class Part:
    """What a context field, an item field, or the two together add to a score; of no field: all that is not listed."""

    context: str | None
    item: str | None
    value: float
    error: float | None = None  # standard error; None: it is exact

    @property
    def fields(self) -> list[str]:
        """The names, the context's first."""
        return [name for name in (self.context, self.item) if name is not None]


@dataclass(frozen=True, slots=True)
class Explained:
    """One candidate. `score` is bias + Σ parts + item + user."""

    id: str
    score: float  # before exploration: a reward, or a logit
    bias: float
    parts: Sequence[Part]  # the largest first
    item: float
    user: float
    sd: float | None  # how unsure the policy is of the score; None: it does not say
    expected: float  # the score as a reward
    reply_score: float  # as a reply shows it: of some kinds it holds what exploration adds
    propensity: float  # of being drawn for the first place
    rules: Sequence[str]  # those that concern it
    error: float | None = None  # standard error of `item` and `user`, the larger; None: they are exact


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why the candidates of a request stand as they do."""

    n: int  # candidates
    scale: str  # of scores, parts and sd: `reward` or `logit`
    width: float | None  # how many sd the policy adds to explore, on average; None: it explores in another way
    exact: bool  # whether the parts are exact, and not estimates
    background: Sequence[str]  # decisions of the log with which estimates compare
    candidates: Sequence[Explained]  # those of `first`, then the likeliest


def explained(
    request: Request,
    active: ActiveLoop,
    served: ServedPolicy,
    *,
    first: Sequence[str] = (),
    background: Sequence[Logged] = (),
    most_sampled: int = MOST_SAMPLED,
) -> Steps[Explanation]:
    """Explain the likeliest candidates of a request.

    Args:
        request: with the candidates that the funnel found (`narrowed`).
        first: items to be explained before all others.
        background: logged requests to compare with, for scores that are not linear.
        most_sampled: candidates that are explained so.

    Raises:
        NoCandidates: nothing is eligible.
        NotLinear: so the score is, and fewer than 4 requests are given to compare it with.
    """
    encoder = served.encoder or active.encoder
    ids, rows, ranked, p, stage = weigh(request, active, served)
    yield
    places = {item: place for place, item in enumerate(first)}
    scores = np.array([ranked.score(row) for row in range(len(ids))])
    order = np.lexsort((-scores, -p, np.array([places.get(item, len(first)) for item in ids])))[:MOST]
    chosen = [ids[row] for row in order.tolist()]
    features = active.catalogue.shown(request.candidates, chosen)
    candidates = Candidates(rows.dense(order)[:, : served.columns], chosen, request.user_id)
    low, high = encoder.reward_range or active.settings.reward_range
    linear = served.scorer.explain(candidates)
    if linear is not None:
        parts = encoder.parts(request.context, features, chosen)
        yield
        taken = [taken_apart(parts, linear, row) for row in range(len(chosen))]
    elif len(background) >= FEWEST_LOGGED:
        chosen = chosen[:most_sampled]
        taken = yield from _sampled(request, encoder, served, chosen, features, background)
    else:
        raise NotLinear("the score is not linear, and there is nothing to compare it with")
    is_logit = linear is not None and linear.is_logit
    unit, zero = (1.0, 0.0) if is_logit else (high - low, low)
    found = []
    for row, (item, sums) in enumerate(zip(chosen, taken, strict=True)):
        score = zero + unit * sums.score
        found.append(
            Explained(
                id=item,
                score=score,
                bias=zero + unit * sums.bias,
                parts=largest([Part(*pair, unit * value, _times(unit, error)) for pair, value, error in sums.parts]),
                item=unit * sums.item,
                user=unit * sums.user,
                sd=None if linear is None or linear.sd is None else unit * float(linear.sd[row]),
                expected=low + (high - low) / (1.0 + float(np.exp(-score))) if is_logit else score,
                reply_score=low + (high - low) * ranked.score(int(order[row])),
                propensity=float(p[order[row]]),
                rules=() if stage is None else stage.said(int(order[row])),
                error=_times(unit, sums.error),
            )
        )
    return Explanation(
        n=len(ids),
        scale="logit" if is_logit else "reward",
        width=None if linear is None else linear.width,
        exact=linear is not None,
        background=() if linear is not None else tuple(one.decision_id for one in background),
        candidates=tuple(found),
    )


@dataclass(frozen=True, slots=True)
class Sums:
    """A score taken apart, as a share of the reward range or a logit."""

    score: float
    bias: float
    parts: Sequence[tuple[Pair, float, float | None]]
    item: float
    user: float
    error: float | None = None


def taken_apart(parts: Parts, linear: LinearScore, row: int) -> Sums:
    """Take one candidate's score apart; what its id alone adds is the item's own."""
    weights = np.broadcast_to(linear.weights, (len(parts.x), linear.weights.shape[-1]))[row]
    values = parts.of(row, weights)
    own, user = float(linear.item[row]), 0.0 if linear.user is None else float(linear.user[row])
    bias = linear.bias
    if linear.by_item:
        own += values.pop(CONSTANT, 0.0)
    else:
        bias += values.pop(CONSTANT, 0.0)
    own += values.pop(Pair(None, ITEM_ID), 0.0)
    product = float(parts.x[row, : len(weights)] @ weights)
    score = linear.bias + product + float(linear.item[row]) + user
    return Sums(score, bias, [(pair, value, None) for pair, value in values.items()], own, user)


def largest(parts: Sequence[Part]) -> list[Part]:
    """Order parts by their size, without those that are 0; the smallest beyond `MOST_PARTS` are added up."""
    found = sorted((part for part in parts if part.value), key=lambda part: -abs(part.value))
    if len(found) <= MOST_PARTS:
        return found
    kept, rest = found[: MOST_PARTS - 1], found[MOST_PARTS - 1 :]
    errors = [part.error for part in rest if part.error is not None]
    return [*kept, Part(None, None, sum(part.value for part in rest), sum(errors) if errors else None)]


def _times(unit: float, error: float | None) -> float | None:
    return None if error is None else unit * error


def _sampled(
    request: Request,
    encoder: AnyEncoder,
    served: ServedPolicy,
    ids: Sequence[str],
    features: Sequence[Mapping[str, Any]],
    background: Sequence[Logged],
) -> Steps[list[Sums]]:
    """Estimate the Shapley values of each candidate's fields, along the same ways for all."""
    found = []
    for item, its in zip(ids, features, strict=False):
        asked = Logged(request.decision_id, item, request.user_id, request.context, its)
        way = Ways(background, asked)
        scores = np.empty(len(way))
        for some in range(0, len(way), ROWS):
            steps = way.steps(some, some + ROWS)
            scores[some : some + ROWS] = scored(encoder, served, steps)
            yield
        found.append(_sums(way.values(scores)))
    return found


def scored(encoder: AnyEncoder, served: ServedPolicy, requests: Sequence[Logged]) -> Array:
    """Return the score (B,) of each request's item, as the reply shows it."""
    x = encoder.pairs(
        [one.context for one in requests], [one.features for one in requests], [one.item for one in requests]
    )
    x = x[:, : served.columns]
    scores = np.empty(len(requests))
    users = [one.user for one in requests]
    for user in dict.fromkeys(users):
        at = [row for row, other in enumerate(users) if other == user]
        ids = [requests[row].item for row in at]
        scores[at] = served.scorer.estimate(Candidates(x[at], ids, user))[:, 0]
    return scores


def _sums(sample: Sample) -> Sums:
    parts = [(Pair(*field), value, error) for field, (value, error) in sample.fields.items()]
    (item, item_error), (user, user_error) = sample.item, sample.user
    return Sums(sample.score, sample.bias, parts, item, user, max(item_error, user_error))
