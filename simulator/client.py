"""The service, as a client sees it: a thin layer over HTTP with errors that say what to do next."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, Self

import httpx
import orjson

from simulator.errors import Failing, Refused, ServiceError, TooSlow, Unreachable
from simulator.wire import Broken, Wire
from simulator.world import Item

AT_ONCE = 1000  # what a batch route takes


class Service:
    """One service at one address.

    Args:
        url: such as http://127.0.0.1:8000.
        api_key: sent as X-API-Key; the arena and `live` need an admin's.
        timeout_s: after which an answer counts as not coming.
        connections: requests of the hot routes in flight at most; more wait for their turn.
    """

    def __init__(self, url: str, *, api_key: str | None = None, timeout_s: float = 30, connections: int = 256) -> None:
        self.url = url.rstrip("/")
        self._timeout_s = timeout_s
        headers = {"content-type": "application/json"} | ({"x-api-key": api_key} if api_key else {})
        self._http = httpx.AsyncClient(base_url=self.url, headers=headers, timeout=timeout_s, trust_env=False)
        self._wire = Wire(self.url, headers=headers, most=connections)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._http.aclose()
        await self._wire.aclose()

    # ---- the hot routes

    async def recommend(self, loop: str, user_id: str, context: Mapping[str, Any]) -> dict[str, Any]:
        """One decision; the reply as it is."""
        reply: dict[str, Any] = await self._post("/recommend", {"loop": loop, "user_id": user_id, "context": context})
        return reply

    async def feedback(self, loop: str, reports: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """A batch of up to 1000 reports; one answer each, in their order."""
        reply = await self._post("/feedback", {"loop": loop, "feedback": reports})
        results: list[dict[str, Any]] = reply["results"]
        return results

    # ---- loops, items, history

    async def get_loop(self, loop: str) -> dict[str, Any] | None:
        """Its settings; None where there is no such loop."""
        try:
            found: dict[str, Any] = await self._call("GET", f"/loops/{loop}")
        except Refused as error:
            if error.status == 404:
                return None
            raise
        return found

    async def put_loop(self, loop: str, settings: Mapping[str, Any]) -> None:
        await self._call("PUT", f"/loops/{loop}", settings)

    async def delete_loop(self, loop: str) -> None:
        await self._call("DELETE", f"/loops/{loop}")

    async def items(self, loop: str) -> list[str]:
        """The ids of the catalogue."""
        ids: list[str] = []
        after: str | None = None
        while True:
            asked = {"loop": loop, "limit": AT_ONCE} | ({"after": after} if after else {})
            page = await self._call("GET", "/items", params=asked)
            ids += [item["id"] for item in page["items"]]
            after = page["next"]
            if after is None:
                return ids

    async def put_items(self, loop: str, items: Iterable[Item]) -> None:
        for part in _parts({"id": item.id, "features": item.features} for item in items):
            await self._call("POST", "/items", {"items": part}, params={"loop": loop})

    async def delete_item(self, loop: str, item: str) -> None:
        await self._call("DELETE", f"/items/{item}", params={"loop": loop})

    async def import_events(
        self, loop: str, events: Iterable[Mapping[str, Any]], *, progress: Callable[[int], None] = lambda done: None
    ) -> int:
        """Import a history, in its order; returns how many events were new. `progress` hears of every part sent."""
        new = 0
        for part in _parts(events):
            reply = await self._call("POST", "/events", {"events": part}, params={"loop": loop})
            new += int(reply["imported"])
            progress(len(part))
        return new

    # ---- policies

    async def create_policy(self, loop: str, name: str, kind: str, params: Mapping[str, Any]) -> None:
        await self._call("POST", "/policies", {"name": name, "kind": kind, "params": params}, params={"loop": loop})

    async def activate(self, loop: str, name: str) -> None:
        """Serve this policy alone; returns when every worker does.

        Raises:
            Failing: some worker has not adopted it.
        """
        reply = await self._call("POST", f"/policies/{name}/activate", params={"loop": loop})
        if not reply["adopted"]:
            raise Failing(f"{name} does not serve everywhere: {', '.join(reply['missing'])} have not adopted it")

    async def policy(self, loop: str, name: str) -> dict[str, Any]:
        reply: dict[str, Any] = await self._call("GET", f"/policies/{name}", params={"loop": loop})
        return reply

    async def policies(self, loop: str) -> list[dict[str, Any]]:
        reply = await self._call("GET", "/policies", params={"loop": loop})
        policies: list[dict[str, Any]] = reply["policies"]
        return policies

    # ---- the service itself

    async def is_ready(self) -> bool:
        try:
            await self._call("GET", "/readyz")
        except ServiceError:
            return False
        return True

    async def wait_ready(self, within_s: float) -> None:
        """Return as soon as it takes requests.

        Raises:
            ServiceError: why it does not, after `within_s` seconds.
        """
        deadline = time.monotonic() + within_s
        while True:
            try:
                await self._call("GET", "/readyz")
                return
            except Refused:
                raise
            except ServiceError:
                if time.monotonic() > deadline:
                    raise
            await asyncio.sleep(0.05)

    async def _call(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        params: Mapping[str, Any] | None = None,
    ) -> Any:
        """One request; the reply's JSON, None if it has none.

        Raises:
            Unreachable, TooSlow, Refused, Failing.
        """
        content = None if body is None else orjson.dumps(body)
        try:
            reply = await self._http.request(method, path, content=content, params=params)
        except httpx.TimeoutException as error:
            raise self._too_slow(method, path) from error
        except httpx.TransportError as error:
            raise self._unreachable(error) from error
        return self._answer(method, path, reply.status_code, reply.content)

    async def _post(self, path: str, body: Mapping[str, Any]) -> Any:
        """The same for the hot routes, at a tenth of the cost."""
        try:
            async with asyncio.timeout(self._timeout_s):
                status, content = await self._wire.post(path, orjson.dumps(body))
        except TimeoutError as error:
            raise self._too_slow("POST", path) from error
        except Broken as error:
            raise self._unreachable(error) from error
        return self._answer("POST", path, status, content)

    def _too_slow(self, method: str, path: str) -> TooSlow:
        return TooSlow(f"{method} {path} got no answer in {self._timeout_s:g} s; is the service overloaded?")

    def _unreachable(self, error: Exception) -> Unreachable:
        return Unreachable(
            f"nothing answers at {self.url} ({type(error).__name__}: {error}): start the service with `rebound serve`, "
            "or give its address with --url"
        )

    def _answer(self, method: str, path: str, status: int, content: bytes) -> Any:
        if status >= 400:
            raise _problem(method, path, status, content)
        if not content:
            return None
        try:
            return orjson.loads(content)
        except orjson.JSONDecodeError as error:
            raise Failing(f"{method} {path} answered with no JSON: is {self.url} a Rebound service?") from error


NEXT = {
    401: "give a key with --api-key or REBOUND_SIM_API_KEY",
    403: "this key may not do that; give an admin's with --api-key or REBOUND_SIM_API_KEY",
}


def _problem(method: str, path: str, status: int, content: bytes) -> ServiceError:
    """What a status ≥ 400 means."""
    try:
        problem = orjson.loads(content)
        code, detail = str(problem["code"]), str(problem["detail"])
    except (orjson.JSONDecodeError, KeyError, TypeError):
        code, detail = "unknown", content[:200].decode(errors="replace")
    said = f"{method} {path}: {status} {code}: {detail}"
    if status >= 500:
        return Failing(f"{said} (`GET /status` and the service's log say more)")
    message = f"{said}; {NEXT[status]}" if status in NEXT else said
    return Refused(message, status=status, code=code, detail=detail)


def _parts(things: Iterable[Any]) -> Iterable[list[Any]]:
    """Batches of at most 1000."""
    rest = iter(things)
    while part := list(islice(rest, AT_ONCE)):
        yield part
