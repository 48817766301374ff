"""Builds the API worker as an ASGI application.

Guard (key, body limit, request id) → HotPath (/recommend, /feedback) → FastAPI (all other routes)
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any, TypedDict
from uuid import uuid4

import structlog
from fastapi import FastAPI, Request, Response, Security
from fastapi.exceptions import RequestValidationError
from fastapi.security import APIKeyHeader, HTTPBearer
from redis.asyncio import Redis
from starlette.exceptions import HTTPException
from starlette.routing import Match
from starlette.types import ASGIApp

from service.admin.loops import bootstrap
from service.api.guard import Guard
from service.api.hot_path import HotPath
from service.api.keys import KeyRing
from service.api.metrics import Metrics
from service.api.problems import DEFECT, MEDIA_TYPE, documented, for_status, invalid, render
from service.api.replies import HotRoutes
from service.api.routes import (
    changes,
    console,
    dead_letters,
    decisions,
    docs,
    evaluations,
    experiments,
    explanations,
    items,
    loops,
    policies,
    releases,
    status,
    users,
)
from service.errors import Forbidden, InvalidRequest, RateLimited, ReboundError, StoreUnavailable, Unauthorized
from service.serve.activity import ActivityKeeper
from service.serve.budgets import BudgetKeeper
from service.serve.edges import EdgeKeeper
from service.serve.explainer import Explainer
from service.serve.feedback import FeedbackJoiner
from service.serve.follower import Follower
from service.serve.limits import Limiter
from service.serve.misfit_counter import MisfitCounter
from service.serve.recommend import Recommender
from service.serve.release_counter import ReleaseCounter
from service.settings import Settings
from service.store.connection import connect, end
from service.store.decisions import DecisionWriter
from service.store.group_commit import GroupCommit
from service.store.upgrade import upgrade
from service.store.workers import sign_off
from service.version import VERSION

log = structlog.get_logger()

DESCRIPTION = """Online recommendation that keeps learning while the market shifts.

