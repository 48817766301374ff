"""Turns JSON of the hot routes into calls of the use cases, and their results into replies, the same on every path."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, TypeVar

import orjson
import structlog
from pydantic import TypeAdapter, ValidationError

from service.api.keys import Key
from service.api.metrics import Metrics
from service.api.problems import DEFECT, invalid, render
from service.api.schemas import (
    LOOP_LENGTH,
    ActivityBatch,
    ActivityElement,
    Candidate,
    EdgeBatch,
    EdgeElement,
    Feedback,
    FeedbackBatch,
    RecommendBatch,
    RecommendRequest,
)
from service.errors import Conflict, Forbidden, InvalidRequest, MalformedJson, NotFound, ReboundError
from service.rules import NO_RULES
from service.serve.activity import ActivityKeeper
from service.serve.edges import EdgeKeeper
from service.serve.feedback import FeedbackJoiner
from service.serve.ids import DEFAULT_LOOP, loop_of
from service.serve.recommend import Recommender

T = TypeVar("T")

log = structlog.get_logger()

DEEPEST_JSON = 254  # levels that orjson writes; it reads more
MOST_NESTED = 240  # of a body: what is stored and answered holds its parts a few levels deeper
STATUS = {"accepted": 202, "duplicate": 200, "late": 200, "early": 202}


class HotRoutes:
    """The hot routes, `/recommend/batch`, `/activity` and `/edges`, from a validated body to (status, reply)."""

    def __init__(
        self,
        recommender: Recommender,
        joiner: FeedbackJoiner,
        keeper: ActivityKeeper,
        edges: EdgeKeeper,
        metrics: Metrics,
    ) -> None:
        self._recommender, self._joiner, self._keeper, self._edges = recommender, joiner, keeper, edges
        self._metrics = metrics

    async def recommend(self, asked: RecommendRequest, *, loop: str | None, key: Key) -> tuple[int, bytes]:
        """Decide, store, answer. `loop` is the one that the query names.

        Raises:
            Forbidden: the key is for other loops.
            InvalidRequest, NoCandidates, NotFound: see `Recommender.recommend`.
        """
        return 200, await self._decide(asked, one_loop(asked.loop, loop), key)

    async def recommend_batch(
        self, batch: RecommendBatch, *, loop: str | None, key: Key, request_id: str
    ) -> tuple[int, bytes]:
        """Decide on up to 100 requests at once, each answered by itself. `loop` is the one that the query names.

        They wait together, so they are decided in one turn and stored in one flush. Each counts towards the key's rate.

        Raises:
            InvalidRequest: the body and the query name different loops.
        """
        loop = one_loop(batch.loop, loop)
        if key.bucket is not None:
            key.bucket.owe(len(batch.requests) - 1)
        elements = (self._request(element, loop, key, request_id) for element in batch.requests)
        return 200, orjson.dumps({"results": [orjson.Fragment(one) for one in await asyncio.gather(*elements)]})

    async def _request(self, element: Any, loop: str | None, key: Key, request_id: str) -> bytes:
        """Return the reply to one request of a batch, or its problem."""
        try:
            if not isinstance(element, dict):
                raise InvalidRequest("requests", "an element is no object")
            asked = validate(RECOMMEND, element)
            return await self._decide(asked, loop if asked.loop is None else asked.loop, key)
        except ReboundError as error:
            return render(error, request_id)[1]
        except Exception:  # whatever it is, the others of the batch are stored and must be answered
            log.exception("request of a batch failed", request_id=request_id)
            return render(ReboundError(DEFECT), request_id)[1]

    async def _decide(self, asked: RecommendRequest, loop: str | None, key: Key) -> bytes:
        named = DEFAULT_LOOP if loop is None else loop
        key.check(named)
        decision, degraded = await self._recommender.recommend(
            named,
            user_id=asked.user_id,
            context=asked.context,
            candidates=None if asked.candidates is None else [pair_of(candidate) for candidate in asked.candidates],
            exclude=asked.exclude or (),
            k=1 if asked.k is None else asked.k,
            decision_id=asked.decision_id,
            displayed=asked.displayed is not False,
            rules=asked.rules or NO_RULES,
        )
        self._metrics.decision(decision.loop, decision.policy, degraded=degraded)
        explained = {"explanation": self._recommender.explain(decision)} if asked.explain else {}
        return orjson.dumps(
            {
                "decision_id": decision.decision_id,
                "loop": decision.loop,
                "policy": decision.policy,
                "version": decision.version,
                "items": decision.items,
                "degraded": degraded,
                **explained,
            }
        )

    async def feedback(self, report: Feedback | FeedbackBatch, *, loop: str | None, key: Key) -> tuple[int, bytes]:
        """Join one report, or up to 1000, each answered by itself. `loop` is the one that the query names.

        Raises:
            Forbidden: the key is for other loops.
            InvalidRequest, NotFound, Conflict, StoreUnavailable: see `FeedbackJoiner.join`.
        """
        loop = one_loop(report.loop, loop)
        if isinstance(report, Feedback):
            status = await self._join(report, loop, key)
            return STATUS[status], orjson.dumps({"status": status})
        results = await asyncio.gather(*(self._element(element, loop, key) for element in report.feedback))
        return 200, orjson.dumps({"results": results})

    async def activity(self, batch: ActivityBatch, *, loop: str | None, key: Key) -> tuple[int, bytes]:
        """Take up to 1000 activities, each answered by itself. `loop` is the one that the query names.

        Raises:
            Forbidden: the key is for other loops.
            NotFound, StoreUnavailable: see `ActivityKeeper.take`.
        """
        named = loop_named(batch.loop, loop)
        key.check(named)
        sent, rejected = _validated(ACTIVITY, batch.activity, "activity")
        answers = await self._keeper.take(named, [element.sent() for element in sent])
        return 200, orjson.dumps({"results": _in_place([{"status": answer} for answer in answers], rejected)})

    async def edges(self, batch: EdgeBatch, *, loop: str | None, key: Key) -> tuple[int, bytes]:
        """Take up to 1000 edges, each answered by itself. `loop` is the one that the query names.

        Raises:
            Forbidden: the key is for other loops.
            NotFound, StoreUnavailable: see `EdgeKeeper.take`.
        """
        named = loop_named(batch.loop, loop)
        key.check(named)
        sent, rejected = _validated(EDGE, batch.edges, "edges")
        edges = [element.sent() for element in sent]
        answers = await self._edges.take(named, edges)
        told = [FULL if answer == "full" else {"status": answer} for answer in answers]
        return 200, orjson.dumps({"results": _in_place(told, rejected)})

    async def delete_edge(self, user: str, to: str, kind: str, *, loop: str | None, key: Key) -> None:
        """Delete one edge. `loop` is the one that the query names.

        Raises:
            Forbidden: the key is for other loops.
            NotFound, StoreUnavailable: see `EdgeKeeper.drop`.
        """
        named = DEFAULT_LOOP if loop is None else loop
        key.check(named)
        await self._edges.drop(named, user, to, kind)

    async def display(self, decision_id: str, *, loop: str | None, key: Key) -> tuple[int, dict[str, str]]:
        """Report the display of a deferred decision.

        Raises:
            Forbidden: the key is for other loops.
            NotFound, Conflict, StoreUnavailable: see `FeedbackJoiner.display`.
        """
        key.check(loop_of(decision_id, loop))
        status = await self._joiner.display(decision_id, loop=loop)
        return 202 if status == "early" else 200, {"status": status}

    async def _element(self, element: Any, loop: str | None, key: Key) -> dict[str, str]:
        try:
            if not isinstance(element, dict):
                raise InvalidRequest("feedback", "an element is no object")
            report = validate(FEEDBACK, element)
            return {"status": await self._join(report, loop if report.loop is None else report.loop, key)}
        except (Forbidden, InvalidRequest, NotFound, Conflict) as error:
            return {"status": "rejected", "code": error.code, "detail": error.detail}

    async def _join(self, report: Feedback, loop: str | None, key: Key) -> str:
        key.check(loop_of(report.decision_id, loop))
        return await self._joiner.join(
            report.decision_id,
            report.reward,
            item_id=report.item_id,
            feedback_id=report.feedback_id,
            replaces=report.replaces,
            loop=loop,
        )


RECOMMEND = TypeAdapter(RecommendRequest)
FEEDBACK = TypeAdapter(Feedback)
ACTIVITY = TypeAdapter(ActivityElement)
EDGE = TypeAdapter(EdgeElement)
FULL = {
    "status": "rejected",
    "code": "too_many_edges",
    "detail": "`edges_kept` of this user are heavier, or as heavy and newer",
}


def _validated(
    model: TypeAdapter[T], elements: Sequence[Any], name: str
) -> tuple[list[T], list[dict[str, str] | None]]:
    """Return the elements of a batch that are valid, and the answer to each of the batch; None: it is valid."""
    valid: list[T] = []
    answers: list[dict[str, str] | None] = []
    for element in elements:
        try:
            if not isinstance(element, dict):
                raise InvalidRequest(name, "an element is no object")
            valid.append(validate(model, element))
            answers.append(None)
        except InvalidRequest as error:
            answers.append({"status": "rejected", "code": error.code, "detail": error.detail})
    return valid, answers


def _in_place(told: Sequence[dict[str, str]], answers: Sequence[dict[str, str] | None]) -> list[dict[str, str]]:
    """Put the answers to the valid elements in their places among the others."""
    left = iter(told)
    return [next(left) if answer is None else answer for answer in answers]


def loop_named(body: str | None, query: str | None) -> str:
    """Return the loop that a request is about: the one that its body or its query names, else `default`.

    Raises:
        InvalidRequest: see `one_loop`.
    """
    named = one_loop(body, query)
    return DEFAULT_LOOP if named is None else named


def one_loop(body: str | None, query: str | None) -> str | None:
    """Return the loop that a body or a query names; None: neither does.

    Raises:
        InvalidRequest: they name two, or one with too long a name.
    """
    if query is not None and len(query) > LOOP_LENGTH:
        raise InvalidRequest("loop", f"a name has at most {LOOP_LENGTH} characters")
    if body is not None and query is not None and body != query:
        raise InvalidRequest("loop", f"the body names {body!r} and the query {query!r}")
    return query if body is None else body


def pair_of(candidate: str | Candidate) -> tuple[str, dict[str, Any] | None]:
    """Return a candidate's id, and the features that the request gives it; None: it gives none."""
    return (candidate, None) if isinstance(candidate, str) else (candidate.id, candidate.features)


def parse(body: bytes) -> Any:
    """Read JSON strictly: NaN, infinities and lone surrogates are refused.

    Raises:
        MalformedJson: says where.
        InvalidRequest: it is nested deeper than what is stored may be.
    """
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise MalformedJson(str(error)) from error
    if body.count(b"{") + body.count(b"[") > MOST_NESTED and _too_deep(value):
        raise InvalidRequest("body", f"is nested deeper than {MOST_NESTED} levels")
    return value


def _too_deep(value: Any) -> bool:
    for _ in range(DEEPEST_JSON - MOST_NESTED):
        value = [value]
    try:
        orjson.dumps(value)
    except TypeError:
        return True
    return False


def validate(model: TypeAdapter[T], body: Any) -> T:
    """Validate a parsed body.

    Raises:
        InvalidRequest: names the fields.
    """
    try:
        return model.validate_python(body, from_attributes=True)  # as FastAPI does, so that the messages are the same
    except ValidationError as error:
        raise invalid(error.errors(include_url=False, include_context=False, include_input=False), skip=()) from error
