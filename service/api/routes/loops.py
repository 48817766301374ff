"""Loops: one decision problem each."""

from fastapi import APIRouter, Response

from service.api.problems import documented
from service.api.routes._depends import ControlDep, RedisDep, StrictRoute
from service.api.schemas import LoopBody, LoopReply
from service.errors import Conflict, MalformedJson, NotFound, StoreUnavailable
from service.store import loops

router = APIRouter(tags=["loops"], route_class=StrictRoute)


@router.get("/loops", responses=documented(StoreUnavailable))
async def list_loops(redis: RedisDep) -> dict[str, list[str]]:
    return {"loops": await loops.loop_names(redis)}


@router.put(
    "/loops/{loop}",
    responses={201: {"model": LoopReply}, **documented(MalformedJson, Conflict, StoreUnavailable)},
)
async def put_loop(loop: str, body: LoopBody, control: ControlDep, redis: RedisDep, response: Response) -> LoopReply:
    """Make a loop, or change the settings that are given."""
    given = body.model_dump(exclude_unset=True, exclude={"feature_schema"})
    created = await control.put_loop(loop, given, body.feature_schema)
    response.status_code = 201 if created else 200
    return await get_loop(loop, redis)


@router.get("/loops/{loop}", responses=documented(NotFound, StoreUnavailable))
async def get_loop(loop: str, redis: RedisDep) -> LoopReply:
    record = await loops.read_loop(redis, loop)
    return LoopReply(
        loop=loop,
        settings=record.settings,
        feature_schema=record.schema,
        features=record.d,
        encoder=record.encoder,
        catalogue=record.catalogue,
        epoch=record.epoch,
        traffic=record.traffic,
    )


@router.delete("/loops/{loop}", status_code=204, responses=documented(NotFound, StoreUnavailable))
async def delete_loop(loop: str, control: ControlDep) -> None:
    """The loop and all that belongs to it: catalogue, policies, decisions, log."""
    await control.delete_loop(loop)
