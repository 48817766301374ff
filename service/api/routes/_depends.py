"""What handlers are given."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Annotated, Any

from fastapi import Depends, Query, Request, Response
from fastapi.routing import APIRoute
from redis.asyncio import Redis

from service.api.hot import Hot, parse
from service.api.metrics import Metrics
from service.api.schemas import Changed
from service.decide.control import Adoption, Control
from service.decide.live import Live
from service.store.decisions import DecisionLog


class StrictRequest(Request):
    """JSON by the same parser as on the hot routes."""

    async def json(self) -> Any:
        return parse(await self.body())


class StrictRoute(APIRoute):
    """Bodies are read as `StrictRequest`s."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def strict(request: Request) -> Response:
            return await handler(StrictRequest(request.scope, request.receive))

        return strict


def _control(request: Request) -> Control:
    control: Control = request.state.control
    return control


def _live(request: Request) -> Live:
    live: Live = request.state.live
    return live


def _redis(request: Request) -> Redis:
    redis: Redis = request.state.redis
    return redis


def _hot(request: Request) -> Hot:
    hot: Hot = request.state.hot
    return hot


def _metrics(request: Request) -> Metrics:
    metrics: Metrics = request.state.metrics
    return metrics


def _decisions(request: Request) -> DecisionLog:
    decisions: DecisionLog = request.state.decisions
    return decisions


ControlDep = Annotated[Control, Depends(_control)]
LiveDep = Annotated[Live, Depends(_live)]
RedisDep = Annotated[Redis, Depends(_redis)]
HotDep = Annotated[Hot, Depends(_hot)]
MetricsDep = Annotated[Metrics, Depends(_metrics)]
DecisionsDep = Annotated[DecisionLog, Depends(_decisions)]
LoopParam = Annotated[str, Query(description="name of the loop", max_length=64)]


def changed(adoption: Adoption) -> Changed:
    """What a change answers."""
    return Changed(
        epoch=adoption.epoch,
        adopted=not adoption.missing,
        workers=len(adoption.there) + len(adoption.missing),
        missing=adoption.missing,
    )
