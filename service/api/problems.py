"""Errors as problem details (RFC 9457): one shape, whatever went wrong and wherever."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

import orjson
from pydantic import BaseModel, Field

from service.errors import (
    InvalidRequest,
    MalformedJson,
    PayloadTooLarge,
    ReboundError,
    UnsupportedEncoding,
)

MEDIA_TYPE = "application/problem+json"
DEFECT = "this is a defect of the service; its log has the details, under the request id"
ID, OBJECT, ONE, MANY = "<id>", "<object>", "<one>", "<many>"  # pydantic names the member of a union that it chose so
OF_BODIES = (MalformedJson, PayloadTooLarge, UnsupportedEncoding)  # what every route with a body may answer
NO_PART = frozenset({ID, OBJECT, ONE, MANY, "<declared>", "<learned>"})  # of a field's path


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
    request_id: str = Field(description="also in the header X-Request-ID, and in the service's log")
    errors: list[FieldError] | None = Field(None, description="the fields that are wrong")
    allow: list[str] | None = Field(None, description="of a 405: the methods that the path takes")
    limit: int | None = Field(None, description="of a 413: the most bytes that are taken")
    accepts: str | None = Field(None, description="of a 415: the encoding that is taken")


def render(error: ReboundError, request_id: str) -> tuple[int, bytes, dict[str, str]]:
    """Return an error as (status, body, extra headers)."""
    problem = {
        "type": "about:blank",
        "title": error.title,
        "status": error.status,
        "code": error.code,
        "detail": error.detail,
        "request_id": request_id,
        **error.extra,
    }
    headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
    if isinstance(error, UnsupportedEncoding):
        headers["Accept-Encoding"] = error.extra["accepts"]
    if "allow" in error.extra:
        headers["Allow"] = ", ".join(error.extra["allow"])
    return error.status, orjson.dumps(problem, default=str), headers


def invalid(errors: Sequence[Mapping[str, Any]], *, skip: Sequence[str] = ("body", "query", "path")) -> InvalidRequest:
    """Make one error of pydantic's list. A field is a path such as `items.3.features`.

    Args:
        errors: as `ValidationError.errors()` returns them, at least one. The first 20 are told.
        skip: parts that FastAPI puts in front of a path, to be left out.
    """
    found = []
    for error in errors:
        path = [str(part) for part in error["loc"] if part not in NO_PART]
        if path and path[0] in skip:
            del path[0]
        if path[:1] == ["schema"] and path[1:2] in (["context"], ["item"]):
            del path[3:4]  # the type that the field is declared to have
        found.append({"field": ".".join(path) or "body", "message": str(error["msg"]).removeprefix("Value error, ")})
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
    """Return what a route's `responses` says of the errors that it may answer with."""
    found: dict[int | str, dict[str, Any]] = {}
    for kind in errors:
        found[kind.status] = {"model": Problem, "description": kind.title}
        if kind.retry_after is not None:
            found[kind.status]["headers"] = {
                "Retry-After": {"description": "seconds", "schema": {"type": "integer", "minimum": 1}}
            }
    return found
