"""`/docs` and `/openapi.json`. Scripts and styles come with the service: no page loads anything from elsewhere."""

from __future__ import annotations

from functools import cache
from http import HTTPStatus
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles

from service.api.guard import OPEN
from service.api.problems import MEDIA_TYPE
from service.api.routes._depends import StrictRoute
from service.errors import NotFound

router = APIRouter(include_in_schema=False, route_class=StrictRoute)

SHIPPED = frozenset({"docs.js", "swagger-ui-bundle.js", "swagger-ui.css"})
POLICY = {  # what a page of ours may load, and from where
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "img-src": "'self' data:",  # the pictures in Swagger UI's style
    "connect-src": "'self'",  # openapi.json, and what a reader tries out
    "base-uri": "'none'",
    "form-action": "'none'",
    "frame-ancestors": "'none'",
}
STRICT = {
    "Content-Security-Policy": "; ".join(f"{what} {where}" for what, where in POLICY.items()),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
# Addresses are relative, so that the page also works under a prefix that a proxy adds.
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Rebound: HTTP API</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="assets/swagger-ui.css">
</head>
<body>
<div id="swagger-ui"></div>
<noscript>This page needs JavaScript. <a href="openapi.json">openapi.json</a> holds the same.</noscript>
<script src="assets/swagger-ui-bundle.js"></script>
<script src="assets/docs.js"></script>
</body>
</html>
"""


@router.get("/docs")
async def docs() -> HTMLResponse:
    """Return the interactive documentation."""
    return HTMLResponse(PAGE, headers=STRICT)


@router.get("/openapi.json")
async def openapi(request: Request) -> JSONResponse:
    """Return the description of the API for programs."""
    return JSONResponse(describe(request.app))


@router.get("/assets/{name}")
async def asset(name: str, request: Request) -> Response:
    """Return a file that the pages load.

    Raises:
        NotFound: there is no such file.
    """
    if name not in SHIPPED:
        raise NotFound(f"there is no file {name!r}")
    response = await _files().get_response(name, request.scope)
    response.headers.update(STRICT | {"Cache-Control": "no-cache"})  # ask each time: 304 unless it changed
    return response


@cache
def _files() -> StaticFiles:
    return StaticFiles(directory=Path(__file__).parent.parent / "assets", packages=[("fastapi_offline", "static")])


def describe(app: FastAPI) -> dict[str, Any]:
    """Return the OpenAPI document: FastAPI's, with errors as problem details, and without keys where none is asked."""
    if app.openapi_schema is None:
        spec = app.openapi()
        for path, operations in spec["paths"].items():
            for operation in operations.values():
                if path in OPEN:
                    operation["security"] = []
                for status, response in operation["responses"].items():
                    if int(status) >= HTTPStatus.BAD_REQUEST:
                        [described] = response["content"].values()
                        response["content"] = {MEDIA_TYPE: described}
    return app.openapi_schema or {}
