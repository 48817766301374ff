"""Policies in Redis: records, the lease that lets one learner write, checkpoints, versions."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import orjson
from redis.asyncio import Redis

from service.errors import Conflict, NotFound, StoreUnavailable, UnreadableRecord
from service.records import Change, DeadLetter, LoopRecord, PolicyRecord
from service.store import change_log
from service.store.codec import letters_bytes, policy_fields, read_policy_fields
from service.store.codec import read_letters as letters_of
from service.store.connection import answering, script
from service.store.keys import CHANGES, Keys
from service.store.loop_store import new_epoch


async def create_policy(
    redis: Redis, keys: Keys, record: PolicyRecord, *, serve_alone: bool = False, change: Change | None = None
) -> int:
    """Make a policy, whole; return the loop's new epoch.

    Args:
        serve_alone: give it all the traffic of a loop that has none.
        change: to be written down.

    Raises:
        Conflict: the name is taken.
        NotFound: the loop is gone.
    """
    fields = [part for pair in policy_fields(record).items() for part in pair]
    answer = await script("create_policy")(
        redis,
        (keys.record, keys.policies, keys.policy(record.name), keys.change_log),
        (CHANGES, keys.loop, keys.id, record.name, int(serve_alone), *change_log.logged(change), *fields),
    )
    if answer == b"exists":
        raise Conflict(f"policy {record.name!r} exists in loop {keys.loop!r}; delete it first", code="policy_exists")
    return new_epoch(answer, keys.loop)


async def policy_names(redis: Redis, keys: Keys) -> list[str]:
    """Return the names of a loop's policies, in order."""
    async with answering():
        return sorted(name.decode() for name in await redis.smembers(keys.policies))


async def read_policy(redis: Redis, keys: Keys, name: str) -> PolicyRecord:
    """Read a policy's record.

    Raises:
        NotFound: there is no such policy.
        NewerFormat: a newer version wrote it.
        UnreadableRecord: it is garbled.
    """
    async with answering():
        stored = await redis.hgetall(keys.policy(name))
    if not stored:
        raise NotFound(f"there is no policy {name!r} in loop {keys.loop!r}", code="unknown_policy")
    try:
        return read_policy_fields(name, stored)
    except (KeyError, TypeError, ValueError) as error:
        raise UnreadableRecord(
            f"the record of policy {name!r} in loop {keys.loop!r} cannot be read ({type(error).__name__}: {error}); "
            f"DELETE /policies/{name} removes the policy"
        ) from error


async def delete_policy(redis: Redis, seen: LoopRecord, name: str, change: Change | None = None) -> int:
    """Delete a policy with all that it has; return the loop's new epoch.

    Raises:
        StaleEpoch: somebody else changed the loop meanwhile; look again.
        NotFound: the loop is gone.
    """
    keys = Keys(seen.name, seen.id)
    pins = {policy: version for policy, version in seen.pins.items() if policy != name}
    answer = await script("delete_policy")(
        redis,
        (
            keys.record,
            keys.policies,
            keys.change_log,
            keys.policy(name),
            keys.state(name),
            keys.letters(name),
            keys.snapshots(name),
            keys.versions(name),
            keys.history(name),
            keys.release(name),
            keys.release_served(name),
            keys.lease(name),
            keys.fence(name),
        ),
        (CHANGES, seen.name, seen.id, seen.epoch, name, orjson.dumps(pins), *change_log.logged(change)),
    )
    return new_epoch(answer, seen.name)


async def pin_version(redis: Redis, seen: LoopRecord, name: str, version: int, change: Change | None = None) -> int:
    """Pin a policy's version, so that it is served and never dropped; return the loop's new epoch.

    Raises:
        StaleEpoch: somebody else changed the loop meanwhile; look again.
        NotFound: the loop is gone, or the version is not kept.
        Conflict: the version was deleted because it had learned from a user who was erased.
    """
    keys = Keys(seen.name, seen.id)
    answer = await script("pin_version")(
        redis,
        (keys.record, keys.snapshots(name), keys.change_log),
        (
            CHANGES,
            seen.name,
            seen.id,
            seen.epoch,
            version,
            orjson.dumps({**seen.pins, name: version}),
            *change_log.logged(change),
        ),
    )
    if answer == b"missing":
        erased = (await read_policy(redis, keys, name)).erased
        if 0 < version <= erased:
            raise Conflict(
                f"version {version} of policy {name!r} is gone for good: a user was erased, and it had learned from "
                f"events of his. So had every version up to {erased}",
                code="version_erased",
            )
        kept = await kept_versions(redis, keys, name)
        raise NotFound(
            f"version {version} of policy {name!r} is not kept; kept are {_ranges(kept)}", code="unknown_version"
        )
    return new_epoch(answer, seen.name)


def _ranges(versions: Sequence[int]) -> str:
    return f"{versions[0]} to {versions[-1]}" if versions else "none"


async def kept_versions(redis: Redis, keys: Keys, name: str) -> list[int]:
    """Return the versions whose snapshots are kept, oldest first."""
    async with answering():
        return [int(member.split(b":")[0]) for member in await redis.zrange(keys.versions(name), 0, -1)]


async def kept_encoders(redis: Redis, keys: Keys, name: str) -> dict[int, str | None]:
    """Return kept version -> its encoder, oldest first; None is the loop's first encoder."""
    async with answering():
        members = [member.decode().split(":") for member in await redis.zrange(keys.versions(name), 0, -1)]
    return {int(version): encoder[0] if encoder else None for version, _, *encoder in members}


