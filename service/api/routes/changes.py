"""Who changed what."""

from typing import Annotated, Literal

from fastapi import APIRouter, Query

from service.admin.changes import list_changes
from service.api.problems import documented
from service.api.routes._depends import LoopParam, RedisDep, StrictRoute
from service.api.schemas import ChangeList, ChangeReply
from service.errors import Conflict, NotFound, StoreUnavailable

router = APIRouter(tags=["loops"], route_class=StrictRoute)
PAGE = 100
Place = Annotated[str | None, Query(pattern=r"^[0-9]{1,19}-[0-9]{1,19}$", description="`next` of the page before")]


@router.get("/changes", responses=documented(NotFound, Conflict, StoreUnavailable))
async def get_changes(
    redis: RedisDep,
    loop: LoopParam = "default",
    about: Annotated[
        Literal["loop", "data"], Query(description="loop: settings, policies, traffic; data: items, imports")
    ] = "loop",
    before: Place = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = PAGE,
) -> ChangeList:
    """List administrative changes, newest first: who made them, when, what was there before and after."""
    found = await list_changes(redis, loop, data=about == "data", before=before, most=limit + 1)
    changes = [
        ChangeReply(id=place, at=change.at, by=change.by, what=change.what, before=change.before, after=change.after)
        for place, change in found[:limit]
    ]
    return ChangeList(changes=changes, next=changes[-1].id if len(found) > limit else None)
