"""Would another policy have been better? Evaluations of the log: asked for, looked at, cancelled."""

from dataclasses import asdict
from typing import Annotated

from fastapi import APIRouter, Path

from service.admin import evaluations as administration
from service.api.problems import OF_BODIES, documented
from service.api.routes._depends import LoopParam, RedisDep, StrictRoute
from service.api.schemas import EvaluationBody, EvaluationList, EvaluationReply
from service.errors import Conflict, NotFound, StoreUnavailable
from service.store.evaluation_store import EvaluationRecord

router = APIRouter(tags=["evaluations"], route_class=StrictRoute)
READS = documented(NotFound, Conflict, StoreUnavailable)
Evaluation = Annotated[str, Path(max_length=64, description="id of the evaluation")]


def _reply(record: EvaluationRecord) -> EvaluationReply:
    return EvaluationReply.model_validate(asdict(record))


@router.post("/evaluations", status_code=202, responses=documented(*OF_BODIES, NotFound, Conflict, StoreUnavailable))
async def create_evaluation(body: EvaluationBody, redis: RedisDep, loop: LoopParam = "default") -> EvaluationReply:
    """Compare up to 10 policies and kinds with what served. It is done in the background; look at it by its id."""
    return _reply(await administration.create_evaluation(redis, loop, body.model_dump()))


@router.get("/evaluations", responses=READS)
async def list_evaluations(redis: RedisDep, loop: LoopParam = "default") -> EvaluationList:
    """List the loop's evaluations, newest first."""
    return EvaluationList(evaluations=[_reply(one) for one in await administration.list_evaluations(redis, loop)])


@router.get("/evaluations/{evaluation}", responses=READS)
async def get_evaluation(evaluation: Evaluation, redis: RedisDep, loop: LoopParam = "default") -> EvaluationReply:
    """Return one evaluation: how far it is, or what came of it."""
    return _reply(await administration.read_evaluation(redis, loop, evaluation))


@router.post("/evaluations/{evaluation}/cancel", responses=READS)
async def cancel_evaluation(evaluation: Evaluation, redis: RedisDep, loop: LoopParam = "default") -> EvaluationReply:
    """Cancel an evaluation. One that has ended stays as it is."""
    return _reply(await administration.cancel_evaluation(redis, loop, evaluation))
