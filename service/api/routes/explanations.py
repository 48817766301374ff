"""Which fields does a policy predict by? Explanations of policies: asked for, and looked at."""

from typing import Annotated, Any

from fastapi import APIRouter, Path

from service.admin import policy_explanations as administration
from service.api.explanations import PolicyExplanationReply
from service.api.problems import documented
from service.api.routes._depends import LoopParam, RedisDep, StrictRoute
from service.errors import Conflict, NotFound, StoreUnavailable
from service.store.evaluation_store import EvaluationRecord

router = APIRouter(tags=["policies"], route_class=StrictRoute)
Policy = Annotated[str, Path(max_length=64, description="name of the policy")]


def _reply(record: EvaluationRecord) -> PolicyExplanationReply:
    names = ("id", "status", "created", "started", "ended", "done", "total", "result", "error")
    said: dict[str, Any] = {name: getattr(record, name) for name in names}
    return PolicyExplanationReply.model_validate({**said, "policy": record.request[administration.EXPLAINS]})


@router.post(
    "/policies/{name}/explanation", status_code=202, responses=documented(NotFound, Conflict, StoreUnavailable)
)
async def create_explanation(name: Policy, redis: RedisDep, loop: LoopParam = "default") -> PolicyExplanationReply:
    """Find which fields and pairs of fields a policy predicts by. It is done in the background; look at it here."""
    return _reply(await administration.create_explanation(redis, loop, name))


@router.get("/policies/{name}/explanation", responses=documented(NotFound, Conflict, StoreUnavailable))
async def get_explanation(name: Policy, redis: RedisDep, loop: LoopParam = "default") -> PolicyExplanationReply:
    """Return the newest explanation of a policy: how far it is, or what came of it."""
    return _reply(await administration.read_explanation(redis, loop, name))
