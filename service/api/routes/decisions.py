"""Decide and report. Answered by `api/hot.py` before they get here; declared for /docs and /openapi.json."""

from typing import Any

from fastapi import APIRouter, Response

from service.api.problems import documented
from service.api.routes._depends import HotDep, LoopParam, RedisDep, StrictRoute
from service.api.schemas import (
    Feedback,
    FeedbackBatch,
    FeedbackBatchReply,
    FeedbackReply,
    RecommendReply,
    RecommendRequest,
)
from service.errors import Conflict, MalformedJson, NotFound, PayloadTooLarge, StoreUnavailable
from service.store.decisions import ledger

router = APIRouter(tags=["decide"], route_class=StrictRoute)


@router.post(
    "/recommend", response_model=RecommendReply, responses=documented(MalformedJson, NotFound, PayloadTooLarge)
)
async def recommend(request: RecommendRequest, hot: HotDep) -> Response:
    """Choose k items for a user. The decision is stored before it is answered."""
    status, body = await hot.recommend(request.model_dump(exclude_unset=True))
    return Response(body, status, media_type="application/json")


@router.post(
    "/feedback",
    status_code=202,
    response_model=FeedbackReply,
    responses={
        200: {"model": FeedbackReply | FeedbackBatchReply, "description": "a repeat, too late, or a batch"},
        **documented(MalformedJson, NotFound, Conflict, PayloadTooLarge, StoreUnavailable),
    },
)
async def feedback(request: Feedback | FeedbackBatch, hot: HotDep) -> Response:
    """Report a reward, or up to 1000 of them. The reply means that it is stored."""
    status, body = await hot.feedback(request.model_dump(exclude_unset=True))
    return Response(body, status, media_type="application/json")


@router.get("/decisions/{decision_id}", responses=documented(NotFound, StoreUnavailable))
async def get_decision(decision_id: str, redis: RedisDep, loop: LoopParam = "default") -> dict[str, Any]:
    """The reward ledger: what was decided, what became of it, and every feedback seen."""
    return await ledger(redis, loop, decision_id)
