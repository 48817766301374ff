"""Reads settled decisions from the ledger, for evaluations: many at once, and from when on none is missing."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from redis.asyncio import Redis

from service.records import Decision
from service.store.codec import read_decision
from service.store.connection import answering, now
from service.store.keys import Keys
from service.store.open_time import MOST_WAIT_MS, closed_since, read_opening

AT_ONCE = 500  # records read in one round trip


async def settled_before(redis: Redis, keys: Keys, *, wait_ms: int) -> int:
    """Return the deadline in ms before which every decision has its final reward.

    Decisions that were rewarded early and those that still wait are cut off at the same deadline. Else the newest
    decisions would be those that somebody clicked.
    """
    at = (await read_opening(redis)).now_ms
    async with answering():
        oldest = await redis.zrange(keys.partition().pending, 0, 0, withscores=True)
    return min([at + wait_ms, *(int(deadline) for _, deadline in oldest)])


async def read_decisions(redis: Redis, keys: Keys, ids: Sequence[str]) -> list[tuple[int, Decision]]:
    """Return (deadline in ms, decision) of those of these ids that the ledger holds."""
    part = keys.partition()
    found: list[tuple[int, Decision]] = []
    for start in range(0, len(ids), AT_ONCE):
        async with answering(), redis.pipeline(transaction=False) as pipe:
            for decision_id in ids[start : start + AT_ONCE]:
                pipe.hmget(part.decision(decision_id), "record", "deadline")
            records = await pipe.execute()
        for record, deadline in records:
            if record is not None:
                with suppress(ValueError, KeyError):  # garbled: as if it were gone
                    found.append((int(deadline), read_decision(record)))
    return found


async def read_settled(
    redis: Redis, keys: Keys, ids: Sequence[str], *, before: int, ledger_ms: int
) -> tuple[list[Decision], int, int]:
    """Return the decisions of these ids that are settled and of a time from which on the ledger is whole.

    A record leaves the ledger when its deadline and the ledger time are over, whatever its reward was.

    Args:
        before: see `settled_before`.

    Returns:
        (decisions, how many wait or waited too recently, how many are gone or about to go).
    """
    found = await read_decisions(redis, keys, ids)
    # A record's time in the ledger goes on while deadlines stand still.
    moved_ms = await closed_since(redis, round(1000 * await now(redis)) - ledger_ms - MOST_WAIT_MS)
    whole_from = (await read_opening(redis)).now_ms - ledger_ms + moved_ms
    pending = sum(deadline >= before for deadline, _ in found)
    kept = [decision for deadline, decision in found if whole_from < deadline < before]
    return kept, pending, len(ids) - pending - len(kept)


async def settled_places(redis: Redis, keys: Keys, *, since: int) -> tuple[int, int]:
    """Return how many places were given out, and the place before which every decision has its final rewards.

    What was shown before `since` is passed over. The events of all before that place are in the log when this returns.
    Decisions that were shown later have later deadlines, unless the loop's wait time changed in between.
    """
    part = keys.partition()
    async with answering():
        shown = int(await redis.hget(part.stats, "places") or 0)  # first: what is shown from here on lies behind it
        for last in (AT_ONCE - 1, -1):  # the first few; all where none of them was displayed since
            waiting = await redis.zrange(part.pending, 0, last)
            async with redis.pipeline(transaction=False) as pipe:
                for decision in waiting:
                    pipe.hget(part.decision(decision.decode()), "place")
                found = await pipe.execute()
            if places := [int(place) for place in found if place is not None and int(place) >= since]:
                return shown, min(shown, *places)
            if len(waiting) < AT_ONCE:
                break
    return shown, shown
