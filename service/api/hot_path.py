"""The hot path: answers `/recommend` and `/feedback` in front of FastAPI's router.

The ordinary routes (`routes/decisions.py`) give the same answers with the same models. The hot path skips the router,
the dependency solver and a second validation of the reply (docs/decisions/0006 says how much time that saves).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any
from urllib.parse import parse_qsl

from pydantic import TypeAdapter
from starlette.types import ASGIApp, Receive, Scope, Send

from service.api.guard import problem, respond
from service.api.metrics import Metrics
from service.api.replies import RECOMMEND, HotRoutes, parse, validate
from service.api.schemas import FeedbackBody
from service.errors import InvalidRequest, ReboundError

FEEDBACK: TypeAdapter[Any] = TypeAdapter(FeedbackBody)


class HotPath:
    """Answers the hot routes, and passes every other request on to the app."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics
        self.routes: HotRoutes  # set by the lifespan, before the first request

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path")
        if scope["type"] != "http" or scope["method"] != "POST" or path not in ("/recommend", "/feedback"):
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        status = 500
        try:
            loop = loop_in(scope["query_string"])
            body, key = parse(scope["state"]["body"]), scope["state"]["key"]
            if path == "/recommend":
                status, reply = await self.routes.recommend(validate(RECOMMEND, body), loop=loop, key=key)
            else:
                status, reply = await self.routes.feedback(validate(FEEDBACK, body), loop=loop, key=key)
            await respond(send, status, reply, media_type="application/json")
        except ReboundError as error:
            status = error.status
            await problem(error, send, scope["state"]["request_id"])
        finally:
            self._metrics.request(path, status, time.perf_counter() - started)


def loop_in(query: bytes) -> str | None:
    """Return the loop that a query names.

    Raises:
        InvalidRequest: there is another parameter, or two loops.
    """
    if not query:
        return None
    found = parse_qsl(query.decode("latin-1"), keep_blank_values=True)
    check_parameters([name for name, _ in found], ("loop",))
    return dict(found).get("loop")


def check_parameters(given: Sequence[str], known: Sequence[str]) -> None:
    """Refuse query parameters that a route does not know, so that a typing error does not pass for a default.

    Raises:
        InvalidRequest: names the first that is unknown, or that is given twice.
    """
    for number, name in enumerate(given):
        if name not in known:
            takes = f"it takes {', '.join(known)}" if known else "it takes none"
            raise InvalidRequest(name, f"is no query parameter of this route; {takes}")
        if name in given[:number]:
            raise InvalidRequest(name, "stands twice in the query")
