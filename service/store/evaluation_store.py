"""Evaluations in Redis: what is asked, how far it is, what came of it; and the queue of those that have not ended.

A process that works on one holds its lease. An evaluation gives the same answer every time, so two that work on the
same one do no harm.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import orjson
from redis.asyncio import Redis

from service.errors import Conflict, NotFound, UnreadableRecord
from service.store.codec import FORMAT, NewerFormat, check_format
from service.store.connection import Value, answering, script
from service.store.keys import EVALUATIONS, Keys

KEPT = 20  # of a loop; of more the oldest that have ended go
UNFINISHED = 5  # of a loop, at most
LEASE_MS = 15_000
ENDED = ("done", "failed", "cancelled")


@dataclass(frozen=True)
class EvaluationRecord:
    """An evaluation as its loop's home holds it."""

    id: str
    request: Mapping[str, Any]
    created: float  # unix seconds
    status: str = "waiting"  # waiting | running | done | failed | cancelled
    started: float | None = None
    ended: float | None = None
    done: int = 0  # decisions judged
    total: int | None = None  # decisions to judge; None: not known yet
    tries: int = 0  # processes that began it
    result: Mapping[str, Any] | None = None
    error: Mapping[str, str] | None = None  # code and detail


def _read(evaluation: str, stored: Mapping[bytes, bytes]) -> EvaluationRecord:
    """Read one.

    Raises:
        NewerFormat: a newer version wrote it.
        UnreadableRecord: it is garbled.
    """
    try:
        check_format(f"evaluation {evaluation!r}", stored.get(b"v"))
        return _record(evaluation, stored)
    except (KeyError, ValueError) as error:
        raise UnreadableRecord(f"evaluation {evaluation!r} cannot be read: {error!r}") from error


def _record(evaluation: str, stored: Mapping[bytes, bytes]) -> EvaluationRecord:

    def number(name: bytes) -> float | None:
        return float(stored[name]) if name in stored else None

    return EvaluationRecord(
        id=evaluation,
        request=orjson.loads(stored[b"request"]),
        created=float(stored[b"created"]),
        status=stored[b"status"].decode(),
        started=number(b"started"),
        ended=number(b"ended"),
        done=int(stored.get(b"done", 0)),
        total=int(stored[b"total"]) if b"total" in stored else None,
        tries=int(stored.get(b"tries", 0)),
        result=orjson.loads(stored.get(b"result", b"null")),
        error=orjson.loads(stored.get(b"error", b"null")),
    )


def _place(keys: Keys, evaluation: str) -> str:
    return f"{keys.loop}/{keys.id}/{evaluation}"


async def create_evaluation(redis: Redis, keys: Keys, record: EvaluationRecord) -> None:
    """Store a new evaluation and queue it.

    Raises:
        Conflict: as many as may be at work are.
    """
    found = await list_evaluations(redis, keys)
    ended = [one.id for one in reversed(found) if one.status in ENDED]
    if len(found) - len(ended) >= UNFINISHED:
        raise Conflict(
            f"{UNFINISHED} evaluations of loop {keys.loop!r} have not ended; wait, or cancel one",
            code="too_many_evaluations",
        )
    fields: dict[str, Value] = {
        "v": FORMAT,
        "request": orjson.dumps(record.request),
        "created": record.created,
        "status": record.status,
    }
    async with answering(), redis.pipeline(transaction=True) as pipe:
        for old in ended[: max(0, len(found) - KEPT + 1)]:
            pipe.delete(keys.evaluation(old))
            pipe.zrem(keys.evaluations, old)
        pipe.hset(keys.evaluation(record.id), mapping=fields)
        pipe.zadd(keys.evaluations, {record.id: record.created})
        await pipe.execute()
    await queue(redis, keys, [record])