async def version_position(redis: Redis, keys: Keys, name: str, version: int) -> str | None:
    """Return the position in the log that a version had learned to, None when no longer known."""
    async with answering():
        found = await redis.xrange(keys.history(name), min=f"{version}-0", max=f"{version}-0")
    return found[0][1][b"position"].decode() if found else None


async def read_snapshot(redis: Redis, keys: Keys, name: str, version: int) -> bytes | None:
    """Return the snapshot of a version, None when it is not kept."""
    async with answering():
        snapshot: bytes | None = await redis.hget(keys.snapshots(name), str(version))
    return snapshot


async def read_state(redis: Redis, keys: Keys, name: str) -> bytes | None:
    """Return the checkpointed state, None before the first."""
    async with answering():
        state: bytes | None = await redis.get(keys.state(name))
    return state


async def read_letters(redis: Redis, keys: Keys, name: str) -> dict[str, DeadLetter]:
    """Return position -> dead letter of a policy, in order.

    Raises:
        NewerFormat: a newer version wrote them.
    """
    async with answering():
        stored = await redis.get(keys.letters(name))
    return {} if stored is None else letters_of(stored)


async def latest_versions(redis: Redis, keys: Keys, names: Sequence[str]) -> dict[str, tuple[str, int]]:
    """Return policy -> (its id, its newest version); policies that are gone are left out."""
    found = await newest_versions(redis, [(keys, name) for name in names])
    return {name: newest for name, newest in zip(names, found, strict=True) if newest is not None}


async def newest_versions(redis: Redis, policies: Sequence[tuple[Keys, str]]) -> list[tuple[str, int] | None]:
    """Return (id, newest version) of policies of any loops, None for one that is gone."""
    async with answering(), redis.pipeline(transaction=False) as pipe:
        for keys, name in policies:
            pipe.hmget(keys.policy(name), "id", "version")
        found = await pipe.execute()
    return [None if policy_id is None else (policy_id.decode(), int(version)) for policy_id, version in found]


class Lease:
    """The right to write one policy. A new holder has a higher token, and only the current token can write."""

    def __init__(self, redis: Redis, keys: Keys, policy: str, *, ttl_ms: int = 5000) -> None:
        self._redis, self._keys, self._policy, self._ttl = redis, keys, policy, ttl_ms
        self.token: int | None = None

    async def acquire(self) -> bool:
        """Take the lease if nobody holds it; True when it is now ours."""
        async with answering():
            token = await self._redis.incr(self._keys.fence(self._policy))
            if await self._redis.set(self._keys.lease(self._policy), token, nx=True, px=self._ttl):
                self.token = token
        return self.token is not None

    async def renew(self) -> bool:
        """Hold it for longer; False when it was lost."""
        if self.token is None:
            return False
        held = await script("renew_lease")(self._redis, (self._keys.lease(self._policy),), (self.token, self._ttl))
        if not held:
            self.token = None
        return bool(held)

    async def keep(self) -> None:
        """Renew it for as long as it is held, until cancelled: for work that may take longer than it lasts.

        It ends early where Redis does not answer. Whoever writes next then hears of it.
        """
        with suppress(StoreUnavailable):
            while await self.renew():
                await asyncio.sleep(self._ttl / 4000)

    async def release(self) -> None:
        """Let the next learner take over at once."""
        if self.token is not None:
            await script("renew_lease")(self._redis, (self._keys.lease(self._policy),), (self.token, 1))
            self.token = None

    async def publish(
        self,
        record: PolicyRecord,
        *,
        state: bytes,
        snapshot: bytes,
        budget: int,
        new_alarms: Sequence[Mapping[str, Any]],
        letters: Iterable[DeadLetter] | None = None,
        encoder: str | None = None,
        schemas: Mapping[str, Mapping[str, Any]] | None = None,
        anew: bool = False,
        most_encoders: int | None = None,
    ) -> bool:
        """Checkpoint (and publish, unless `snapshot` is empty) in one atomic write; False when the lease was lost.

        Args:
            record: the policy as it is now: position, events, set aside, skipped, version, alarms.
            budget: bytes for the kept versions.
            new_alarms: those that are not in the loop's stream of alarms yet.
            letters: all its dead letters; None: as they were.
            encoder: version of the encoder that the snapshot is for; None: the loop's first.
            schemas: version -> schema of encoders that may not be written down yet.
            anew: all versions of before are deleted, and what tells how to make them again; a pin goes with them.
            most_encoders: encoders for which versions are kept; None: no new one has come.
        """
        known = [part for version, schema in (schemas or {}).items() for part in (version, orjson.dumps(schema))]
        keys, name = self._keys, self._policy
        done = await script("publish")(
            self._redis,
            (
                keys.lease(name),
                keys.policy(name),
                keys.state(name),
                keys.letters(name),
                keys.versions(name),
                keys.history(name),
                keys.snapshots(name),
                keys.record,
                keys.alarms,
                keys.encoders,
            ),
            (
                self.token or 0,
                keys.id,
                record.id,
                name,
                CHANGES,
                keys.loop,
                record.position,
                record.events,
                record.skipped,
                record.set_aside,
                state,
                b"" if letters is None else letters_bytes(letters),
                record.version,
                snapshot,
                budget,
                orjson.dumps(record.alarms),
                orjson.dumps(record.encoding),
                encoder or "",
                "" if most_encoders is None else most_encoders,
                int(anew),
                record.apart,
                len(schemas or {}),
                *known,
                *(orjson.dumps({"policy": name, **alarm}) for alarm in new_alarms),
            ),
        )
        if not done:
            self.token = None
        return bool(done)
