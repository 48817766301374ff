"""One decision, from a request to what is stored and answered. Pure: equal inputs give equal decisions, bit for bit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from service import events
from service.decide.catalogue import Features
from service.decide.live import LiveLoop, Served
from service.errors import NoCandidates
from service.policies import Candidates, Scorer
from service.store.decisions import Decision, SlateItem


@dataclass(frozen=True, slots=True)
class Request:
    """What a client asks, validated."""

    decision_id: str
    user_id: str | None
    context: Mapping[str, Any]
    candidates: Sequence[tuple[str, Features | None]] | None  # None: the loop's catalogue
    exclude: Sequence[str]
    k: int


@dataclass(frozen=True, slots=True)
class Pick:
    """One place of the slate."""

    row: int  # of the n candidates
    score: float
    propensity: float  # of being drawn for this place, given the places before it


def seed_of(loop: str, decision_id: str) -> str:
    """The decision's seed, 16 hexadecimal digits."""
    return blake2b(f"{loop}\0{decision_id}".encode(), digest_size=8).hexdigest()


def uniform(seed: str, draw: int) -> float:
    """The decision's `draw`-th uniform number in [0, 1); needs no generator whose stream could change one day."""
    digest = blake2b(f"{seed}:{draw}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) * 2.0**-53


def draw_slate(scorer: Scorer, estimates: NDArray[np.float64], *, k: int, floor: float, seed: str) -> list[Pick]:
    """Draw min(k, n) places one by one without replacement, each from the policy's pmf over what is left.

    The floor is mixed in first, p = (1 - floor) * pmf + floor / n, and the draw is made from that very p: the
    propensity is what the draw was made from, not an estimate of it.
    """
    left = np.arange(len(estimates))
    slate = []
    for place in range(min(k, len(estimates))):
        p = (1.0 - floor) * scorer.pmf(estimates[left]) + floor / len(left)
        cdf = np.cumsum(p)
        at = int(np.searchsorted(cdf, uniform(seed, place) * cdf[-1], side="right"))
        row = int(left[at])
        slate.append(Pick(row, float(estimates[row, 0]), float(p[at])))
        left = np.delete(left, at)
    return slate


def decide(request: Request, live: LiveLoop, served: Served | None = None) -> Decision:
    """The decision on one request.

    `served` fixes the policy (for replays); by default the traffic split chooses it by the user, or by the decision
    where there is no user.

    Raises:
        NoCandidates: nothing is eligible.
        InvalidRequest: a feature does not fit the schema.
    """
    ids, block = live.catalogue.eligible(request.candidates, request.exclude, live.encoder)
    if not ids:
        raise NoCandidates(
            "candidates",
            "none is left: send `candidates`, or fill the loop's catalogue with POST /items, and check `exclude`",
        )
    served = served or live.policy_for(request.user_id or request.decision_id)
    x = live.encoder.encode(request.context, block)  # (n, d)
    estimates = served.scorer.estimate(Candidates(x, ids, request.user_id))  # (n, s)
    seed = seed_of(live.name, request.decision_id)
    floor = live.settings.exploration_floor
    slate = draw_slate(served.scorer, estimates, k=request.k, floor=floor, seed=seed)
    low, high = live.settings.reward_range  # policies see rewards as shares of it
    record = {
        "decision_id": request.decision_id,
        "loop": live.name,
        "at": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "user_id": request.user_id,
        "context": request.context,
        "candidates": request.candidates,
        "exclude": request.exclude,
        "catalogue": live.catalogue.version,
        "n": len(ids),
        "k": request.k,
        "policy": served.policy,
        "version": served.version,
        "encoder": live.encoder.version,
        "exploration_floor": floor,
        "seed": seed,
        "items": [
            {"id": ids[pick.row], "score": low + pick.score * (high - low), "propensity": pick.propensity}
            for pick in slate
        ],
    }
    return Decision(
        loop=live.name,
        decision_id=request.decision_id,
        record=orjson.dumps(record),
        wait_ms=live.settings.wait_ms,
        slate=[
            SlateItem(
                item=ids[pick.row],
                e=events.body(
                    decision_id=request.decision_id,
                    item=ids[pick.row],
                    user=request.user_id,
                    context=request.context,
                    n=len(ids) - place,
                    propensity=pick.propensity,
                    policy=served.policy,
                    version=served.version,
                ),
                x=x[pick.row].astype("<f4").tobytes(),
            )
            for place, pick in enumerate(slate)
        ],
    )


def request_of(record: Mapping[str, Any]) -> Request:
    """The request that a stored record answered."""
    candidates = record["candidates"]
    return Request(
        decision_id=record["decision_id"],
        user_id=record["user_id"],
        context=record["context"],
        candidates=None if candidates is None else [(item, features) for item, features in candidates],
        exclude=record["exclude"],
        k=record["k"],
    )
