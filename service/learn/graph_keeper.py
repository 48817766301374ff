"""Keeps what is known of the neighbourhoods of one loop's users (`represent/graph.py`).

It takes the second step of every change of edges (`store/edges.py`), follows the log (`log_fold.py`) for what users
rewarded, hears who acted, and computes the fields again of those whose neighbourhood has changed. All of it may be done
twice: a mark is taken off only by who has seen the newest.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any

from redis.asyncio import Redis

from service.learn.log_fold import LogFold
from service.learn.tail import Tail
from service.records import Entry, Event, LoopRecord, order
from service.represent.graph import NEWEST, Tie, graph_fields, takes_of
from service.represent.user_state import Activity, ItemFields
from service.store import edges, graph_store, item_store
from service.store.graph_store import LEASE, Rewarded, Surroundings
from service.store.group_commit import GroupCommit
from service.store.keys import Keys

AT_ONCE = 20  # users whose fields are computed in one go
WORK_S = 2.0  # until the lease is looked at again


class GraphKeeper(LogFold):
    """Works for one loop, from its first edge on."""

    name, period_s = "keeper of the graph", 1.0

    def __init__(self, redis: Redis, keys: Keys, tail: Tail | None = None) -> None:
        super().__init__(redis, keys, LEASE, tail)
        self._commit = GroupCommit(redis)

    async def _read_position(self) -> str:
        return await graph_store.read_position(self._redis, self._keys)

    async def _load(self) -> str:
        return await self._read_position()

    async def _behind(self) -> bool:
        return await super()._behind() or any(await graph_store.count_waiting(self._redis, self._keys))

    async def _take(self, entries: Sequence[Entry]) -> None:
        takes: dict[str, list[tuple[str, Rewarded]]] = {}
        for entry in entries:
            if isinstance(entry, Event) and entry.user is not None and (share := rewarded(entry, self._loop)) > 0:
                # An import may say that it happens in the future: nothing else would weigh anything beside it.
                at = min(round(1000 * entry.time), order(entry.position)[0])
                takes.setdefault(entry.user, []).append((entry.position, (at, entry.item, share)))
        if takes:
            await graph_store.add_takes(self._redis, self._keys, self._loop.settings, takes)
        self.position = entries[-1].position

    async def _at_rest(self) -> None:
        until = time.monotonic() + WORK_S
        while due := await edges.pending(self._redis, self._keys):
            await edges.link(self._commit, self._redis, self._keys, due)
            if time.monotonic() > until:
                return
        await graph_store.mark_acted(self._commit, self._redis, self._keys)
        while stale := await graph_store.stale(self._redis, self._keys, AT_ONCE):
            await self._compute(stale)
            if time.monotonic() > until:
                return

    async def _compute(self, stale: Sequence[tuple[str, int]]) -> None:
        users = [user for user, _ in stale]
        around = await graph_store.surroundings(self._redis, self._keys, users, NEWEST)
        taken = {one[2] for done in around.activity.values() for one in done}
        taken |= {item for took in around.rewarded.values() for _, item, _ in took}
        items = ItemFields(await item_store.read_some(self._redis, self._keys, taken))
        before = await graph_store.fields_of(self._redis, self._keys, users)
        found = await asyncio.to_thread(lambda: {user: fields_around(user, around, items) for user in users})
        await asyncio.gather(
            *(
                graph_store.publish(self._commit, self._keys, user, number, _changed(before[user], found[user]))
                for user, number in stale
            )
        )

    async def drain(self) -> int:
        """Read the log to its end, and compute all that is due; return the number of entries read."""
        total = await super().drain()
        while any(await graph_store.count_waiting(self._redis, self._keys)):
            await self._at_rest()
        return total

    async def _write(self) -> bool:
        return await graph_store.save_position(self._redis, self._keys, seen=self._saved, position=self.position)


def rewarded(event: Event, loop: LoopRecord) -> float:
    """Return what an event was rewarded beyond the loop's default, as a share of the most that it could be."""
    settings = loop.settings
    most = settings.reward_range[1] - settings.default_reward
    return min((event.reward - settings.default_reward) / most, 1.0) if most > 0 else 0.0


def fields_around(user: str, around: Surroundings, items: ItemFields) -> dict[str, Any]:
    """Return the fields of a user's neighbourhood, without a version."""
    ties = [Tie(*one) for one in around.edges[user]]
    friends = {tie.to for tie in ties}
    known = {friend: {to for to, *_ in around.edges[friend]} for friend in friends}
    takes = {
        friend: takes_of([Activity(*one) for one in around.activity[friend]], around.rewarded[friend])
        for friend in friends
    }
    return graph_fields(ties, known, takes, items)


def _changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the fields of now; None: they are those of before."""
    return None if {name: before[name] for name in before if name != "version"} == now else now
