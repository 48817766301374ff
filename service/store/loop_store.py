"""Loops in Redis: one record each, changed by one script a change.

Every change names the epoch that its caller saw. Where somebody else changed the loop meanwhile, nothing is written,
and the caller looks again: two changes at the same moment cannot undo each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from service.errors import NotFound, StaleEpoch, UnreadableRecord
from service.records import Change, LoopRecord
from service.store import change_log
from service.store.codec import loop_fields, read_loop_fields
from service.store.connection import answering, now, script, takes_no_writes
from service.store.keys import CHANGES, DELETED, LOOPS, Keys, loop_record

SWEPT_AGAIN_S = 60.0  # keys of a deleted loop are looked for once more, so much later: workers may have written late

Value = str | bytes | int


async def listed(redis: Redis) -> list[str]:
    """Return the names on the list of loops, in order. A name may stand there without a loop."""
    async with answering():
        return sorted(name.decode() for name in await redis.smembers(LOOPS))


async def loop_names(redis: Redis) -> list[str]:
    """Return the names of the loops that are there, in order."""
    names = await listed(redis)
    async with answering(), redis.pipeline(transaction=False) as pipe:
        for name in names:
            pipe.exists(loop_record(name))
        there = await pipe.execute()
    return [name for name, found in zip(names, there, strict=True) if found]


async def epochs(redis: Redis, names: Sequence[str]) -> dict[str, tuple[bytes | None, bytes | None]]:
    """Return loop -> (id, epoch), for telling whether it is another one than before, or was changed."""
    async with answering(), redis.pipeline(transaction=False) as pipe:
        for name in names:
            pipe.hmget(loop_record(name), "id", "epoch")
        found = await pipe.execute(raise_on_error=False)
    # A record that is no hash counts as one without an id: whoever reads it says that it cannot be read.
    return {
        name: (b"", None) if isinstance(one, ResponseError) else (one[0], one[1])
        for name, one in zip(names, found, strict=True)
    }


async def create_loop(redis: Redis, record: LoopRecord, change: Change | None = None) -> bool:
    """Make a loop, whole; False when the name is taken (and nothing was changed).

    The name is listed first: a listed name without a loop is passed over, and a loop that is not listed would not be
    served. It is listed again afterwards, for `forget_deleted` may have taken it off the list in between.
    """
    fields = [part for pair in loop_fields(record).items() for part in pair]
    async with answering():
        await redis.sadd(LOOPS, record.name)
        created = await script("create_loop")(
            redis,
            (loop_record(record.name), Keys(record.name, record.id).change_log),
            (CHANGES, record.name, *change_log.logged(change), *fields),
        )
        await redis.sadd(LOOPS, record.name)
    return bool(created)


async def read_loop(redis: Redis, name: str) -> LoopRecord:
    """Read a loop's record.

    Raises:
        NotFound: there is no such loop.
        NewerFormat: a newer version wrote it.
        UnreadableRecord: it is garbled.
    """
    async with answering():
        try:
            stored = await redis.hgetall(loop_record(name))
        except ResponseError as error:
            if takes_no_writes(error):
                raise
            raise _unreadable(name, error) from error  # no hash at all
    if not stored:
        raise NotFound(f"there is no loop {name!r}; PUT /loops/{name} makes it", code="unknown_loop")
    try:
        return read_loop_fields(name, stored)
    except (KeyError, TypeError, ValueError) as error:
        raise _unreadable(name, error) from error


def _unreadable(name: str, error: Exception) -> UnreadableRecord:
    return UnreadableRecord(
        f"the record of loop {name!r} cannot be read ({type(error).__name__}: {error}); DELETE /loops/{name} "
        "removes the loop"
    )


async def change_loop(
    redis: Redis, seen: LoopRecord, changes: Mapping[str, Value], change: Change | None = None
) -> int:
    """Write fields of a loop's record; return the new epoch.

    Args:
        seen: the record that the change was made from.
        change: to be written down.

    Raises:
        StaleEpoch: somebody else changed it meanwhile; look again.
        NotFound: it is gone.
    """
    fields = [part for pair in changes.items() for part in pair]
    answer = await script("change_loop")(
        redis,
        (loop_record(seen.name), Keys(seen.name, seen.id).change_log),
        (CHANGES, seen.name, seen.id, seen.epoch, *change_log.logged(change), *fields),
    )
    return new_epoch(answer, seen.name)


def new_epoch(answer: int | bytes, loop: str) -> int:
    """Read what a script of change answered.

    Raises:
        StaleEpoch, NotFound: as `change_loop`.
    """
    if answer == b"stale":
        raise StaleEpoch(f"loop {loop!r} was changed by somebody else at the same moment; send it again")
    if answer == b"gone":
        raise NotFound(f"there is no loop {loop!r}; PUT /loops/{loop} makes it", code="unknown_loop")
    return int(answer)


async def begin(redis: Redis, keys: Keys, what: Literal["activity", "edges"]) -> None:
    """Say that activity, or edges, are sent in this loop.

    Raises:
        NotFound: there is no such loop any more.
        StoreUnavailable: Redis does not answer.
    """
    if not await script("begin")(redis, (keys.record,), (CHANGES, keys.loop, keys.id, what)):
        raise NotFound(f"there is no loop {keys.loop!r}; PUT /loops/{keys.loop} makes it", code="unknown_loop")


async def delete_loop(redis: Redis, name: str) -> Keys | None:
    """Delete a loop, readable or not; return the keys that are still to be removed, None where there was none.

    It is written down first that the loop's keys must go, so that a crash on the way leaves none behind.
    """
    async with answering():
        stored = await _id_of(redis, name)
        keys = Keys(name, stored.decode() if stored else "")
        await redis.zadd(DELETED, {f"{name}/{keys.id}": await now(redis)})
        deleted = await script("delete_loop")(redis, (keys.record,), (CHANGES, name, keys.id))
    return keys if deleted else None


async def _id_of(redis: Redis, name: str) -> bytes | None:
    """Return a loop's id as its record has it; None: there is no record, or one without an id, or no hash at all."""
    if await redis.type(loop_record(name)) != b"hash":
        return None
    stored: bytes | None = await redis.hget(loop_record(name), "id")
    return stored


async def remove_keys(redis: Redis, keys: Keys) -> None:
    """Remove every key of a loop that was deleted."""
    if not keys.id:  # without an id it has no other keys
        return
    async with answering():
        for prefix in (keys.home, keys.partition().prefix):
            async for key in redis.scan_iter(match=prefix + "*", count=1000):
                await redis.unlink(key)


async def forget_deleted(redis: Redis) -> None:
    """Remove what deleted loops left behind, once more some time after they were deleted."""
    async with answering():
        before = await now(redis) - SWEPT_AGAIN_S
        for member in await redis.zrangebyscore(DELETED, "-inf", before, start=0, num=10):
            name, _, loop_id = member.decode().rpartition("/")
            stored = await _id_of(redis, name)
            if stored is None or stored.decode() != loop_id:  # else the deletion was cut off before it began
                await remove_keys(redis, Keys(name, loop_id))
            if not await redis.exists(loop_record(name)):
                await redis.srem(LOOPS, name)
                if await redis.exists(loop_record(name)):  # made again at this very moment
                    await redis.sadd(LOOPS, name)
            await redis.zrem(DELETED, member)
