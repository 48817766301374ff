"""What handlers are given."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Annotated, Any

from fastapi import Depends, Query, Request, Response
from fastapi.routing import APIRoute
from redis.asyncio import Redis

from service.admin.adoption import Adoption
from service.api.hot_path import check_parameters
from service.api.metrics import Metrics
from service.api.replies import HotRoutes, parse
from service.api.schemas import Changed
from service.serve.follower import Follower
from service.serve.misfit_counter import MisfitCounter
from service.store.decisions import DecisionWriter


class StrictRequest(Request):
    """JSON by the same parser as on the hot routes."""

    async def json(self) -> Any:
        return parse(await self.body())


class StrictRoute(APIRoute):
    """Reads bodies as `StrictRequest`s, and refuses query parameters that it does not know."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()
        known = [parameter.alias for parameter in self.dependant.query_params]

        async def strict(request: Request) -> Response:
            check_parameters(request.query_params, known)
            return await handler(StrictRequest(request.scope, request.receive))

        return strict


def _follower(request: Request) -> Follower:
    follower: Follower = request.state.follower
    return follower


def _redis(request: Request) -> Redis:
    redis: Redis = request.state.redis
    return redis


def _hot(request: Request) -> HotRoutes:
    hot: HotRoutes = request.state.hot
    return hot


def _metrics(request: Request) -> Metrics:
    metrics: Metrics = request.state.metrics
    return metrics


def _decisions(request: Request) -> DecisionWriter:
    decisions: DecisionWriter = request.state.decisions
    return decisions


def _misfits(request: Request) -> MisfitCounter:
    misfits: MisfitCounter = request.state.misfits
    return misfits


FollowerDep = Annotated[Follower, Depends(_follower)]
RedisDep = Annotated[Redis, Depends(_redis)]
HotDep = Annotated[HotRoutes, Depends(_hot)]
MetricsDep = Annotated[Metrics, Depends(_metrics)]
DecisionsDep = Annotated[DecisionWriter, Depends(_decisions)]
MisfitsDep = Annotated[MisfitCounter, Depends(_misfits)]
LoopParam = Annotated[str, Query(description="name of the loop", max_length=64)]


def changed(adoption: Adoption) -> Changed:
    """Say which workers serve a change."""
    return Changed(
        epoch=adoption.epoch,
        adopted=not adoption.missing,
        workers=len(adoption.there) + len(adoption.missing),
        missing=adoption.missing,
    )
