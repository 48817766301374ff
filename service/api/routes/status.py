"""Is it up, is it ready, is it learning?"""

from fastapi import APIRouter, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST

from service.admin.status import Status, read_status
from service.api.problems import documented
from service.api.routes._depends import DecisionsDep, FollowerDep, KeyDep, MetricsDep, RedisDep, StrictRoute
from service.api.schemas import Alive, Ready
from service.errors import StoreUnavailable

router = APIRouter(tags=["status"], route_class=StrictRoute)


@router.get("/healthz")
async def healthz() -> Alive:
    """Say that the process is alive."""
    return Alive(status="ok")


@router.get("/readyz", responses=documented(StoreUnavailable))
async def readyz(redis: RedisDep, follower: FollowerDep) -> Ready:
    """Say that the worker can serve: Redis answers and holds our data, and every loop is loaded."""
    try:
        await redis.ping()
    except Exception as error:
        raise StoreUnavailable("Redis does not answer; /recommend goes on from memory") from error
    if not follower.store_usable():
        raise StoreUnavailable("Redis lost its data; /recommend goes on from memory until the workers are restarted")
    return Ready(status="ready", loops=len(follower.names))


@router.get("/status")
async def status(redis: RedisDep, follower: FollowerDep, decisions: DecisionsDep, key: KeyDep) -> Status:
    """Say whether each loop learns: counters, lag, age of the served versions, and what is broken."""
    return await read_status(redis, follower, decisions, only=key.loops)


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(redis: RedisDep, follower: FollowerDep, decisions: DecisionsDep, metrics: MetricsDep) -> Response:
    """Return the metrics in Prometheus' text format."""
    found = await read_status(redis, follower, decisions)
    return Response(metrics.render(found), media_type=CONTENT_TYPE_LATEST)
