"""The API worker, put together.

Guard (key, body limit, request id) → HotPath (/recommend, /feedback) → FastAPI (all else)
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
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from redis.asyncio import Redis
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from service.api.guard import Guard
from service.api.hot import Hot, HotPath
from service.api.metrics import Metrics
from service.api.problems import MEDIA_TYPE, Problem, for_status, invalid, render
from service.api.routes import decisions, items, loops, policies, status
from service.decide.control import Control
from service.decide.live import Live
from service.errors import ReboundError, StoreUnavailable
from service.settings import Settings
from service.store.connection import GroupCommit, connect
from service.store.decisions import DecisionLog
from service.store.loops import sign_off

log = structlog.get_logger()

DESCRIPTION = """Online recommendation that keeps learning while the market shifts.

Ask `/recommend`, report to `/feedback`, and the policy that serves has learned from it within a second.
Errors are problem details (RFC 9457) with a stable `code`."""


class State(TypedDict):
    """What a worker holds open, as handlers see it in `request.state`."""

    redis: Redis
    live: Live
    control: Control
    decisions: DecisionLog
    hot: Hot
    metrics: Metrics


def create_app(settings: Settings) -> ASGIApp:
    """One API worker as an ASGI application."""
    assert settings.redis_url is not None
    metrics = Metrics()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[State]:
        async with AsyncExitStack() as stack:
            redis = connect(str(settings.redis_url), name="api", timeout_s=settings.store_timeout_s)
            stack.push_async_callback(redis.aclose)
            live = Live(redis, worker=f"{socket.gethostname()}-{os.getpid()}-{uuid4().hex[:6]}")
            control = Control(redis, live)
            commit = GroupCommit(redis)
            decisions = DecisionLog(commit, buffer=settings.buffer_decisions)
            stack.push_async_callback(decisions.close)
            await _when_there(control, live)
            tasks = [*live.run(), asyncio.create_task(_gauges(metrics, live, decisions))]
            for task in tasks:
                task.add_done_callback(_end_worker)
            hot.hot = Hot(live, decisions, commit, settings, metrics)
            state = State(redis=redis, live=live, control=control, decisions=decisions, hot=hot.hot, metrics=metrics)
            try:
                yield state
            finally:
                await _end(*tasks)
                with suppress(StoreUnavailable):
                    await sign_off(redis, live.worker)

    app = FastAPI(
        title="Rebound",
        version="0.1.0",
        description=DESCRIPTION,
        lifespan=lifespan,
        responses={500: {"model": Problem, "description": "A defect of the service"}},
    )
    for routes in (decisions, items, policies, loops, status):
        app.include_router(routes.router)
    app.add_exception_handler(ReboundError, _rebound_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)
    hot = HotPath(app, metrics)
    return Guard(hot, settings)


def _end_worker(task: asyncio.Task[None]) -> None:
    """A worker that no longer follows its store is worse than none: whoever started it starts another."""
    if not task.cancelled() and (error := task.exception()):
        log.critical("a background task died; this worker ends", exc_info=error)
        signal.raise_signal(signal.SIGTERM)


async def _end(*tasks: asyncio.Task[None]) -> None:
    """Cancel until it is done: a cancellation that meets a time-out inside the Redis client can get lost."""
    while waiting := [task for task in tasks if not task.done()]:
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting, timeout=0.5)


async def _when_there(control: Control, live: Live) -> None:
    """Wait for Redis (compose starts everything at once), then load what is to be served."""
    pause = 0.1
    while True:
        try:
            await control.bootstrap()
            await live.start()
            return
        except StoreUnavailable:
            log.warning("waiting for redis")
            await asyncio.sleep(pause)
            pause = min(pause * 2, 2.0)


async def _gauges(metrics: Metrics, live: Live, decisions: DecisionLog) -> None:
    while True:
        metrics.worker(
            buffered_decisions=decisions.buffered,
            dropped_decisions=decisions.dropped,
            refused_snapshots=live.refused,
            swaps=live.swaps,
        )
        await asyncio.sleep(1.0)


def _problem(error: ReboundError) -> Response:
    code, body, headers = render(error)
    return Response(body, code, headers, media_type=MEDIA_TYPE)


async def _rebound_error(request: Request, error: Any) -> Response:
    return _problem(error)


async def _validation_error(request: Request, error: Any) -> Response:
    return _problem(invalid(error.errors()))


async def _http_error(request: Request, error: Any) -> Response:
    return _problem(for_status(error.status_code, str(error.detail)))
