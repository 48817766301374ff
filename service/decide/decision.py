"""One decision: funnel → candidates → rows → pmf → floor → draw.

Pure: equal inputs give equal decisions, bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import NamedTuple

import numpy as np

from service.decide.active import ActiveLoop, ServedPolicy
from service.decide.stage import Stage, key_of, passing
from service.errors import NoCandidates
from service.layout import Rows
from service.policies import Array, Ranked
from service.records import Assignment, Decision, Features, Removed, Retrieved, Seen, SlateItem
from service.represent.misfits import Misfits
from service.represent.stored import AnyEncoder, Block
from service.retrieve.retriever import Origin, Retriever
from service.retrieve.source import Query
from service.rules import NO_RULES, Rules


@dataclass(frozen=True, slots=True)
class Request:
    """What a client asks, validated."""

    decision_id: str
    user_id: str | None
    context: Features
    candidates: Sequence[tuple[str, Features | None]] | None  # None: the loop's catalogue
    exclude: Sequence[str]
    k: int
    rules: Rules = NO_RULES  # of the loop and of the request
    retrieved: Retrieved | None = None  # what the funnel found; None: it is to be asked, if there is one
    seen: Seen | None = None  # what the user's state in `context` was made from; None: it was not read
    removed: Removed | None = None  # candidates that limits allow no more
    attempt: int = 0  # decisions before this one that met a limit when they were to be stored

    @property
    def left_out(self) -> Sequence[str]:
        """Items that are no candidates, though the request or the catalogue may name them."""
        return self.exclude if self.removed is None else (*self.exclude, *self.removed.items)


class Pick(NamedTuple):
    """One place of the slate."""

    row: int  # of the n candidates
    score: float
    propensity: float  # of being drawn for this place, given the places before it
    of: int  # candidates for this place


def seed_of(loop: str, decision_id: str, attempt: int = 0) -> str:
    """Return the decision's seed, 16 hexadecimal digits.

    Another attempt has another seed. By the same one, the item that a limit took would always have the same
    successor, whatever its propensity.
    """
    text = f"{loop}\0{decision_id}\0{attempt}" if attempt else f"{loop}\0{decision_id}"
    return blake2b(text.encode(), digest_size=8).hexdigest()


def uniform(seed: str, draw: int) -> float:
    """Return the decision's `draw`-th uniform number in [0, 1); needs no generator whose stream could change."""
    digest = blake2b(f"{seed}:{draw}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) * 2.0**-53


def with_floor(pmf: Array, floor: float) -> Array:
    """Mix the exploration floor into a pmf (n,): (1 - floor) pmf + floor / n."""
    p: Array = (1.0 - floor) * pmf
    p += floor / len(p)
    return p


def draw_slate(ranked: Ranked, *, k: int, floor: float, seed: str, stage: Stage | None = None) -> list[Pick]:
    """Draw min(k, n) places one by one without replacement, each from the policy's pmf over what is left.

    Rules may leave fewer places, or none.

    The floor is mixed in first, p = (1 - floor) * pmf + floor / n, and the draw is made from that very p: the
    propensity is what the draw was made from, not an estimate of it.
    """
    left: Array | None = None  # all
    slate: list[Pick] = []
    for place in range(min(k, len(ranked))):
        if stage is not None:
            left = stage.left(place, [pick.row for pick in slate])
            if not len(left):
                break
            pmf = stage.weighed(ranked.pmf(left), left)
        else:
            if place > 0:
                left = np.arange(len(ranked)) if left is None else left
                left = left[left != slate[-1].row]
            pmf = ranked.pmf(left)
        p = with_floor(pmf, floor)
        cdf = p.cumsum()
        at = int(cdf.searchsorted(uniform(seed, place) * cdf[-1], side="right"))
        row = at if left is None else int(left[at])
        slate.append(Pick(row, ranked.score(row), float(p[at]), len(p)))
    return slate


def decide(
    request: Request,
    active: ActiveLoop,
    *,
    at: float,
    served: ServedPolicy | None = None,
    experiment: Assignment | None = None,
    misfits: Misfits | None = None,
) -> tuple[Decision, Array]:
    """Decide on one request.

    Args:
        at: the time of the decision, in unix seconds.
        served: the policy to use (for replays). By default the experiment that runs, or else the traffic split,
            chooses it by the user, or by the decision where there is no user.
        experiment: where the decision fell then (for replays).
        misfits: counts the values that the encoder could not use.

    Returns:
        The decision, and the rows (k, d) float32 of the items of its slate.

    Raises:
        NoCandidates: nothing is eligible.
    """
    if served is None:
        served, experiment = active.assigned(request.user_id, request.decision_id, at=at, context=request.context)
    encoder = served.encoder or active.encoder
    if request.candidates is None and request.retrieved is None and active.retriever is not None:
        request = replace(request, retrieved=_retrieved(request, active, active.retriever, misfits))
    ids, block, stage = _eligible(request, active, encoder, misfits)
    rows = encoder.rows(request.context, block, misfits=misfits)  # (n, d)
    ranked, folded = served.rank(rows, ids, request.user_id)
    seed = seed_of(active.name, request.decision_id, request.attempt)
    floor = active.settings.exploration_floor
    slate = draw_slate(ranked, k=request.k, floor=floor, seed=seed, stage=stage)
    if not slate:
        raise NoCandidates("rules", "all that are left are pinned to later places; send a larger `k`, or pin fewer")
    low, high = encoder.reward_range or active.settings.reward_range  # policies see rewards as shares of it
    decision = Decision(
        decision_id=request.decision_id,
        loop=active.name,
        at=at,
        user_id=request.user_id,
        context=request.context,
        candidates=request.candidates,
        exclude=request.exclude,
        catalogue=active.catalogue.version,
        n=len(ids),
        k=request.k,
        policy=served.policy,
        version=served.version,
        encoder=encoder.version,
        exploration_floor=floor,
        seed=seed,
        items=tuple(SlateItem(ids[pick.row], low + pick.score * (high - low), pick.propensity) for pick in slate),
        rules=request.rules.as_json if request.rules else None,
        left=tuple(pick.of for pick in slate) if request.rules else None,
        folded=folded,
        experiment=experiment,
        retrieved=request.retrieved,
        seen=request.seen,
        removed=request.removed,
        attempt=request.attempt,
    )
    return decision, rows.dense(np.array([pick.row for pick in slate]))


@dataclass(frozen=True, slots=True)
class Chance:
    """What the first place of a slate held for one candidate."""

    id: str
    score: float  # in units of the reward
    propensity: float  # of being drawn for the first place
    rules: tuple[str, ...]  # those that changed its chance
    sources: Sequence[Origin] | None = None  # where the funnel had it from; None: no funnel narrowed the candidates


class Weighed(NamedTuple):
    """The n candidates of a request, and what the first place held for them."""

    ids: Sequence[str]
    rows: Rows  # (n, d)
    ranked: Ranked
    p: Array  # (n,) probability of being drawn for the first place; 0: the rules keep it from there
    stage: Stage | None


def weigh(request: Request, active: ActiveLoop, served: ServedPolicy) -> Weighed:
    """Weigh the candidates of a request for the first place, as `decide` does.

    Candidates that do not pass the filter are left out.

    Raises:
        NoCandidates: nothing is eligible.
    """
    encoder = served.encoder or active.encoder
    ids, block, stage = _eligible(request, active, encoder, None)
    rows = encoder.rows(request.context, block)
    ranked, _ = served.rank(rows, ids, request.user_id)
    left = np.arange(len(ids)) if stage is None else stage.left(0, [])
    p = np.zeros(len(ids))
    if len(left):
        pmf = ranked.pmf(None) if stage is None else stage.weighed(ranked.pmf(left), left)
        p[left] = with_floor(pmf, active.settings.exploration_floor)
    return Weighed(ids, rows, ranked, p, stage)


def chances(request: Request, active: ActiveLoop, served: ServedPolicy) -> list[Chance]:
    """Return every candidate's chance of the first place, the likeliest first, as `decide` weighs them.

    Candidates that do not pass the filter are left out.

    Raises:
        NoCandidates: nothing is eligible.
    """
    ids, _, ranked, p, stage = weigh(request, active, served)
    low, high = (served.encoder or active.encoder).reward_range or active.settings.reward_range
    origins = None if request.retrieved is None else _origins(request, active)
    return [
        Chance(
            ids[row],
            low + ranked.score(row) * (high - low),
            float(p[row]),
            () if stage is None else stage.said(row),
            None if origins is None else origins.get(ids[row], ()),
        )
        for row in np.argsort(-p, kind="stable").tolist()
    ]


def narrowed(request: Request, active: ActiveLoop) -> Request:
    """Return the request with the candidates that the funnel finds for it, if there is one and it is to be asked."""
    if request.candidates is None and request.retrieved is None and active.retriever is not None:
        return replace(request, retrieved=_retrieved(request, active, active.retriever, None))
    return request


def _query(request: Request, active: ActiveLoop) -> Query:
    last = () if request.seen is None else request.seen.items
    return Query(request.context, seed_of(active.name, request.decision_id), request.user_id, last)


def _rows_of(items: Iterable[str], active: ActiveLoop) -> list[int]:
    """Return the rows of those items that the catalogue has."""
    return [row for item in items if (row := active.catalogue.index.get(item)) is not None]


def _retrieved(request: Request, active: ActiveLoop, retriever: Retriever, misfits: Misfits | None) -> Retrieved:
    """Ask the funnel, among the items that meet the filter."""
    rows = _narrowed(retriever, request, active).retrieve(
        _query(request, active),
        exclude=_rows_of(request.left_out, active),
        pinned=_rows_of((pin.item for pin in request.rules.pin), active),
        misfits=misfits,
    )
    return Retrieved(retriever.version, rows, retriever.embedding)


def _narrowed(retriever: Retriever, request: Request, active: ActiveLoop) -> Retriever:
    """Return the funnel among the items that meet a request's filter.

    Raises:
        NoCandidates: none does; it names the condition that took the last.
    """
    if not request.rules.filter:
        return retriever

    def meeting() -> Array:
        traits = active.catalogue.whole.traits
        passing(request.rules, traits, None)
        return traits.meeting(request.rules.filter)

    return retriever.among(tuple(map(key_of, request.rules.filter)), meeting)


def _origins(request: Request, active: ActiveLoop) -> dict[str, list[Origin]] | None:
    """Return item -> where the funnel had it from; None where it would no longer find what it found."""
    retriever = active.retriever
    if retriever is None or _retrieved(request, active, retriever, None) != request.retrieved:
        return None
    found = _narrowed(retriever, request, active).origins(
        _query(request, active), exclude=_rows_of(request.left_out, active)
    )
    return {active.catalogue.ids[row]: origins for row, origins in found.items()}


def _eligible(
    request: Request, active: ActiveLoop, encoder: AnyEncoder, misfits: Misfits | None
) -> tuple[Sequence[str], Block, Stage | None]:
    """Return the candidates of a request, and the stage of its rules, if it has any.

    Raises:
        NoCandidates: nothing is eligible.
    """
    catalogue, stage = active.catalogue, None
    if request.rules:
        ids, block, stage = catalogue.eligible_by_rules(
            request.candidates, request.left_out, request.rules, encoder, misfits, request.retrieved
        )
    else:
        ids, block = catalogue.eligible(request.candidates, request.left_out, encoder, misfits, request.retrieved)
    if not ids and request.removed is not None:
        raise NoCandidates(*_limit_of_all(request.removed))
    if not ids:
        raise NoCandidates(
            "candidates",
            "none is left: send `candidates`, or fill the loop's catalogue with POST /items, and check `exclude`",
        )
    return ids, block, stage


def _limit_of_all(removed: Removed) -> tuple[str, str]:
    """Return the limit that took the last candidate, and what all of them did, for people."""
    taken, shown, spent = map(len, removed)
    did = [
        ("caps.taken", taken, "the user took"),
        ("caps.impressions", shown, "the user was shown as often as may be"),
        ("budgets", spent, "have no budget left"),
    ]
    told = [(field, f"{n} {what} (`{field}`)") for field, n, what in did if n]
    return told[-1][0], f"no candidate is left: {', '.join(text for _, text in told)}"


def request_of(decision: Decision) -> Request:
    """Return the request that a decision answered."""
    return Request(
        decision_id=decision.decision_id,
        user_id=decision.user_id,
        context=decision.context,
        candidates=decision.candidates,
        exclude=decision.exclude,
        k=decision.k,
        rules=NO_RULES if decision.rules is None else Rules.model_validate(decision.rules),
        retrieved=decision.retrieved,
        seen=decision.seen,
        removed=decision.removed,
        attempt=decision.attempt,
    )
