"""Dead letters: what policies could not learn, and another try."""

from fastapi import APIRouter

from service.admin import dead_letters as administration
from service.api.problems import OF_BODIES, documented
from service.api.routes._depends import LoopParam, RedisDep, StrictRoute
from service.api.schemas import DeadLetterList, DeadLetterReply, RetryBody, RetryReply
from service.errors import Conflict, NotFound, StoreUnavailable

router = APIRouter(tags=["policies"], route_class=StrictRoute)


@router.get("/dead-letters", responses=documented(NotFound, Conflict, StoreUnavailable))
async def list_dead_letters(redis: RedisDep, loop: LoopParam = "default", policy: str | None = None) -> DeadLetterList:
    """List the events that policies of a loop could not learn, and why."""
    found = await administration.dead_letters(redis, loop, policy)
    return DeadLetterList(
        dead_letters=[DeadLetterReply(policy=one.policy, position=one.position, why=one.why) for one in found]
    )


@router.post(
    "/dead-letters/retry", status_code=202, responses=documented(*OF_BODIES, NotFound, Conflict, StoreUnavailable)
)
async def retry_dead_letters(body: RetryBody, redis: RedisDep, loop: LoopParam = "default") -> RetryReply:
    """Have policies learn dead letters once more, at the end of the log. What fails again is listed again."""
    return RetryReply(retried=await administration.retry(redis, loop, body.policy, body.positions))
