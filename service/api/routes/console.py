"""`/console`: pages for people. They are clients of the same routes as everybody, and bring their key themselves."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from fastapi import APIRouter, Request
from fastapi.responses import Response
from fastapi.staticfiles import StaticFiles

from service.api.routes._depends import StrictRoute
from service.api.routes.docs import STRICT
from service.errors import NotFound

router = APIRouter(include_in_schema=False, route_class=StrictRoute)

FOLDER = Path(__file__).parents[2] / "console"
PAGE = "index.html"


@router.get("/console")
async def console(request: Request) -> Response:
    """Return the page."""
    return await _file(PAGE, request)


@router.get("/console/{name}")
async def console_file(name: str, request: Request) -> Response:
    """Return a script or a style that the page loads.

    Raises:
        NotFound: there is no such file.
    """
    if name == PAGE or name not in _names():
        raise NotFound(f"there is no file {name!r}")
    return await _file(name, request)


async def _file(name: str, request: Request) -> Response:
    response = await _files().get_response(name, request.scope)
    response.headers.update(STRICT | {"Cache-Control": "no-cache"})  # ask each time: 304 unless it changed
    return response


@cache
def _names() -> frozenset[str]:
    return frozenset(file.name for file in FOLDER.iterdir())


@cache
def _files() -> StaticFiles:
    return StaticFiles(directory=FOLDER)
