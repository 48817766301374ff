"""The hot routes: a thin layer in front of FastAPI's router (docs/architecture.md says what it saves).

The same pydantic models, the same errors; what is skipped is the router, the dependency solver and a second
validation of our own reply.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any, TypeVar

import orjson
from pydantic import BaseModel, ValidationError
from starlette.types import ASGIApp, Receive, Scope, Send
from ulid import ULID

from service.api.guard import problem, respond
from service.api.metrics import Metrics
from service.api.problems import invalid
from service.api.schemas import Candidate, Feedback, FeedbackBatch, RecommendRequest
from service.decide.control import check_rewards
from service.decide.decision import Request, decide
from service.decide.live import Live
from service.errors import Conflict, InvalidRequest, MalformedJson, NotFound, ReboundError
from service.settings import Settings
from service.store.connection import GroupCommit
from service.store.decisions import DecisionLog, join

Model = TypeVar("Model", bound=BaseModel)

STATUS = {"accepted": 202, "duplicate": 200, "late": 200}


class Hot:
    """What /recommend and /feedback do, from parsed JSON to (status, reply)."""

    def __init__(
        self, live: Live, decisions: DecisionLog, commit: GroupCommit, settings: Settings, metrics: Metrics
    ) -> None:
        self._live, self._decisions, self._commit = live, decisions, commit
        self._settings, self._metrics = settings, metrics

    async def recommend(self, body: Any) -> tuple[int, bytes]:
        """Decide, store, answer.

        Raises:
            InvalidRequest, NoCandidates, NotFound.
        """
        asked = validate(RecommendRequest, body)
        live = self._live.loop(asked.loop)
        decision = decide(self._request(asked), live)
        record, degraded = await self._decisions.append(decision)
        stored = orjson.loads(record)
        self._metrics.decision(stored["loop"], stored["policy"], degraded=degraded)
        reply = {name: stored[name] for name in ("decision_id", "loop", "policy", "version", "items")}
        return 200, orjson.dumps({**reply, "degraded": degraded})

    def _request(self, asked: RecommendRequest) -> Request:
        most, most_k = self._settings.max_candidates, self._settings.max_k
        if asked.k > most_k:
            raise InvalidRequest("k", f"at most {most_k}")
        candidates = None
        if asked.candidates is not None:
            if len(asked.candidates) > most:
                raise InvalidRequest("candidates", f"at most {most}, got {len(asked.candidates)}")
            candidates = [(c.id, c.features) if isinstance(c, Candidate) else (c, None) for c in asked.candidates]
            if len({item for item, _ in candidates}) < len(candidates):
                raise InvalidRequest("candidates", "an item stands twice")
        return Request(
            decision_id=asked.decision_id or str(ULID()),
            user_id=asked.user_id,
            context=asked.context,
            candidates=candidates,
            exclude=asked.exclude,
            k=asked.k,
        )

    async def feedback(self, body: Any) -> tuple[int, bytes]:
        """Join one report, or up to 1000, each answered by itself.

        Raises:
            InvalidRequest, NotFound, Conflict, StoreUnavailable.
        """
        if isinstance(body, dict) and "feedback" in body:
            batch = validate(FeedbackBatch, body)
            results = await asyncio.gather(*(self._element(element, batch.loop) for element in batch.feedback))
            return 200, orjson.dumps({"results": results})
        status = await self._join(validate(Feedback, body))
        return STATUS[status], orjson.dumps({"status": status})

    async def _element(self, element: Any, loop: str) -> dict[str, str]:
        try:
            if not isinstance(element, dict):
                raise InvalidRequest("feedback", "an element is no object")
            return {"status": await self._join(validate(Feedback, {"loop": loop, **element}))}
        except (InvalidRequest, NotFound, Conflict) as error:
            return {"status": "rejected", "code": error.code, "detail": error.detail}

    async def _join(self, feedback: Feedback) -> str:
        settings = self._live.loop(feedback.loop).settings
        check_rewards(settings, [feedback.reward], "reward")
        answer = await join(
            self._commit,
            feedback.loop,
            settings,
            decision_id=feedback.decision_id,
            item=feedback.item_id or "",
            reward=feedback.reward,
            feedback_id=feedback.feedback_id or "",
        )
        if answer == "unknown":
            raise NotFound(f"no decision {feedback.decision_id!r} in loop {feedback.loop!r}", code="unknown_decision")
        if answer == "not_in_slate":
            raise InvalidRequest("item_id", f"{feedback.item_id!r} was not recommended by this decision")
        if answer == "too_many":
            raise Conflict("this decision has had 1000 reports; no more are taken", code="too_many_feedback")
        return answer


class HotPath:
    """Answers the hot routes itself and hands everything else on."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics
        self.hot: Hot  # set by the lifespan, before the first request

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path")
        if scope["type"] != "http" or scope["method"] != "POST" or path not in ("/recommend", "/feedback"):
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        status = 500
        try:
            body = parse(scope["state"]["body"])
            status, reply = await (self.hot.recommend(body) if path == "/recommend" else self.hot.feedback(body))
            await respond(send, status, reply, media_type="application/json")
        except ReboundError as error:
            status = error.status
            await problem(error, send)
        finally:
            self._metrics.request(path, status, time.perf_counter() - started)


def parse(body: bytes) -> Any:
    """JSON by the letter: no NaN, no infinities, no lone surrogates.

    Raises:
        MalformedJson: says where.
    """
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise MalformedJson(str(error)) from error


def validate(model: type[Model], body: Any) -> Model:
    """Raises InvalidRequest naming the fields."""
    try:
        return model.model_validate(body)
    except ValidationError as error:
        raise invalid(error.errors(include_url=False, include_context=False, include_input=False), skip=()) from error
