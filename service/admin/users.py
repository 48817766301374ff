"""What is kept of one user: shown, and erased (`service/learn/eraser.py` does it)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any
from uuid import uuid4

from redis.asyncio import Redis

from service.errors import InvalidRequest, NotFound
from service.records import START, Change, Event, LoggedActivity, order
from service.represent.graph import Tie
from service.represent.user_state import Activity, ItemFields, user_state
from service.store import change_log, edges, erasure_store, graph_store, item_store, loop_store, users
from service.store.connection import now
from service.store.decisions import read_ledger
from service.store.erasure_store import ErasureRecord, digest_of
from service.store.graph_store import Rewarded
from service.store.keys import Keys
from service.store.limits import counted_of

LOOKS = 50  # round trips of one page
FULL = 500  # decisions, events and activities after which a page ends


@dataclass
class UserPage:
    """A part of what is kept of a user; the first also holds what he did and whom he knows, and what comes of it."""

    activity: Sequence[Activity] = ()
    state: Mapping[str, Any] = field(default_factory=dict)
    edges: Sequence[Tie] = ()
    known_by: Sequence[str] = ()
    graph: Mapping[str, Any] = field(default_factory=dict)
    took: Sequence[Rewarded] = ()
    shown: Sequence[tuple[int, str]] = ()  # (unix ms, item) of impressions that caps count, oldest first
    taken: Sequence[tuple[int, str]] = ()  # the same of what he took
    decisions: list[dict[str, Any]] = field(default_factory=list)  # as `read_ledger` gives them
    events: list[Event] = field(default_factory=list)
    activity_log: list[LoggedActivity] = field(default_factory=list)
    next: str | None = None  # where the next page begins; None: this was the last


async def read_user(redis: Redis, loop: str, user: str, after: str | None = None) -> UserPage:
    """Return a page of what is kept of a user: what he did and whom he knows, decisions, events, all logged activity.

    Events and activity come in the order of their logs. There is no index by user: a page looks at some 25 000 keys of
    Redis, or 10 000 entries of the log, or 50 000 of that of activity, and may be empty.

    Args:
        after: `next` of the page before; None: the first.

    Raises:
        NotFound: there is no such loop.
        InvalidRequest: `after` is none that a page gave.
    """
    record = await loop_store.read_loop(redis, loop)
    keys = Keys(loop, record.id)
    page = UserPage()
    if after is None:
        page.activity = [Activity(*one) for one in await users.find_activity(redis, keys, user)]
        fields = ItemFields(await item_store.read_some(redis, keys, {one.item for one in page.activity}))
        page.shown, page.taken = await counted_of(redis, keys, user)
        page.state = user_state(page.activity, fields, at=round(1000 * await now(redis)))
        page.edges = [Tie(*one) for one in (await edges.edges_of(redis, keys, [user]))[user]]
        page.known_by = (await edges.known_by(redis, keys, [user]))[user]
        page.graph = (await graph_store.fields_of(redis, keys, [user]))[user]
        page.took = (await graph_store.rewarded_by(redis, keys, [user]))[user]
    room, place = _place(after)
    for _ in range(LOOKS):
        if room == "decisions":
            cursor, found = await users.find_decisions(redis, keys, user, int(place))
            for decision in found:
                with suppress(NotFound):  # its time in the ledger ended this very moment
                    page.decisions.append(await read_ledger(redis, keys, decision))
            room, place = ("decisions", str(cursor)) if cursor else ("events", START)
        elif room == "events":
            position, events = await users.find_events(redis, keys, user, place)
            page.events += events
            room, place = ("activity", START) if position is None else ("events", position)
        else:
            position, logged = await users.find_logged(redis, keys, user, place)
            page.activity_log += logged
            if position is None:
                return page
            place = position
        if len(page.decisions) + len(page.events) + len(page.activity_log) >= FULL:
            break
    page.next = f"{room}:{place}"
    return page


def _place(after: str | None) -> tuple[str, str]:
    """Read where a page begins.

    Raises:
        InvalidRequest: nowhere.
    """
    room, _, place = ("decisions:0" if after is None else after).partition(":")
    with suppress(ValueError):
        if room == "decisions" and 0 <= int(place) < 1 << 64:
            return room, place
        if room in ("events", "activity") and all(0 <= part < 1 << 64 for part in order(place)):
            return room, place
    raise InvalidRequest("after", "pass the `next` of the page before")


async def all_of_user(redis: Redis, loop: str, user: str) -> AsyncIterator[UserPage]:
    """Yield all pages of what is kept of a user.

    Raises:
        NotFound: there is no such loop.
    """
    page = await read_user(redis, loop, user)
    yield page
    while page.next is not None:
        page = await read_user(redis, loop, user, page.next)
        yield page


def lines_of(page: UserPage) -> Iterator[dict[str, Any]]:
    """Yield what a page holds as JSON objects of one field each, which says what it is."""
    if page.state:
        yield {"state": page.state}
    yield from ({"activity": one._asdict()} for one in page.activity)
    yield from ({"shown": {"item": item, "at": at}} for at, item in page.shown)
    yield from ({"taken": {"item": item, "at": at}} for at, item in page.taken)
    yield from ({"edge": one._asdict()} for one in page.edges)
    yield from ({"known_by": one} for one in page.known_by)
    if page.graph:
        yield {"graph": page.graph}
    yield from ({"took": {"at": at, "item": item, "share": share}} for at, item, share in page.took)
    yield from ({"decision": one} for one in page.decisions)
    for event in page.events:
        shown = asdict(event)
        del shown["x"]  # computed from context and features
        yield {"event": {**shown, "at": event.time}}
    yield from ({"logged": asdict(one)} for one in page.activity_log)


async def erase_user(redis: Redis, loop: str, user: str, *, by: str) -> ErasureRecord:
    """Have a user erased; return the erasure, or the one of him that has not ended yet.

    Raises:
        NotFound: there is no such loop.
        Conflict: too many erasures wait.
    """
    record = await loop_store.read_loop(redis, loop)
    keys = Keys(loop, record.id)
    digest = digest_of(keys, user)
    for one in await list_erasures(redis, loop):
        if one.digest == digest and one.ended is None:
            return one
    made = ErasureRecord(uuid4().hex[:12], digest, by, created=await now(redis), user=user)
    noted = Change(by, "erase user", None, {"erasure": made.id, "digest": digest})
    await change_log.append(redis, keys.change_log, noted)
    await erasure_store.create_erasure(redis, keys, made)
    return made


async def list_erasures(redis: Redis, loop: str) -> list[ErasureRecord]:
    """Return the erasures of a loop, newest first.

    Raises:
        NotFound: there is no such loop.
    """
    record = await loop_store.read_loop(redis, loop)
    keys = Keys(loop, record.id)
    found = await erasure_store.list_erasures(redis, keys)
    await erasure_store.queue(redis, keys, found)
    return found


async def read_erasure(redis: Redis, loop: str, erasure: str) -> ErasureRecord:
    """Return one erasure.

    Raises:
        NotFound: there is no such loop or erasure.
    """
    record = await loop_store.read_loop(redis, loop)
    keys = Keys(loop, record.id)
    found = await erasure_store.read_erasure(redis, keys, erasure)
    await erasure_store.queue(redis, keys, [found])
    return found
