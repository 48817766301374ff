"""The base of all routes, and what their handlers are given."""

from __future__ import annotations

import re
from collections.abc import Callable, Coroutine
from typing import Annotated, Any

from fastapi import Depends, Path, Query, Request, Response
from fastapi.routing import APIRoute
from redis.asyncio import Redis
from starlette.convertors import Convertor, register_url_convertor

from service.admin.adoption import Adoption
from service.api.hot_path import check_parameters
from service.api.keys import Key
from service.api.metrics import Metrics
from service.api.replies import HotRoutes, parse
from service.api.schemas import ID_LENGTH, LOOP_LENGTH, Changed
from service.errors import InvalidRequest
from service.serve.explainer import Explainer
from service.serve.follower import Follower
from service.serve.ids import DEFAULT_LOOP
from service.serve.misfit_counter import MisfitCounter
from service.store.decisions import DecisionWriter

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class AnyText(Convertor[str]):
    """Matches the rest of a path whatever it holds, slashes and line feeds included: `{item_id:any}`."""

    regex = "(?s:.*)"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("any", AnyText())
# Routes that name no loop and take a key for some loops all the same: they tell of no loop, or of the key's only.
FOR_KEYS_OF_SOME_LOOPS = frozenset(
    {
        *("/kinds", "/loops", "/status", "/healthz", "/readyz"),
        *("/docs", "/openapi.json", "/assets/{name}", "/console", "/console/{name}"),
    }
)
JSON_TYPE = re.compile(r"application/(.*\+)?json")


class StrictRequest(Request):
    """Reads JSON by the same parser as the hot path."""

    async def json(self) -> Any:
        if not hasattr(self, "_json"):
            self._json = parse(await self.body())
        return self._json


class StrictRoute(APIRoute):
    """Reads bodies as `StrictRequest`s, and refuses query parameters that it does not know, and keys of other loops."""

    def get_route_handler(self) -> Handler:
        """Wrap FastAPI's handler."""
        handler = super().get_route_handler()
        known = [parameter.alias for parameter in self.dependant.query_params]
        in_path = any(parameter.alias == "loop" for parameter in self.dependant.path_params)

        async def strict(request: Request) -> Response:
            given = [name for name, _ in request.query_params.multi_items()]
            check_parameters(given, [*known, "loop"] if in_path else known)
            if in_path and "loop" in given and request.query_params["loop"] != request.path_params["loop"]:
                raise InvalidRequest("loop", "the path names another loop than the query")
            self.check_loop(request, named="loop" in known or in_path)
            request = StrictRequest(request.scope, request.receive)
            if self.body_field is not None:
                self.check_media_type(request)
                await request.json()  # here, for FastAPI answers every error inside its own call with a plain 400
            return await handler(request)

        return strict

    def check_loop(self, request: Request, *, named: bool) -> None:
        """Refuse a key that is not for the loop of this request, or not for all loops where the route names none.

        Raises:
            Forbidden.
        """
        key: Key = request.state.key
        if named:
            key.check(request.path_params.get("loop") or request.query_params.get("loop", DEFAULT_LOOP))
        elif self.path not in FOR_KEYS_OF_SOME_LOOPS:
            key.check_all_loops()

    def check_media_type(self, request: Request) -> None:
        """Refuse a body that does not say that it is JSON: such a request could come from a page of another site.

        Raises:
            InvalidRequest.
        """
        media_type = request.headers.get("content-type", "").split(";")[0].strip().lower()
        if not JSON_TYPE.fullmatch(media_type):
            raise InvalidRequest("body", "send JSON, with the header Content-Type: application/json")


class HotRoute(StrictRoute):
    """Takes every body for JSON, whatever its header says, as the hot path does."""

    def check_loop(self, request: Request, *, named: bool) -> None:
        """Leave it to the handler: the loop may stand in the body, or in the id of a decision."""

    def check_media_type(self, request: Request) -> None:
        """Say that the body is JSON, or FastAPI would not read it."""
        headers = [(name, value) for name, value in request.scope["headers"] if name != b"content-type"]
        request.scope["headers"] = [*headers, (b"content-type", b"application/json")]


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


def _explainer(request: Request) -> Explainer:
    explainer: Explainer = request.state.explainer
    return explainer


def _key(request: Request) -> Key:
    key: Key = request.state.key
    return key


FollowerDep = Annotated[Follower, Depends(_follower)]
RedisDep = Annotated[Redis, Depends(_redis)]
KeyDep = Annotated[Key, Depends(_key)]
ExplainerDep = Annotated[Explainer, Depends(_explainer)]
HotDep = Annotated[HotRoutes, Depends(_hot)]
MetricsDep = Annotated[Metrics, Depends(_metrics)]
DecisionsDep = Annotated[DecisionWriter, Depends(_decisions)]
MisfitsDep = Annotated[MisfitCounter, Depends(_misfits)]
LoopParam = Annotated[str, Query(description="name of the loop", max_length=LOOP_LENGTH)]

IdInPath = Annotated[str, Path(min_length=1, max_length=ID_LENGTH)]


def changed(adoption: Adoption) -> Changed:
    """Say which workers serve a change."""
    return Changed(
        epoch=adoption.epoch,
        adopted=not adoption.missing,
        workers=len(adoption.there) + len(adoption.missing),
        missing=adoption.missing,
    )
