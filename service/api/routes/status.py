"""Is it up, is it ready, is it learning?"""

from typing import Any

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST

from service.api.problems import documented
from service.api.routes._depends import DecisionsDep, LiveDep, MetricsDep, RedisDep
from service.api.status import read_status
from service.errors import StoreUnavailable

router = APIRouter(tags=["status"])


@router.get("/healthz")
async def healthz() -> dict[str, str]:
    """The process is alive."""
    return {"status": "ok"}


@router.get("/readyz", responses=documented(StoreUnavailable))
async def readyz(redis: RedisDep, live: LiveDep) -> dict[str, Any]:
    """It can serve: the store answers, and every loop is loaded."""
    try:
        await redis.ping()
    except Exception as error:
        raise StoreUnavailable("Redis does not answer; /recommend goes on from memory") from error
    return {"status": "ready", "loops": live.names}


@router.get("/status")
async def status(redis: RedisDep, live: LiveDep, decisions: DecisionsDep) -> dict[str, Any]:
    """Is it learning? Counters, lag, age of what is served, and what is broken."""
    return await read_status(redis, live, decisions)


@router.get("/metrics", response_class=Response)
async def metrics(redis: RedisDep, live: LiveDep, decisions: DecisionsDep, metrics: MetricsDep) -> Response:
    """For Prometheus."""
    found = await read_status(redis, live, decisions)
    return Response(metrics.render(found), media_type=CONTENT_TYPE_LATEST)