Ask `/recommend`, report to `/feedback`, and the policy that serves has learned from it within a second.
Errors are problem details (RFC 9457) with a stable `code`."""
TAGS = [
    {"name": "decide", "description": "Ask for items, report rewards, look a decision up."},
    {"name": "items", "description": "What there is to recommend, and the import of a historical log."},
    {"name": "policies", "description": "Kinds, policies, traffic, releases, rollback."},
    {"name": "evaluations", "description": "Would another policy have been better? From the log, or a refusal."},
    {"name": "experiments", "description": "Which policy is better, on people? With intervals that hold at any time."},
    {"name": "loops", "description": "Decision problems, each with its own catalogue, policies, log and settings."},
    {"name": "users", "description": "What is kept of one user, and his erasure."},
    {"name": "status", "description": "Is it up, is it ready, is it learning?"},
]

ROUTES = (
    decisions,
    items,
    policies,
    explanations,
    releases,
    dead_letters,
    evaluations,
    experiments,
    loops,
    users,
    changes,
    status,
    docs,
    console,
)

# Checked by the guard; declared here for /docs and for generated clients.
KEY = APIKeyHeader(name="X-API-Key", auto_error=False, description="a key of this service, if keys are set")
BEARER = HTTPBearer(auto_error=False, description="the same key as a bearer token")


class State(TypedDict):
    """The long-lived objects of a worker, which handlers find in `request.state`."""

    redis: Redis
    follower: Follower
    decisions: DecisionWriter
    misfits: MisfitCounter
    explainer: Explainer
    hot: HotRoutes
    metrics: Metrics


def create_app(settings: Settings, *, hot_path: bool = True) -> ASGIApp:
    """Make one API worker as an ASGI application.

    Args:
        hot_path: False leaves the hot routes to FastAPI's router, for the tests that compare both.

    Raises:
        InvalidKeys: the file of keys cannot be used.
    """
    assert settings.redis_url is not None
    keys, metrics = KeyRing.of(settings), Metrics()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[State]:
        async with AsyncExitStack() as stack:
            redis = connect(str(settings.redis_url), name="api", timeout_s=settings.store_timeout_s)
            stack.push_async_callback(redis.aclose)
            follower = Follower(redis, worker=f"{socket.gethostname()}-{os.getpid()}-{uuid4().hex[:6]}")
            commit = GroupCommit(redis, follower.open_time)
            decisions = DecisionWriter(commit, buffer=settings.buffer_decisions, usable=follower.store_usable)
            stack.push_async_callback(decisions.close)
            await _when_there(redis, follower)
            misfits, released = MisfitCounter(redis), ReleaseCounter(redis)
            budgets = BudgetKeeper(follower, redis)
            tasks = [
                *follower.run(),
                asyncio.create_task(misfits.run()),
                asyncio.create_task(released.run()),
                asyncio.create_task(budgets.run()),
                asyncio.create_task(_count(metrics, follower, decisions)),
            ]
            for task in tasks:
                task.add_done_callback(_end_worker)
            activity = ActivityKeeper(follower, redis, commit)
            edges, limiter = EdgeKeeper(follower, redis, commit), Limiter(commit, budgets)
            explainer = Explainer(follower, redis, activity, limiter, settings)
            recommender = Recommender(follower, decisions, misfits, activity, limiter, released, settings)
            hot.routes = HotRoutes(recommender, FeedbackJoiner(follower, commit), activity, edges, metrics)
            try:
                yield State(
                    redis=redis,
                    follower=follower,
                    decisions=decisions,
                    misfits=misfits,
                    explainer=explainer,
                    hot=hot.routes,
                    metrics=metrics,
                )
            finally:
                await explainer.close()
                await end(*tasks)
                with suppress(StoreUnavailable):
                    await sign_off(redis, follower.worker)

    app = FastAPI(
        title="Rebound",
        version=VERSION,
        description=DESCRIPTION,
        openapi_tags=TAGS,
        docs_url=None,  # `routes/docs.py` serves both
        redoc_url=None,
        openapi_url=None,
        lifespan=lifespan,
        redirect_slashes=False,  # `a/` is another item than `a`
        responses=documented(InvalidRequest, Unauthorized, Forbidden, RateLimited, ReboundError),
        dependencies=[Security(KEY), Security(BEARER)],
    )
    for routes in ROUTES:
        app.include_router(routes.router)
    app.add_exception_handler(ReboundError, _rebound_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _defect)  # and is raised again, to the guard, which logs it
    hot = HotPath(app, metrics)
    return Guard(
        hot if hot_path else app,
        keys,
        metrics,
        max_body_bytes=settings.max_body_bytes,
        this_machine_only=not keys.keys and not settings.without_keys,
    )


def _end_worker(task: asyncio.Task[None]) -> None:
    """Stop the worker when a background task fails; the supervisor restarts it."""
    if not task.cancelled() and (error := task.exception()):
        log.critical("a background task died; this worker ends", exc_info=error)
        signal.raise_signal(signal.SIGTERM)


async def _when_there(redis: Redis, follower: Follower) -> None:
    """Wait for Redis (compose starts everything at once), upgrade its data, then load the loops."""
    pause = 0.1
    await upgrade(redis)
    while True:
        try:
            await bootstrap(redis)
            await follower.start()
            return
        except StoreUnavailable:
            log.warning("waiting for redis")
            await asyncio.sleep(pause)
            pause = min(pause * 2, 2.0)


async def _count(metrics: Metrics, follower: Follower, decisions: DecisionWriter) -> None:
    while True:
        metrics.worker(
            buffered=decisions.buffered,
            dropped=decisions.dropped,
            refused=follower.refused,
            swaps=follower.swaps,
        )
        await asyncio.sleep(1.0)


def _problem(request: Request, error: ReboundError) -> Response:
    code, body, headers = render(error, request.state.request_id)
    return Response(body, code, headers, media_type=MEDIA_TYPE)


async def _rebound_error(request: Request, error: Any) -> Response:
    return _problem(request, error)


async def _validation_error(request: Request, error: Any) -> Response:
    return _problem(request, invalid(error.errors()))


async def _defect(request: Request, error: Any) -> Response:
    return _problem(request, ReboundError(DEFECT))


async def _http_error(request: Request, error: Any) -> Response:
    found = for_status(error.status_code, str(error.detail))
    if error.status_code == 404:
        found.detail = f"there is no path {request.url.path!r}; GET /docs lists all"
    elif error.status_code == 405:
        found.extra["allow"] = _methods(request)
        found.detail = f"this path takes {', '.join(found.extra['allow'])}"
    return _problem(request, found)


def _methods(request: Request) -> list[str]:
    """Return the methods that a path takes, over all routes that match it. The guard turns HEAD into GET."""
    methods: set[str] = set()
    for route in (route for routes in ROUTES for route in routes.router.routes):
        if route.matches(request.scope)[0] is not Match.NONE:
            methods |= getattr(route, "methods", None) or set()
    return sorted(methods | ({"HEAD"} if "GET" in methods else set()))
