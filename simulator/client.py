"""A client of the service, over HTTP alone, whose errors say what to do next."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, Self, TypeVar
from urllib.parse import quote

import httpx
import orjson

from simulator.connections import ConnectionBroken, ConnectionPool
from simulator.errors import Failing, Refused, ServiceError, TooSlow, Unreachable
from simulator.kinds import Kind
from simulator.replies import PolicyState, Recommendation
from simulator.world import Item, Tie

T = TypeVar("T")

BATCH = 1000  # entries that a batch route takes


class ServiceClient:
    """A client of one service at one address.

    Args:
        url: such as http://127.0.0.1:8000.
        api_key: sent as X-API-Key; the arena and `live` need an admin's.
        timeout_s: seconds after which a request has failed, > 0.
        connections: requests of the hot routes in flight at most; further ones wait.

    Every method raises a `ServiceError` where the service does not do as asked.
    """

    def __init__(self, url: str, *, api_key: str | None = None, timeout_s: float = 30, connections: int = 256) -> None:
        self.url = url.rstrip("/")
        self._timeout_s = timeout_s
        headers = {"content-type": "application/json"} | ({"x-api-key": api_key} if api_key else {})
        self._http = httpx.AsyncClient(base_url=self.url, headers=headers, timeout=timeout_s, trust_env=False)
        self._pool = ConnectionPool(self.url, headers=headers, limit=connections)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._http.aclose()
        await self._pool.aclose()

    # ---- the hot routes

    async def recommend(
        self, loop: str, user_id: str, context: Mapping[str, Any], candidates: Sequence[Item] | None = None
    ) -> Recommendation:
        """Ask for one decision.

        Args:
            candidates: items without features are sent as their ids; None: the loop's catalogue.
        """
        asked: dict[str, Any] = {"loop": loop, "user_id": user_id, "context": context}
        if candidates is not None:
            asked["candidates"] = [
                {"id": item.id, "features": item.features} if item.features else item.id for item in candidates
            ]
        reply = await self._post("/recommend", asked)
        return _parsed("POST /recommend", reply, Recommendation.parse)

    async def feedback(self, loop: str, reports: Sequence[Mapping[str, Any]]) -> list[str | None]:
        """Send up to 1000 reports; return the status of each, in their order: "accepted" or why it was not."""
        reply = await self._post("/feedback", {"loop": loop, "feedback": reports})
        return _parsed("POST /feedback", reply, lambda found: [result.get("status") for result in found["results"]])

    async def activity(self, loop: str, activity: Sequence[Mapping[str, Any]]) -> None:
        """Send up to 1000 activities.

        Raises:
            Failing: one of them was not taken.
        """
        reply = await self._post("/activity", {"loop": loop, "activity": activity})
        for result in _parsed("POST /activity", reply, lambda found: list(found["results"])):
            if result.get("status") not in ("accepted", "duplicate"):
                raise Failing(f"POST /activity: an activity was not taken: {result}")

    async def move_edges(self, loop: str, before: Collection[Tie], now: Collection[Tie]) -> None:
        """Send the ties that are new, up to 1000 at once, and delete those that are gone.

        Raises:
            Failing: one of them was not taken.
        """
        new = [tie.edge for tie in sorted(set(now).difference(before))]
        for start in range(0, len(new), BATCH):
            reply = await self._post("/edges", {"loop": loop, "edges": new[start : start + BATCH]})
            for result in _parsed("POST /edges", reply, lambda found: list(found["results"])):
                if result.get("status") not in ("accepted", "duplicate"):
                    raise Failing(f"POST /edges: an edge was not taken: {result}")
        for tie in sorted(set(before).difference(now)):
            await self._call("DELETE", "/edges", params={"loop": loop, **tie.edge})

    # ---- loops, items, history

    async def get_loop(self, loop: str) -> dict[str, Any] | None:
        """Return the settings of a loop, or None where there is no such loop."""
        try:
            found: dict[str, Any] = await self._call("GET", f"/loops/{_segment(loop)}")
        except Refused as error:
            if error.status == 404:
                return None
            raise
        return found

    async def put_loop(self, loop: str, settings: Mapping[str, Any]) -> None:
        await self._call("PUT", f"/loops/{_segment(loop)}", settings)

    async def delete_loop(self, loop: str) -> None:
        await self._call("DELETE", f"/loops/{_segment(loop)}")

    async def items(self, loop: str) -> list[str]:
        """Return the ids of the catalogue."""
        ids: list[str] = []
        after: str | None = None
        while True:
            asked = {"loop": loop, "limit": BATCH} | ({"after": after} if after else {})
            page = await self._call("GET", "/items", params=asked)
            more, after = _parsed(
                "GET /items", page, lambda found: ([item["id"] for item in found["items"]], found.get("next"))
            )
            ids += more
            if after is None:
                return ids

    async def put_items(self, loop: str, items: Iterable[Item]) -> None:
        for batch in _batches({"id": item.id, "features": item.features} for item in items):
            await self._call("POST", "/items", {"items": batch}, params={"loop": loop})

    async def delete_item(self, loop: str, item: str) -> None:
        await self._call("DELETE", f"/items/{_segment(item)}", params={"loop": loop})

    async def import_events(
        self, loop: str, events: Iterable[Mapping[str, Any]], *, progress: Callable[[int], None] = lambda done: None
    ) -> int:
        """Import a history in its order; return how many events were new.

        Args:
            progress: called after each batch with its number of events.
        """
        new = 0
        for batch in _batches(events):
            reply = await self._call("POST", "/events", {"events": batch}, params={"loop": loop})
            new += _parsed("POST /events", reply, lambda found: int(found.get("imported") or 0))
            progress(len(batch))
        return new

    # ---- policies

    async def kinds(self) -> dict[str, Kind]:
        """Return the kinds of policies that the service has, by name.

        Raises:
            Failing: the service is too old to tell.
        """
        try:
            reply = await self._call("GET", "/kinds")
        except Refused as error:
            if error.status == 404:
                raise Failing(f"{self.url} does not list its kinds of policies (GET /kinds): update it") from error
            raise
        found = _parsed("GET /kinds", reply, lambda reply: [Kind.parse(record) for record in reply["kinds"]])
        return {kind.name: kind for kind in found}

    async def create_policy(self, loop: str, name: str, kind: str, params: Mapping[str, Any]) -> None:
        await self._call("POST", "/policies", {"name": name, "kind": kind, "params": params}, params={"loop": loop})

    async def activate(self, loop: str, name: str) -> None:
        """Give a policy all traffic; return when every worker serves it.

        Raises:
            Failing: some worker has not adopted it.
        """
        reply = await self._call("POST", f"/policies/{_segment(name)}/activate", params={"loop": loop})
        adopted, missing = _parsed(
            "POST /policies/activate", reply, lambda found: (found.get("adopted"), found.get("missing") or ())
        )
        if not adopted:
            raise Failing(f"{name} does not serve everywhere: {', '.join(missing)} have not adopted it")

    async def policy(self, loop: str, name: str) -> PolicyState:
        reply = await self._call("GET", f"/policies/{_segment(name)}", params={"loop": loop})
        return _parsed("GET /policies/{name}", reply, PolicyState.parse)

    async def policies(self, loop: str) -> list[PolicyState]:
        reply = await self._call("GET", "/policies", params={"loop": loop})
        return _parsed("GET /policies", reply, lambda found: [PolicyState.parse(one) for one in found["policies"]])

    # ---- the service itself

    async def is_ready(self) -> bool:
        try:
            await self._call("GET", "/readyz")
        except ServiceError:
            return False
        return True

    async def wait_ready(self, within_s: float) -> None:
        """Return as soon as the service takes requests.

        Raises:
            ServiceError: why it takes none, after `within_s` seconds.
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
        """Send a request; return the JSON of the reply, None where it is empty.

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
        return self._json(method, path, reply.status_code, reply.content)

    async def _post(self, path: str, body: Mapping[str, Any]) -> Any:
        """Do the same for a hot route, at a tenth of the CPU."""
        try:
            async with asyncio.timeout(self._timeout_s):
                status, content = await self._pool.post(path, orjson.dumps(body))
        except TimeoutError as error:
            raise self._too_slow("POST", path) from error
        except ConnectionBroken as error:
            raise self._unreachable(error) from error
        return self._json("POST", path, status, content)

    def _too_slow(self, method: str, path: str) -> TooSlow:
        return TooSlow(f"{method} {path} got no answer in {self._timeout_s:g} s; is the service overloaded?")

    def _unreachable(self, error: Exception) -> Unreachable:
        return Unreachable(
            f"nothing answers at {self.url} ({type(error).__name__}: {error}): start the service with `rebound serve`, "
            "or give its address with --url"
        )

    def _json(self, method: str, path: str, status: int, content: bytes) -> Any:
        if status >= 400:
            raise _problem(method, path, status, content)
        if not content:
            return None
        try:
            return orjson.loads(content)
        except orjson.JSONDecodeError as error:
            raise Failing(f"{method} {path} answered with no JSON: is {self.url} a Rebound service?") from error


NEXT_STEP = {
    401: "give a key with --api-key or REBOUND_SIM_API_KEY",
    403: "this key may not do that; give an admin's with --api-key or REBOUND_SIM_API_KEY",
}


def _problem(method: str, path: str, status: int, content: bytes) -> ServiceError:
    """Make the error for a status ≥ 400."""
    try:
        problem = orjson.loads(content)
        code, detail = str(problem["code"]), str(problem["detail"])
    except (orjson.JSONDecodeError, KeyError, TypeError):
        code, detail = "unknown", content[:200].decode(errors="replace")
    text = f"{method} {path}: {status} {code}: {detail}"
    if status >= 500:
        return Failing(f"{text} (`GET /status` and the service's log say more)")
    message = f"{text}; {NEXT_STEP[status]}" if status in NEXT_STEP else text
    return Refused(message, status=status, code=code, detail=detail)


def _parsed(route: str, reply: Any, parse: Callable[[Any], T]) -> T:
    """Read a reply.

    Raises:
        Failing: it lacks something that the simulator needs.
    """
    try:
        return parse(reply)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        shown = orjson.dumps(reply)[:200].decode(errors="replace")
        raise Failing(f"{route}: the reply cannot be used ({type(error).__name__}: {error}): {shown}") from error


def _segment(name: str) -> str:
    """Quote an id so that it is one segment of a path."""
    return quote(name, safe="")


def _batches(entries: Iterable[T]) -> Iterable[list[T]]:
    """Cut into lists of at most 1000."""
    rest = iter(entries)
    while batch := list(islice(rest, BATCH)):
        yield batch
