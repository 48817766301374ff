"""Policies in Redis: who may write one (lease), checkpoints, versions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson
from redis.asyncio import Redis

from service.errors import Conflict, NotFound
from service.store.connection import script
from service.store.keys import CHANGES, LEARNER, Keys
from service.store.log import START
from service.store.loops import answering

LEARNER_TTL_MS = 10_000


@dataclass(frozen=True)
class PolicyRecord:
    """The policy's hash, decoded."""

    name: str
    kind: str
    params: dict[str, Any]
    seed: int
    version: int = 0  # 0: no snapshot yet
    position: str = START  # the last entry of the log that it has learned from
    events: int = 0  # learned
    skipped: int = 0  # events that the log no longer held when the policy was made
    bytes: int = 0  # of the learned state and the newest snapshot
    kept: int = 0  # of all kept snapshots
    published: float | None = None  # unix seconds
    alarms: list[dict[str, Any]] = field(default_factory=list)  # the newest, each with its number, oldest first


async def create_policy(redis: Redis, loop: str, record: PolicyRecord) -> None:
    """Raises Conflict when the name is taken."""
    keys = Keys(loop)
    async with answering():
        if not await redis.hsetnx(keys.policy(record.name), "kind", record.kind):
            raise Conflict(f"policy {record.name!r} exists in loop {loop!r}; delete it first", code="policy_exists")
        await redis.hset(
            keys.policy(record.name),
            mapping={
                "params": orjson.dumps(record.params),
                "seed": record.seed,
                "version": 0,
                "position": START,
                "events": 0,
                "skipped": int(await redis.hget(keys.stats, "trimmed") or 0),
                "alarms": "[]",
            },
        )
        await redis.sadd(keys.policies, record.name)
        await redis.publish(CHANGES, loop)


async def policy_names(redis: Redis, loop: str) -> list[str]:
    async with answering():
        return sorted(name.decode() for name in await redis.smembers(Keys(loop).policies))


async def read_policy(redis: Redis, loop: str, name: str) -> PolicyRecord:
    """Raises NotFound."""
    async with answering():
        stored = await redis.hgetall(Keys(loop).policy(name))
    if b"alarms" not in stored:
        raise NotFound(f"there is no policy {name!r} in loop {loop!r}", code="unknown_policy")
    return PolicyRecord(
        name=name,
        kind=stored[b"kind"].decode(),
        params=orjson.loads(stored[b"params"]),
        seed=int(stored[b"seed"]),
        version=int(stored[b"version"]),
        position=stored[b"position"].decode(),
        events=int(stored[b"events"]),
        skipped=int(stored[b"skipped"]),
        bytes=int(stored.get(b"bytes", 0)),
        kept=int(stored.get(b"kept", 0)),
        published=int(stored[b"published"]) / 1000 if b"published" in stored else None,
        alarms=orjson.loads(stored[b"alarms"]),
    )


async def delete_policy(redis: Redis, loop: str, name: str) -> None:
    keys = Keys(loop)
    async with answering():
        await redis.srem(keys.policies, name)
        versions = await redis.zrange(keys.versions(name), 0, -1)
        await redis.unlink(
            keys.policy(name),
            keys.state(name),
            keys.versions(name),
            keys.history(name),
            keys.lease(name),
            *(keys.snapshots(name) + member.decode().split(":")[0] for member in versions),
        )
        await redis.publish(CHANGES, loop)


async def kept_versions(redis: Redis, loop: str, name: str) -> list[int]:
    """Versions whose snapshots are kept, oldest first."""
    async with answering():
        return [int(member.split(b":")[0]) for member in await redis.zrange(Keys(loop).versions(name), 0, -1)]


async def version_position(redis: Redis, loop: str, name: str, version: int) -> str | None:
    """The position in the log that a version had learned to, None when no longer known."""
    async with answering():
        found = await redis.xrange(Keys(loop).history(name), min=f"{version}-0", max=f"{version}-0")
    return found[0][1][b"position"].decode() if found else None


async def read_snapshot(redis: Redis, loop: str, name: str, version: int) -> bytes | None:
    async with answering():
        snapshot: bytes | None = await redis.get(f"{Keys(loop).snapshots(name)}{version}")
    return snapshot


async def read_state(redis: Redis, loop: str, name: str) -> bytes | None:
    """The checkpointed state, None before the first."""
    async with answering():
        state: bytes | None = await redis.get(Keys(loop).state(name))
    return state


async def latest_versions(redis: Redis, loop: str, names: list[str]) -> dict[str, int]:
    """Policy -> newest version; policies that are gone are left out."""
    keys = Keys(loop)
    async with answering(), redis.pipeline(transaction=False) as pipe:
        for name in names:
            pipe.hget(keys.policy(name), "version")
        versions = await pipe.execute()
    return {name: int(version) for name, version in zip(names, versions, strict=True) if version is not None}


class Lease:
    """The right to write one policy. A new holder has a higher token, and only the current token can write."""

    def __init__(self, redis: Redis, loop: str, policy: str, *, ttl_ms: int = 5000) -> None:
        self._redis, self._keys, self._policy, self._ttl = redis, Keys(loop), policy, ttl_ms
        self._loop = loop
        self.token: int | None = None

    async def acquire(self) -> bool:
        """True when the lease is now ours."""
        async with answering():
            token = await self._redis.incr(self._keys.fence(self._policy))
            if await self._redis.set(self._keys.lease(self._policy), token, nx=True, px=self._ttl):
                self.token = token
        return self.token is not None

    async def renew(self) -> bool:
        """False when it was lost."""
        if self.token is None:
            return False
        held = await script("renew")(self._redis, (self._keys.lease(self._policy),), (self.token, self._ttl))
        if not held:
            self.token = None
        return bool(held)

    async def release(self) -> None:
        """Let the next learner take over at once."""
        if self.token is not None:
            await script("renew")(self._redis, (self._keys.lease(self._policy),), (self.token, 1))
            self.token = None

    async def publish(
        self,
        *,
        position: str,
        events: int,
        state: bytes,
        version: int,
        snapshot: bytes,
        budget: int,
        alarms: Sequence[Mapping[str, Any]],
        alarms_logged: int,
    ) -> bool:
        """Checkpoint (and publish, unless `snapshot` is empty) in one atomic write; False when the lease was lost.

        Alarms numbered above `alarms_logged` are appended to the event log too.
        """
        keys, name = self._keys, self._policy
        done = await script("publish")(
            self._redis,
            (
                keys.lease(name),
                keys.policy(name),
                keys.state(name),
                keys.versions(name),
                keys.history(name),
                keys.loop,
                keys.events,
            ),
            (
                self.token or 0,
                name,
                position,
                events,
                state,
                version,
                snapshot,
                keys.snapshots(name),
                budget,
                orjson.dumps(alarms),
                *(orjson.dumps({"alarm": {"policy": name, **a}}) for a in alarms if a["number"] > alarms_logged),
            ),
        )
        if done and snapshot:
            async with answering():
                await self._redis.publish(CHANGES, self._loop)
        if not done:
            self.token = None
        return bool(done)


async def learner_heartbeat(redis: Redis) -> None:
    """Says that a learner is at work; for /status and for health checks."""
    async with answering():
        await redis.set(LEARNER, 1, px=LEARNER_TTL_MS)


async def learner_alive(redis: Redis) -> bool:
    """Whether a learner has been heard of lately."""
    async with answering():
        return bool(await redis.exists(LEARNER))