async def queue(redis: Redis, keys: Keys, records: Sequence[EvaluationRecord]) -> None:
    """Queue those that have not ended; one that is queued keeps its place.

    Whoever looks at evaluations calls it: they are not queued after a restore, or where a creation was cut off.
    """
    waiting: dict[str, float] = {_place(keys, one.id): one.created for one in records if one.status not in ENDED}
    if waiting:
        async with answering():
            await redis.zadd(EVALUATIONS, waiting, nx=True)


async def list_evaluations(redis: Redis, keys: Keys) -> list[EvaluationRecord]:
    """Return those of a loop that can be read, newest first."""
    async with answering():
        ids = [name.decode() for name in await redis.zrange(keys.evaluations, 0, -1, desc=True)]
        async with redis.pipeline(transaction=False) as pipe:
            for evaluation in ids:
                pipe.hgetall(keys.evaluation(evaluation))
            found = await pipe.execute()
    records = []
    for evaluation, stored in zip(ids, found, strict=True):
        with suppress(UnreadableRecord, NewerFormat):
            if stored:
                records.append(_read(evaluation, stored))
    return records


async def read_evaluation(redis: Redis, keys: Keys, evaluation: str) -> EvaluationRecord:
    """Return one.

    Raises:
        NotFound: there is no such evaluation.
        UnreadableRecord, NewerFormat: it cannot be read.
    """
    async with answering():
        stored = await redis.hgetall(keys.evaluation(evaluation))
    if not stored:
        raise NotFound(f"there is no evaluation {evaluation!r} in loop {keys.loop!r}", code="unknown_evaluation")
    return _read(evaluation, stored)


async def change_evaluation(redis: Redis, keys: Keys, evaluation: str, **fields: Value | Mapping[str, Any]) -> bool:
    """Change fields of one that has not ended; False: it has. One that ends leaves the queue."""
    args: list[Value] = []
    for name, value in fields.items():
        args += (name, orjson.dumps(value) if isinstance(value, Mapping) else value)
    changed = bool(await script("change_evaluation")(redis, (keys.evaluation(evaluation),), args))
    if not changed or fields.get("status") in ENDED:
        async with answering():
            await redis.zrem(EVALUATIONS, _place(keys, evaluation))
    return changed


async def delete_naming(redis: Redis, keys: Keys, spellings: Collection[bytes]) -> None:
    """Delete those whose request or answer holds one of these texts."""
    async with answering():
        for evaluation in await redis.zrange(keys.evaluations, 0, -1):
            stored = b"".join((await redis.hgetall(keys.evaluation(evaluation.decode()))).values())
            if any(spelled in stored for spelled in spellings):
                async with redis.pipeline(transaction=True) as pipe:
                    pipe.delete(keys.evaluation(evaluation.decode()))
                    pipe.zrem(keys.evaluations, evaluation)
                    await pipe.execute()


async def queued(redis: Redis) -> list[tuple[Keys, str]]:
    """Return those that have not ended, oldest first, 100 at most."""
    async with answering():
        places = await redis.zrange(EVALUATIONS, 0, 99)
    found = []
    for place in places:
        loop, loop_id, evaluation = place.decode().split("/")
        found.append((Keys(loop, loop_id), evaluation))
    return found


async def forget_queued(redis: Redis, keys: Keys, evaluation: str) -> None:
    """Take out of the queue what is not there any more."""
    async with answering():
        await redis.zrem(EVALUATIONS, _place(keys, evaluation))


async def take_lease(redis: Redis, keys: Keys, evaluation: str, token: str) -> bool:
    """Take or renew the lease; False: another process has it."""
    lease = keys.evaluation_lease(evaluation)
    async with answering():
        if await redis.set(lease, token, nx=True, px=LEASE_MS):
            return True
        if await redis.get(lease) != token.encode():
            return False
        return bool(await redis.pexpire(lease, LEASE_MS))


async def drop_lease(redis: Redis, keys: Keys, evaluation: str, token: str) -> None:
    """Let the lease go, if it is ours."""
    lease = keys.evaluation_lease(evaluation)
    async with answering():
        if await redis.get(lease) == token.encode():
            await redis.delete(lease)
