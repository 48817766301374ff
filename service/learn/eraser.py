"""Erases users, step by step. Each step is written down when it is done, so whoever goes on begins where it ended.

1. `decisions`, `activity`, `edges`, `events`: what is kept of the user is deleted, edges of others that name him and
   their reverse entries among it. The log is copied without his events, and an
   entry (`Erasure`) is appended that has policies and profile learn it anew; so they hold nothing of him.
   So do encoders that were fitted to his id.
2. `traces`: dead letters of these events, evaluations that name him, his sums in experiments; another encoder may be
   fitted, and learned embeddings are withdrawn: they are trained anew.
3. `learning`: it waits until every policy has published what it learned anew, and the profile is counted anew.
4. `search`: all that the loop keeps is searched for his id. Where it still stands is told. The erasure forgets it.
5. `files`: Redis writes its own files anew.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import structlog
from redis.asyncio import Redis

from service.errors import NotFound
from service.policies import KINDS
from service.records import START, PolicyRecord, order
from service.store import (
    disk,
    embedding_store,
    encoders,
    erasure_store,
    evaluation_store,
    experiment_store,
    graph_store,
    loop_rows,
    loop_store,
    policy_store,
    profile_store,
    users,
)
from service.store.codec import NewerFormat
from service.store.connection import end, now
from service.store.erasure_store import STEPS, ErasureRecord
from service.store.keys import Keys
from service.store.policy_store import Lease

LEASE = "@erasure"  # stands where leases of policies do; no policy has such a name
LEASE_MS = 5000
PROFILE, GRAPH = "the profile", "the graph"
# Sort of key -> why it may still hold the id, and what to do.
REMAINS = {
    "encoders": "an encoder that a person declared, or a policy began with, has a level of this name: declare another "
    "(PUT /loops/{loop}), or make the policy again under another name",
    "items": "items of the catalogue name it: put or delete them",
    "item-log": "former features of items name it; they go with the next changes of the catalogue",
    "change-log": "administrative changes name it; they go after 1000 newer ones",
    "data-changes": "changes of items name it; they go after 1000 newer ones",
    "events": "events of other users, or fitted schemas, name it: they go with the loop's retention",
    "decision": "decisions of other users name it, or the user came again: they go with the loop's ledger_time",
    "early": "reports that came before their decision name it; they go when their time is over",
    "activity": "the user came again, or others name it",
    "activity-log": "the user came again, or others name it",
    "edges": "others have named him since, or an id of theirs holds it: delete these edges (DELETE /edges)",
    "graph": "items that others took have this name, or hold it: it goes when their neighbourhoods change",
    "took": "items that others rewarded have this name, or hold it: they go with newer ones",
    "profile": "fields of others name it, or the user came again",
    "state": "its encoder has a level of this name, or an item has it, or the user came again",
    "snapshots": "an item has this name, or the user came again",
}

log = structlog.get_logger()


class Eraser:
    """Does the erasures of all loops. In a loop users are deleted one after the other; policies learn anew for all."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._asked: dict[str, list[str]] = {}  # erasure whose files are being written anew -> what Redis refused
        self._steps: Mapping[str, Callable[[Keys, ErasureRecord], Awaitable[bool]]] = {
            "decisions": self._decisions,
            "activity": self._activity,
            "edges": self._edges,
            "events": self._events,
            "traces": self._traces,
            "learning": self._learning,
            "search": self._search,
            "files": self._files,
        }

    async def step(self, stop: asyncio.Event) -> None:
        """Take every erasure as far as it goes now.

        Raises:
            StoreUnavailable: Redis does not answer.
        """
        of_loops: dict[Keys, list[str]] = {}
        for keys, erasure in await erasure_store.queued(self._redis):
            of_loops.setdefault(keys, []).append(erasure)
        for keys, erasures in of_loops.items():
            lease = Lease(self._redis, keys, LEASE, ttl_ms=LEASE_MS)
            if not await lease.acquire():
                continue
            keeper = asyncio.create_task(lease.keep())
            try:
                await self._in_turn(keys, erasures, stop)
            finally:
                await end(keeper)
                await lease.release()

    async def _in_turn(self, keys: Keys, erasures: Sequence[str], stop: asyncio.Event) -> None:
        for erasure in erasures:
            if stop.is_set():
                return
            try:
                record = await self._go_on(keys, erasure, stop)
            except NotFound:  # its loop was deleted
                await erasure_store.forget_queued(self._redis, keys, erasure)
            except NewerFormat as error:
                log.error("an erasure cannot be read", loop=keys.loop, erasure=erasure, why=str(error))
            else:
                if STEPS.index(record.step) < STEPS.index("learning"):
                    return

    async def _go_on(self, keys: Keys, erasure: str, stop: asyncio.Event) -> ErasureRecord:
        loop = await loop_store.read_loop(self._redis, keys.loop)
        if loop.id != keys.id:
            raise NotFound(f"the loop {loop.name!r} of then is gone", code="unknown_loop")
        record = await erasure_store.read_erasure(self._redis, keys, erasure)
        while not stop.is_set() and record.ended is None:
            if not await self._steps[record.step](keys, record):
                break
            record = await self._done(keys, record.id, record.step)
        return record

    async def _done(self, keys: Keys, erasure: str, step: str) -> ErasureRecord:
        """Write down that a step is done, and what is deleted by now."""
        following = STEPS[STEPS.index(step) + 1]
        said: dict[str, Any] = {"step": following}
        if following == "done":
            said["ended"] = await now(self._redis)
        else:
            said |= await users.counts(self._redis, keys, erasure)
        record = await erasure_store.change_erasure(
            self._redis, keys, erasure, forget_user=following == "files", **said
        )
        if record.ended is not None:
            where = {"loop": keys.loop, "erasure": erasure}
            log.info("a user was erased", **where, events=record.events, remains=list(record.remains))
        return record

    async def _decisions(self, keys: Keys, record: ErasureRecord) -> bool:
        cursor = None
        while cursor != 0:
            cursor, found = await users.find_decisions(self._redis, keys, _user(record), cursor or 0)
            await users.erase_decisions(self._redis, keys, record.id, found)
        return True

    async def _activity(self, keys: Keys, record: ErasureRecord) -> bool:
        return await users.erase_activity(self._redis, keys, record.id, _user(record))

    async def _edges(self, keys: Keys, record: ErasureRecord) -> bool:
        await users.erase_edges(self._redis, keys, record.id, _user(record))
        return True

    async def _events(self, keys: Keys, record: ErasureRecord) -> bool:
        user = _user(record)
        if await users.position_of(self._redis, keys, record.id) is not None:  # cut off just after it was done
            return True
        fitted = await encoders.fitted_to(self._redis, keys, users.spellings(user))
        known = fitted or await self._is_in_log(keys, user)
        if not known and not await users.is_known_to_policies(self._redis, keys, user):
            return True
        trained = [
            (policy.name, policy.id)
            for policy in await self._policies(keys)
            if policy.kind in KINDS and KINDS[policy.kind].batch_trained
        ]
        return await users.erase_events(self._redis, keys, record.id, user, trained, fitted)

    async def _is_in_log(self, keys: Keys, user: str) -> bool:
        after: str | None = START
        while after is not None:
            after, found = await users.find_events(self._redis, keys, user, after)
            if found:
                return True
        return False

    async def _policies(self, keys: Keys) -> list[PolicyRecord]:
        found = []
        for name in await policy_store.policy_names(self._redis, keys):
            with suppress(NotFound):  # deleted this very moment
                found.append(await policy_store.read_policy(self._redis, keys, name))
        return found

    async def _traces(self, keys: Keys, record: ErasureRecord) -> bool:
        his = users.spellings(_user(record))
        await users.erase_letters(self._redis, keys)
        await evaluation_store.delete_naming(self._redis, keys, his)
        for experiment in (await loop_store.read_loop(self._redis, keys.loop)).experiments.values():
            if experiment.unit == "user":
                await experiment_store.erase_unit(self._redis, keys, experiment, _user(record))
        await encoders.withdraw(self._redis, keys, await encoders.fitted_to(self._redis, keys, his))
        await embedding_store.withdraw(self._redis, keys)
        return True

    async def _learning(self, keys: Keys, record: ErasureRecord) -> bool:
        position = await users.position_of(self._redis, keys, record.id)
        waits_for: list[str] = []
        if position is not None:
            waits_for += [one.name for one in await self._policies(keys) if order(one.position) < order(position)]
            if order(await profile_store.read_position(self._redis, keys)) < order(position):
                waits_for.append(PROFILE)
            loop = await loop_store.read_loop(self._redis, keys.loop)
            if loop.edges and order(await graph_store.read_position(self._redis, keys)) < order(position):
                waits_for.append(GRAPH)
        if waits_for != list(record.waits_for):
            await erasure_store.change_erasure(self._redis, keys, record.id, waits_for=waits_for)
        return not waits_for

    async def _search(self, keys: Keys, record: ErasureRecord) -> bool:
        await encoders.forget_unused(self._redis, keys)
        # The keeper of the graph may have read an event of his just before it went; now it has read beyond all of them.
        await users.erase_neighbourhood(self._redis, keys, _user(record))
        found = await loop_rows.search(self._redis, keys, users.spellings(_user(record)))
        remains = [f"{sort} ({found[sort]}): {REMAINS.get(sort, 'it is named here')}" for sort in sorted(found)]
        await erasure_store.change_erasure(self._redis, keys, record.id, remains=remains)
        return True

    async def _files(self, keys: Keys, record: ErasureRecord) -> bool:
        await users.forget_counts(self._redis, keys, record.id)
        if record.id not in self._asked:  # or it was asked for by a process that is gone
            refused = await disk.rewrite(self._redis)
            if refused is None:
                return False
            self._asked[record.id] = refused
        failed = await disk.rewritten(self._redis)
        if failed is None:
            return False
        if told := [*self._asked.pop(record.id), *failed]:
            remains = [*record.remains, *told]
            await erasure_store.change_erasure(self._redis, keys, record.id, remains=remains)
        return True


def _user(record: ErasureRecord) -> str:
    assert record.user is not None, "it is kept for as long as a step needs it"
    return record.user
