"""One user: what is kept of him, and his erasure."""

from dataclasses import asdict
from typing import Annotated

from fastapi import APIRouter, Path, Query

from service.admin import users as administration
from service.api.problems import documented
from service.api.routes._depends import IdInPath, KeyDep, LoopParam, RedisDep, StrictRoute
from service.api.schemas import (
    CountedItem,
    DecisionLedger,
    ErasureList,
    ErasureReply,
    UserActivity,
    UserEdge,
    UserEvent,
    UserLoggedActivity,
    UserReply,
    UserTake,
)
from service.errors import Conflict, NotFound, StoreUnavailable
from service.store.erasure_store import ErasureRecord

router = APIRouter(tags=["users"], route_class=StrictRoute)
ANSWERS = documented(NotFound, Conflict, StoreUnavailable)
After = Annotated[str | None, Query(max_length=64, description="`next` of the page before; default: the first page")]
Erasure = Annotated[str, Path(max_length=64, description="id of the erasure")]


def _reply(record: ErasureRecord) -> ErasureReply:
    return ErasureReply.model_validate({name: value for name, value in asdict(record).items() if name != "user"})


@router.get("/users/{user_id:any}", responses=ANSWERS)
async def get_user(user_id: IdInPath, redis: RedisDep, loop: LoopParam = "default", after: After = None) -> UserReply:
    """Return all that is kept of a user, page by page. A page may be empty and still have a next one."""
    page = await administration.read_user(redis, loop, user_id, after)
    return UserReply(
        user_id=user_id,
        loop=loop,
        activity=[UserActivity(number=a.number, at=a.at / 1000, item_id=a.item, type=a.type) for a in page.activity],
        state=dict(page.state),
        edges=[UserEdge(to=one.to, kind=one.kind, weight=one.weight, at=one.at / 1000) for one in page.edges],
        known_by=list(page.known_by),
        graph=dict(page.graph),
        took=[UserTake(item_id=item, at=at / 1000, share=share) for at, item, share in page.took],
        shown=[CountedItem(at=at / 1000, item_id=item) for at, item in page.shown],
        taken=[CountedItem(at=at / 1000, item_id=item) for at, item in page.taken],
        decisions=[DecisionLedger.model_validate(one) for one in page.decisions],
        events=[UserEvent.of(event) for event in page.events],
        activity_log=[
            UserLoggedActivity(position=a.position, number=a.number, at=a.at / 1000, item_id=a.item, type=a.type)
            for a in page.activity_log
        ],
        next=page.next,
    )


@router.delete("/users/{user_id:any}", status_code=202, responses=ANSWERS)
async def erase_user(user_id: IdInPath, redis: RedisDep, key: KeyDep, loop: LoopParam = "default") -> ErasureReply:
    """Erase a user: what is kept of him, and what policies learned from it. A learner does it; look at it by its id."""
    return _reply(await administration.erase_user(redis, loop, user_id, by=key.name))


@router.get("/erasures", responses=ANSWERS)
async def list_erasures(redis: RedisDep, loop: LoopParam = "default") -> ErasureList:
    """List the erasures of a loop, newest first. None names a user."""
    return ErasureList(erasures=[_reply(one) for one in await administration.list_erasures(redis, loop)])


@router.get("/erasures/{erasure}", responses=ANSWERS)
async def get_erasure(erasure: Erasure, redis: RedisDep, loop: LoopParam = "default") -> ErasureReply:
    """Return one erasure: how far it is, what was deleted, and what could not be."""
    return _reply(await administration.read_erasure(redis, loop, erasure))
