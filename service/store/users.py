"""What is kept of one user in Redis: found, and erased.

There is no index by user. Decisions are found by a scan over all keys of Redis, events by a scan of the log that Redis
itself makes, some entries at a time. Whatever is done here may be done again: where a process is cut off, the next one
begins the same step anew.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from uuid import uuid4

import orjson
from redis.asyncio import Redis

from service.records import Event, LoggedActivity
from service.store import activity_log, edges, policy_store
from service.store.activity import Kept, activity_of
from service.store.announcements import announce_use
from service.store.codec import read_entry, training_body
from service.store.connection import Value, answering, script
from service.store.decisions import ledger_keys
from service.store.group_commit import GroupCommit
from service.store.keys import Keys

KEYS_AT_ONCE = 500  # that are looked at in one round trip
ENTRIES_AT_ONCE = 200  # of the log; Redis takes 8 µs to look at one and 15 to copy it, and does nothing else meanwhile
COUNTED = ("decisions", "activity", "edges", "events")  # of what an erasure counts what it deleted


def quoted(user: str) -> bytes:
    """Return a user's id as JSON, as it stands in decisions, events and learned states."""
    return orjson.dumps(user)


def spellings(user: str) -> set[bytes]:
    """Return the ways in which a user's id stands in what a loop keeps: as JSON, in ASCII, and as JSON in JSON."""
    return {quoted(user), json.dumps(user).encode(), json.dumps(json.dumps(user))[1:-1].encode()}


async def find_decisions(redis: Redis, keys: Keys, user: str, cursor: int) -> tuple[int, list[str]]:
    """Look through some of Redis's keys, from a cursor on (0: from the start).

    Returns:
        The cursor to go on from, 0 when all keys were seen, and the ids of decisions of the user.
    """
    part, his = keys.partition(), quoted(user)
    async with answering():
        cursor, names = await redis.scan(cursor, match=part.decision("*"), count=KEYS_AT_ONCE)
        async with redis.pipeline(transaction=False) as pipe:
            for name in names:
                pipe.hget(name, "record")
            records = await pipe.execute()
    first = len(part.decision("").encode())
    return cursor, [
        name[first:].decode()
        for name, record in zip(names, records, strict=True)
        if record is not None and his in record and orjson.loads(record).get("user_id") == user
    ]


async def find_events(redis: Redis, keys: Keys, user: str, after: str) -> tuple[str | None, list[Event]]:
    """Look at the next entries of the log after a position.

    Returns:
        The position to go on from, None when the end was reached, and the events of the user that can be read.
    """
    args = (user, quoted(user), after, ENTRIES_AT_ONCE)
    looked_at, last, found = await script("find_events")(redis, (keys.partition().events,), args)
    entries = [
        read_entry(position.decode(), dict(zip(parts[::2], parts[1::2], strict=True))) for position, parts in found
    ]
    events = [entry for entry in entries if isinstance(entry, Event)]
    return (last.decode() if looked_at == ENTRIES_AT_ONCE else None), events


async def find_activity(redis: Redis, keys: Keys, user: str) -> list[Kept]:
    """Return what is kept of what a user did, oldest first."""
    return (await activity_of(redis, keys, [user]))[user]


async def find_logged(redis: Redis, keys: Keys, user: str, after: str) -> tuple[str | None, list[LoggedActivity]]:
    """Look at the next entries of the log of activity after a position.

    Returns:
        The position to go on from, None when the end was reached, and the activity of the user.
    """
    last, activity = await activity_log.read_log(redis, keys, after)
    return last, [one for one in activity if one.user == user]


async def is_known_to_policies(redis: Redis, keys: Keys, user: str) -> bool:
    """Return whether a kept version, a checkpoint or the profile holds the id: some keep a part for each user."""
    his = spellings(user)

    def holds(value: bytes | None) -> bool:
        return value is not None and any(spelled in value for spelled in his)

    names = await policy_store.policy_names(redis, keys)
    async with answering():
        if holds(await redis.hget(keys.profile, "state")):
            return True
        for name in names:
            if holds(await redis.get(keys.state(name))):
                return True
            for version in await redis.hkeys(keys.snapshots(name)):
                if holds(await redis.hget(keys.snapshots(name), version)):
                    return True
    return False


# ---- erased


async def counts(redis: Redis, keys: Keys, erasure: str) -> dict[str, int]:
    """Return how much an erasure has deleted so far, by what it was."""
    async with answering():
        found = await redis.hmget(keys.partition().erasure, [f"{erasure}/{name}" for name in COUNTED])
    return {name: int(value or 0) for name, value in zip(COUNTED, found, strict=True)}


