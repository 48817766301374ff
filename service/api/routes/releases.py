"""Releases: a policy gets its traffic step by step, and goes back by itself when it does harm."""

from dataclasses import asdict

from fastapi import APIRouter

from service.admin import releases as administration
from service.api.problems import OF_BODIES, documented
from service.api.routes._depends import FollowerDep, KeyDep, LoopParam, RedisDep, StrictRoute
from service.api.schemas import ReleaseBody, ReleaseReply
from service.errors import Conflict, NotFound, StoreUnavailable
from service.store.release_store import ReleaseRecord

router = APIRouter(tags=["policies"], route_class=StrictRoute)
READS = documented(NotFound, Conflict, StoreUnavailable)
WRITES = documented(*OF_BODIES, NotFound, Conflict, StoreUnavailable)


def _reply(record: ReleaseRecord) -> ReleaseReply:
    said = {**asdict(record), "share": record.share, "step": record.step + 1, "counting": record.start is not None}
    return ReleaseReply.model_validate(said)


@router.post("/policies/{name}/release", status_code=202, responses=WRITES)
async def start_release(
    name: str, body: ReleaseBody, redis: RedisDep, follower: FollowerDep, key: KeyDep, loop: LoopParam = "default"
) -> ReleaseReply:
    """Give a policy the first of these shares. It goes on, or back, when what was seen allows it."""
    made = await administration.start_release(
        redis,
        follower,
        loop,
        name,
        steps=body.steps,
        guard=body.guard.model_dump(),
        confidence=body.confidence,
        by=key.name,
    )
    return _reply(made)


@router.get("/policies/{name}/release", responses=READS)
async def get_release(name: str, redis: RedisDep, loop: LoopParam = "default") -> ReleaseReply:
    """Return the newest release of a policy: where it stands, and what was seen."""
    return _reply(await administration.read_release(redis, loop, name))


@router.delete("/policies/{name}/release", responses=READS)
async def cancel_release(
    name: str, redis: RedisDep, follower: FollowerDep, key: KeyDep, loop: LoopParam = "default"
) -> ReleaseReply:
    """Cancel a release: the traffic is as it was before. One that has ended stays as it is."""
    return _reply(await administration.cancel_release(redis, follower, loop, name, by=key.name))
