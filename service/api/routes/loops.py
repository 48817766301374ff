"""Loops: one decision problem each."""

from typing import Annotated

from fastapi import APIRouter, Query, Response

from service.admin import loops as administration
from service.admin.history import HistoryReply, MarkReply, add_mark, read_history
from service.admin.profile import ProfileReply, read_profile
from service.api.problems import OF_BODIES, documented
from service.api.routes._depends import FollowerDep, KeyDep, RedisDep, StrictRoute
from service.api.schemas import LoopBody, LoopList, LoopReply, MarkBody
from service.errors import Conflict, NotFound, StoreUnavailable
from service.store.loop_store import loop_names, read_loop

router = APIRouter(tags=["loops"], route_class=StrictRoute)


@router.get("/loops", responses=documented(StoreUnavailable))
async def list_loops(redis: RedisDep, key: KeyDep) -> LoopList:
    """List the names of all loops that the key is for."""
    names = await loop_names(redis)
    return LoopList(loops=[name for name in names if key.loops is None or name in key.loops])


@router.put(
    "/loops/{loop}",
    responses={201: {"model": LoopReply}, **documented(*OF_BODIES, Conflict, StoreUnavailable)},
)
async def put_loop(
    loop: str, body: LoopBody, redis: RedisDep, follower: FollowerDep, key: KeyDep, response: Response
) -> LoopReply:
    """Make a loop, or change the settings that are given."""
    given = body.model_dump(exclude_unset=True, exclude={"feature_schema"})
    created = await administration.put_loop(redis, follower, loop, given, body.feature_schema, by=key.name)
    response.status_code = 201 if created else 200
    return await get_loop(loop, redis)


@router.get("/loops/{loop}", responses=documented(NotFound, Conflict, StoreUnavailable))
async def get_loop(loop: str, redis: RedisDep) -> LoopReply:
    """Return a loop's settings, schema and traffic."""
    record = await read_loop(redis, loop)
    encoder = await administration.declared_encoder(redis, record)
    return LoopReply(
        loop=loop,
        settings=record.settings,
        feature_schema=encoder.schema.model_dump(mode="json"),
        features=encoder.d,
        encoder=encoder.version,
        catalogue=record.catalogue,
        epoch=record.epoch,
        traffic=dict(record.traffic),
    )


@router.get("/loops/{loop}/profile", responses=documented(NotFound, Conflict, StoreUnavailable))
async def get_profile(loop: str, redis: RedisDep) -> ProfileReply:
    """Return what the loop's data look like, what is wrong with them, and a schema to begin with."""
    return await read_profile(redis, loop)


@router.get("/loops/{loop}/history", responses=documented(NotFound, Conflict, StoreUnavailable))
async def get_history(
    loop: str,
    redis: RedisDep,
    since: Annotated[
        float | None, Query(alias="from", ge=0, le=1e11, description="unix seconds; default: an hour before `to`")
    ] = None,
    to: Annotated[float | None, Query(ge=0, le=1e11, description="unix seconds; default: now")] = None,
    step: Annotated[
        int | None, Query(description="seconds of a bin; default: such that there are at most 180, or a day")
    ] = None,
) -> HistoryReply:
    """Return decisions and rewards over time, by policy, what a uniform choice would have got, and what happened."""
    return await read_history(redis, loop, since=since, until=to, step=step)


@router.post(
    "/loops/{loop}/marks", status_code=201, responses=documented(*OF_BODIES, NotFound, Conflict, StoreUnavailable)
)
async def post_mark(loop: str, body: MarkBody, redis: RedisDep, key: KeyDep) -> MarkReply:
    """Note beside the history of a loop what happened: a campaign, a deploy."""
    return MarkReply.model_validate(await add_mark(redis, loop, at=body.at, text=body.text, by=key.name))


@router.delete("/loops/{loop}", status_code=204, responses=documented(NotFound, StoreUnavailable))
async def delete_loop(loop: str, redis: RedisDep, follower: FollowerDep, key: KeyDep) -> None:
    """Delete a loop with its catalogue, policies, decisions and log."""
    await administration.delete_loop(redis, follower, loop, by=key.name)