async def position_of(redis: Redis, keys: Keys, erasure: str) -> str | None:
    """Return where in the log an erasure stands; None: it does not, or not yet."""
    async with answering():
        position = await redis.hget(keys.partition().erasure, f"{erasure}/position")
    return None if position is None else position.decode()


async def forget_counts(redis: Redis, keys: Keys, erasure: str) -> None:
    """Delete what an erasure counted: its record holds it by now."""
    async with answering():
        await redis.hdel(keys.partition().erasure, *(f"{erasure}/{name}" for name in (*COUNTED, "position")))


async def erase_decisions(redis: Redis, keys: Keys, erasure: str, decision_ids: Sequence[str]) -> None:
    """Delete decisions, whether they wait or are settled, with the reports that wait for them."""
    for name in decision_ids:
        place = (*ledger_keys(keys, name), keys.partition().erasure)
        await script("erase_decision")(redis, place, (name, f"{erasure}/decisions"))


async def erase_activity(redis: Redis, keys: Keys, erasure: str, user: str) -> bool:
    """Delete what is kept of what a user did, what caps count of him, and his activity from its log.

    An activity that both hold counts once. False: another process does it meanwhile.
    """
    part = keys.partition()
    async with answering():
        kept = await redis.llen(part.activity(user))
        async with redis.pipeline(transaction=True) as pipe:
            pipe.delete(part.activity(user), part.activity_ids(user), part.shown(user), part.taken(user))
            pipe.zrem(part.activity_users, user)
            pipe.hdel(part.rewarded, user)
            pipe.zrem(part.capped_users, user)
            pipe.hincrby(part.erasure, f"{erasure}/activity", kept)
            await pipe.execute()
    return await activity_log.erase_of(redis, keys, user, counted=f"{erasure}/activity")


async def erase_edges(redis: Redis, keys: Keys, erasure: str, user: str) -> None:
    """Delete whom a user knows, who knows him, and what is known of his neighbourhood."""
    part = keys.partition()
    deleted = await edges.erase_edges(GroupCommit(redis), redis, keys, user)
    async with answering():
        await redis.hincrby(part.erasure, f"{erasure}/edges", deleted)
    await erase_neighbourhood(redis, keys, user)


async def erase_neighbourhood(redis: Redis, keys: Keys, user: str) -> None:
    """Delete what is known of a user's neighbourhood, and what those who know him are served by."""
    part = keys.partition()
    async with answering(), redis.pipeline(transaction=True) as pipe:
        pipe.delete(part.graph(user), part.took(user))
        for marks in (part.graph_stale, part.acted):
            pipe.zrem(marks, user)
        await pipe.execute()


async def erase_events(
    redis: Redis,
    keys: Keys,
    erasure: str,
    user: str,
    trainings: Sequence[tuple[str, str]] = (),
    withdrawn: Sequence[str] = (),
) -> bool:
    """Delete a user's events from the log, and append an `Erasure`; False: another process does it meanwhile.

    The log is copied without them, and the copy takes its place: until then Redis holds it twice.

    Args:
        trainings: (name, id) of policies that are to train just before the erasure, on what is left.
        withdrawn: versions of encoders that go, too, unless a person declared them: they were fitted to his id.
    """
    part, token = keys.partition(), uuid4().hex
    async with answering(), redis.pipeline(transaction=True) as pipe:
        pipe.hdel(part.erasure, "copied", "uncounted")
        pipe.hset(part.erasure, "token", token)
        pipe.delete(part.events_kept)
        await pipe.execute()
    places = (part.events, part.events_kept, part.erasure, part.stats, part.imported)
    args: list[Value] = [token, user, quoted(user), ENTRIES_AT_ONCE, len(trainings), erasure]
    args += [*(training_body(name, policy_id) for name, policy_id in trainings), *withdrawn]
    while not (done := await script("erase_events")(redis, places, args)):
        pass
    async with answering():
        await announce_use(redis, keys.loop)
    return bool(done == 1)


async def erase_letters(redis: Redis, keys: Keys) -> None:
    """Delete the dead letters whose entries the log does not hold any more."""
    part = keys.partition()
    async with answering():
        positions = await redis.hkeys(part.dead)
        async with redis.pipeline(transaction=False) as pipe:
            for position in positions:
                pipe.xrange(part.events, min=position, max=position)
            held = await pipe.execute()
        if gone := [position for position, entries in zip(positions, held, strict=True) if not entries]:
            await redis.hdel(part.dead, *gone)
