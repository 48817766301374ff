"""Errors as problem details (RFC 9457): one shape, whatever went wrong and wherever."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

import orjson
from pydantic import BaseModel, Field

from service.errors import InvalidRequest, ReboundError, StoreUnavailable, UnsupportedEncoding

MEDIA_TYPE = "application/problem+json"


class FieldError(BaseModel):
    field: str
    message: str


class Problem(BaseModel):
    """An error. `code` is stable and made for programs; `detail` is for people."""

    type: str = "about:blank"
    title: str
    status: int
    code: str
    detail: str
    errors: list[FieldError] | None = Field(None, description="the fields that are wrong")


def render(error: ReboundError) -> tuple[int, bytes, dict[str, str]]:
    """Return (status, body, extra headers)."""
    problem = {
        "type": "about:blank",
        "title": error.title,
        "status": error.status,
        "code": error.code,
        "detail": error.detail,
        **error.extra,
    }
    headers = {"Retry-After": str(error.retry_after)} if isinstance(error, StoreUnavailable) else {}
    if isinstance(error, UnsupportedEncoding):
        headers["Accept-Encoding"] = error.extra["accepts"]
    if "allow" in error.extra:
        headers["Allow"] = ", ".join(error.extra["allow"])
    return error.status, orjson.dumps(problem, default=str), headers


def invalid(errors: Sequence[Mapping[str, Any]], *, skip: Sequence[str] = ("body", "query", "path")) -> InvalidRequest:
    """pydantic's list of errors as ours; the field is a path such as `items.3.features`."""
    found = []
    for error in errors:
        path = [str(part) for part in error["loc"] if not str(part).startswith("<")]  # tags of unions
        field = ".".join(path[1:] if path and path[0] in skip else path) or "body"
        found.append({"field": field, "message": str(error["msg"]).removeprefix("Value error, ")})
    problem = InvalidRequest(found[0]["field"], found[0]["message"])
    problem.extra["errors"] = found[:20]
    return problem


def for_status(status: int, detail: str) -> ReboundError:
    """Make the error of what the framework found (unknown path, wrong method)."""
    phrase = HTTPStatus(status).phrase
    error: ReboundError = ReboundError(detail, code=phrase.lower().replace(" ", "_"))
    error.status, error.title = status, phrase
    return error


def documented(*errors: type[ReboundError]) -> dict[int | str, dict[str, Any]]:
    """`responses=` of a route: the errors that it may answer with."""
    found: dict[int | str, dict[str, Any]] = {}
    kinds: tuple[type[ReboundError], ...] = (InvalidRequest, *errors)
    for kind in kinds:
        found[kind.status] = {
            "description": kind.title,
            "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
        }
    return found
