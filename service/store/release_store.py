"""Releases in Redis: the newest of each policy, with the sums of the step at which it stands.

A release is changed by one script, together with the traffic of its loop. The script names the revision of the release
and, where the traffic changes, the epoch of the loop that its caller saw. So of two processes that work on the same
release one writes, and the other looks again: no step is taken twice or by half.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import orjson
from redis.asyncio import Redis

from service.errors import NotFound, UnreadableRecord
from service.records import START, Change, LoopRecord
from service.store import change_log
from service.store.codec import FORMAT, check_format
from service.store.connection import Value, answering, now, script
from service.store.keys import CHANGES, Keys
from service.store.loop_store import new_epoch

LEASE = "@release"  # stands where leases of policies do; no policy has such a name
MOST_LOOKS = 50  # that are kept, the newest
SERVED_MS = 30 * 86_400_000  # for which counts are kept that nobody adds to
COUNTS = ("decisions", "slow", "degraded")


@dataclass(frozen=True)
class ReleaseRecord:
    """A release as its loop's home holds it."""

    id: str
    policy: str
    by: str  # who asked for it
    created: float  # unix seconds, as all times here
    steps: Sequence[float]
    guard: Mapping[str, Any]
    confidence: float  # that it goes the right way at every step
    before: Mapping[str, float]  # the traffic to go back to
    epoch: int  # of the loop, since this step; workers adopt it
    begun: float  # when this step began
    state: str = "running"  # running | done | rolled_back | cancelled
    step: int = 0  # number of the step at which it stands, from 0 on
    start: int | None = None  # place from which decisions count; None: not every worker has adopted the step yet
    position: str = START  # of the last entry of the log in the sums
    wait_ms: int = 0  # the loop's wait time when the decisions began to count
    why: str = ""  # what the newest look said, or why it ended
    ended: float | None = None
    looks: Sequence[Mapping[str, Any]] = ()  # the newest, oldest first
    taken: Sequence[Mapping[str, Any]] = ()  # each change of the traffic: at, share, why

    @property
    def running(self) -> bool:
        return self.state == "running"

    @property
    def share(self) -> float:
        """The policy's share of the traffic since the newest change that the release made."""
        return float(self.taken[-1]["share"])


@dataclass(frozen=True)
class StoredRelease:
    """A release, and the revision that a change of it names."""

    record: ReleaseRecord
    revision: int


async def read_release(redis: Redis, keys: Keys, policy: str) -> StoredRelease | None:
    """Return the newest release of a policy, None where there was none.

    Raises:
        NewerFormat: a newer version wrote it.
        UnreadableRecord: it is garbled.
    """
    async with answering():
        v, said, revision = await redis.hmget(keys.release(policy), "v", "said", "revision")
    if said is None:
        return None
    check_format(f"the release of policy {policy!r}", v)
    try:
        known = {field.name for field in fields(ReleaseRecord)}
        record = ReleaseRecord(**{name: value for name, value in orjson.loads(said).items() if name in known})
    except (TypeError, ValueError) as error:
        raise UnreadableRecord(f"the release of policy {policy!r} cannot be read: {error!r}") from error
    return StoredRelease(record, int(revision))


async def read_sums(redis: Redis, keys: Keys, policy: str) -> bytes:
    """Return the sums of the step at which a release stands, as `pack` wrote them.

    They may be newer than a release that was read before. Then what is made of both is refused, for its revision.
    """
    async with answering():
        sums: bytes | None = await redis.hget(keys.release(policy), "sums")
    return sums or b""


async def need_release(redis: Redis, keys: Keys, policy: str) -> StoredRelease:
    """Return the newest release of a policy.

    Raises:
        NotFound: there was none.
        NewerFormat, UnreadableRecord: as `read_release`.
    """
    found = await read_release(redis, keys, policy)
    if found is None:
        raise NotFound(f"policy {policy!r} was never released in loop {keys.loop!r}", code="unknown_release")
    return found


async def write_release(
    redis: Redis,
    seen: LoopRecord,
    revision: int,
    record: ReleaseRecord,
    *,
    sums: bytes | None = None,
    changes: Mapping[str, Any] | None = None,
    change: Change | None = None,
) -> int:
    """Write a release, alone or with a change of its loop; return the loop's epoch.

    Args:
        seen: the loop that the change was made from.
        revision: of the release that it was made from; 0: there was none.
        sums: of the step; None: as they were.
        changes: fields of the loop, as JSON.
        change: the loop's, to be written down.

    Raises:
        StaleEpoch: somebody else changed the loop or the release meanwhile; look again.
        NotFound: the loop is gone.
    """
    keys = Keys(seen.name, seen.id)
    of_loop: list[Value] = [part for name, value in (changes or {}).items() for part in (name, orjson.dumps(value))]
    of_release: list[Value] = ["v", FORMAT, "id", record.id, "said", orjson.dumps(asdict(record))]
    if sums is not None:
        of_release += ("sums", sums)
    answer = await script("change_release")(
        redis,
        (keys.record, keys.change_log, keys.release(record.policy)),
        (
            CHANGES,
            seen.name,
            seen.id,
            "" if changes is None else seen.epoch,
            revision,
            *change_log.logged(change),
            len(of_loop) // 2,
            *of_loop,
            *of_release,
        ),
    )
    return new_epoch(answer, seen.name)


async def cancel_release(
    redis: Redis,
    seen: LoopRecord,
    found: StoredRelease,
    changes: Mapping[str, Any],
    change: Change,
    *,
    share: float,
    why: str,
) -> int:
    """End a release before it is done, with a change of its loop; return the loop's epoch.

    Args:
        share: the policy's from now on.

    Raises:
        StaleEpoch, NotFound: as `write_release`.
    """
    at = await now(redis)
    taken = [*found.record.taken, {"at": at, "share": share, "why": why}]
    record = replace(found.record, state="cancelled", why=why, ended=at, taken=taken)
    changes = {**changes, "release": None}
    return await write_release(redis, seen, found.revision, record, sums=b"", changes=changes, change=change)


async def count_served(redis: Redis, keys: Keys, policy: str, release: str, counts: Mapping[str, int]) -> None:
    """Add to the counts of decisions that a policy served in a release, by name of `COUNTS`."""
    async with answering(), redis.pipeline(transaction=False) as pipe:
        for name, count in counts.items():
            pipe.hincrby(keys.release_served(policy), f"{release}:{name}", count)
        pipe.pexpire(keys.release_served(policy), SERVED_MS)
        await pipe.execute()


async def read_served(redis: Redis, keys: Keys, policy: str, release: str) -> dict[str, int]:
    """Return the counts of `COUNTS`."""
    async with answering():
        found = await redis.hmget(keys.release_served(policy), [f"{release}:{name}" for name in COUNTS])
    return {name: int(count or 0) for name, count in zip(COUNTS, found, strict=True)}


async def forget_served(redis: Redis, keys: Keys, policy: str) -> None:
    """Drop the counts of former releases."""
    async with answering():
        await redis.delete(keys.release_served(policy))
