"""Decide, report, and look a decision up.

The hot path answers the first two before they get here (`api/hot_path.py`). Both ways share `api/replies.py`, and
`tests/api/test_contract.py` runs every case against either.
"""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from service.api.explanations import ExplainedLedger, ExplanationReply, TryBody, TryReply
from service.api.problems import OF_BODIES, documented
from service.api.replies import loop_named, pair_of
from service.api.routes._depends import ExplainerDep, HotDep, HotRoute, IdInPath, KeyDep, RedisDep
from service.api.schemas import (
    ID_LENGTH,
    LOOP_LENGTH,
    ActivityBatch,
    DecisionLedger,
    DisplayReply,
    EdgeBatch,
    EdgeDeleted,
    ElementsReply,
    FeedbackBatchReply,
    FeedbackBody,
    FeedbackReply,
    Kind,
    RecommendBatch,
    RecommendBatchReply,
    RecommendReply,
    RecommendRequest,
)
from service.errors import Conflict, ExplainerBusy, Forbidden, NotFound, StoreUnavailable
from service.serve.ids import loop_of
from service.store.decisions import read_ledger, read_stored_decision
from service.store.keys import Keys
from service.store.loop_store import read_loop

router = APIRouter(tags=["decide"], route_class=HotRoute)
LoopQuery = Annotated[str | None, Query(description="name of the loop, if the body names none")]
From = Annotated[str, Query(alias="from", description="user who knows", min_length=1, max_length=ID_LENGTH)]
To = Annotated[str, Query(description="user who is known", min_length=1, max_length=ID_LENGTH)]
OfKind = Annotated[Kind, Query()]
LoopOfDecision = Annotated[
    str | None,
    Query(description="default: the loop of an id that the service made, else `default`", max_length=LOOP_LENGTH),
]


@router.post(
    "/recommend",
    response_model=RecommendReply,
    responses=documented(*OF_BODIES, NotFound, Conflict),
)
async def recommend(request: RecommendRequest, hot: HotDep, key: KeyDep, loop: LoopQuery = None) -> Response:
    """Choose k items for a user. The decision is stored before it is answered."""
    status, body = await hot.recommend(request, loop=loop, key=key)
    return Response(body, status, media_type="application/json")


@router.post(
    "/recommend/batch", response_model=RecommendBatchReply, responses=documented(*OF_BODIES, NotFound, Conflict)
)
async def recommend_batch(
    batch: RecommendBatch, request: Request, hot: HotDep, key: KeyDep, loop: LoopQuery = None
) -> Response:
    """Decide on up to 100 requests at once, each answered by itself: a reply, or a problem."""
    status, body = await hot.recommend_batch(batch, loop=loop, key=key, request_id=request.state.request_id)
    return Response(body, status, media_type="application/json")


@router.post(
    "/feedback",
    status_code=202,
    response_model=FeedbackReply,
    responses={
        200: {"model": FeedbackReply | FeedbackBatchReply, "description": "a repeat, too late, or a batch"},
        **documented(*OF_BODIES, NotFound, Conflict, StoreUnavailable),
    },
)
async def feedback(request: FeedbackBody, hot: HotDep, key: KeyDep, loop: LoopQuery = None) -> Response:
    """Report a reward, or up to 1000 of them. The reply means that it is stored."""
    status, body = await hot.feedback(request, loop=loop, key=key)
    return Response(body, status, media_type="application/json")


@router.post("/activity", response_model=ElementsReply, responses=documented(*OF_BODIES, NotFound, StoreUnavailable))
async def activity(request: ActivityBatch, hot: HotDep, key: KeyDep, loop: LoopQuery = None) -> Response:
    """Report what users did: up to 1000 activities. The reply means that they are stored."""
    status, body = await hot.activity(request, loop=loop, key=key)
    return Response(body, status, media_type="application/json")


@router.post("/edges", response_model=ElementsReply, responses=documented(*OF_BODIES, NotFound, StoreUnavailable))
async def edges(request: EdgeBatch, hot: HotDep, key: KeyDep, loop: LoopQuery = None) -> Response:
    """Say whom users know: up to 1000 edges. The reply means that they are stored."""
    status, body = await hot.edges(request, loop=loop, key=key)
    return Response(body, status, media_type="application/json")


@router.delete("/edges", responses=documented(NotFound, StoreUnavailable))
async def delete_edge(
    user: From, to: To, hot: HotDep, key: KeyDep, kind: OfKind = "friend", loop: LoopQuery = None
) -> EdgeDeleted:
    """Delete one edge. The reply means that it is gone."""
    await hot.delete_edge(user, to, kind, loop=loop, key=key)
    return EdgeDeleted(status="deleted")


@router.post(
    "/decisions/{decision_id:any}/display",
    response_model=DisplayReply,
    responses={
        202: {"model": DisplayReply, "description": "kept for a decision that is not there yet"},
        **documented(NotFound, Conflict, StoreUnavailable),
    },
)
async def display(
    decision_id: IdInPath, hot: HotDep, key: KeyDep, response: Response, loop: LoopOfDecision = None
) -> Any:
    """Report that a deferred decision (`"displayed": false`) is shown now: its wait for feedback begins."""
    response.status_code, reply = await hot.display(decision_id, loop=loop, key=key)
    return reply


@router.get("/decisions/{decision_id:any}", responses=documented(NotFound, Conflict, ExplainerBusy))
async def get_decision(
    decision_id: IdInPath,
    redis: RedisDep,
    key: KeyDep,
    explainer: ExplainerDep,
    loop: LoopOfDecision = None,
    explain: Annotated[bool, Query(description="true: say why, too; not for clients' keys")] = False,
) -> ExplainedLedger | DecisionLedger:
    """Return the reward ledger: what was decided, what became of it, and every feedback seen; and why, if asked."""
    key.check(named := loop_of(decision_id, loop))
    if explain and key.role == "client":
        raise Forbidden("explanations show what policies have learned; clients' keys may not read them")
    record = await read_loop(redis, named)
    keys = Keys(record.name, record.id)
    ledger = await read_ledger(redis, keys, decision_id)
    if not explain:
        return DecisionLedger.model_validate(ledger)
    answer = await explainer.decision(await read_stored_decision(redis, keys, decision_id))
    return ExplainedLedger.model_validate({**ledger, "explanation": ExplanationReply.of(answer)})


@router.post("/try", responses=documented(*OF_BODIES, NotFound, ExplainerBusy))
async def try_request(body: TryBody, explainer: ExplainerDep, key: KeyDep, loop: LoopQuery = None) -> TryReply:
    """Say what each policy would do with a request, shadows included, and why. Nothing is stored or learned."""
    named = loop_named(body.loop, loop)
    key.check(named)
    trial = await explainer.attempt(
        named,
        user_id=body.user_id,
        context=body.context or {},
        candidates=None if body.candidates is None else [pair_of(candidate) for candidate in body.candidates],
        policies=body.policies,
    )
    return TryReply.of(named, body.user_id, trial)
