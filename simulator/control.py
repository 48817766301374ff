"""Serve the control endpoint of a traffic generator: fire a shock, look at the traffic."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import uvicorn
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel, ConfigDict, Field

from simulator.errors import UsageError
from simulator.traffic import TrafficGenerator


class ShockRequest(BaseModel):
    """The shock to fire."""

    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, Field(description="such as taste-swap; GET / lists all")]


def control_app(generator: TrafficGenerator) -> FastAPI:
    """Make the application: POST /shock {"name": "taste-swap"}, GET /, GET /healthz."""
    app = FastAPI(
        title="Rebound live traffic",
        description="Simulated users; fire a shock and watch the loop recover.",
        docs_url=None,  # FastAPI's page loads its scripts from elsewhere
        redoc_url=None,
    )

    @app.post("/shock", status_code=202)
    async def shock(body: ShockRequest) -> dict[str, Any]:
        """Change the world now."""
        try:
            return generator.fire_shock(body.name)
        except UsageError as error:
            raise HTTPException(404, str(error)) from error

    @app.get("/")
    async def status() -> dict[str, Any]:
        """Return counts, failures, and the true click rates, which the service does not know."""
        return generator.status()

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Tell that the process is alive."""
        return {"status": "ok"}

    return app


class _Server(uvicorn.Server):
    """A server that leaves signals to `serve`."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def serve(generator: TrafficGenerator, *, host: str, port: int) -> None:
    """Send traffic and serve the control endpoint, until SIGTERM or SIGINT.

    Raises:
        Refused: the service wants another key.
        UsageError: the service lacks the kind of a policy.
    """
    stop = asyncio.Event()
    server = _Server(
        uvicorn.Config(control_app(generator), host=host, port=port, log_level="warning", timeout_graceful_shutdown=3)
    )
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    traffic = asyncio.create_task(generator.run(stop))
    endpoint = asyncio.create_task(server.serve())
    await asyncio.wait([traffic, endpoint], return_when=asyncio.FIRST_COMPLETED)
    stop.set()
    server.should_exit = True
    try:
        await asyncio.gather(traffic, endpoint)
    finally:
        for listener in getattr(server, "servers", ()):
            listener.close()  # uvicorn leaves them open if it is told to stop while it starts
