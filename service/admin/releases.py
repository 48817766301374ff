"""Releases: a policy gets its traffic step by step. Asked for, looked at, cancelled; the learner takes the steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any
from uuid import uuid4

import orjson
from pydantic import BaseModel, Field
from redis.asyncio import Redis

from service.admin.change import change
from service.errors import Conflict, InvalidRequest, UnreadableRecord
from service.evaluate.release import split
from service.records import Change, LoopRecord
from service.serve.follower import Follower
from service.store import event_log, loop_store, policy_store, release_store
from service.store.connection import now
from service.store.keys import Keys
from service.store.release_store import ReleaseRecord


class ReleaseStatus(BaseModel):
    """The newest release of a policy, in short."""

    state: str = Field(description="running, done, rolled_back or cancelled")
    share: float = Field(description="of the traffic, that the release gave last")
    step: int = Field(description="at which it stands or ended, from 1 on")
    steps: list[float]
    why: str = Field(description="what the newest look said, or why it ended")


async def start_release(
    redis: Redis,
    follower: Follower,
    loop: str,
    name: str,
    *,
    steps: Sequence[float],
    guard: Mapping[str, Any],
    confidence: float,
    by: str,
) -> ReleaseRecord:
    """Give a policy the first of its shares; the learner goes on from there.

    Args:
        steps: shares in (0, 1], at least one.
        guard: fields of `Guard`.
        confidence: that no step goes the wrong way.

    Raises:
        NotFound: there is no such loop or policy.
        InvalidRequest: the steps do not rise, or the first is 1, or not above the share that it has.
        Conflict: another release runs in the loop, nobody else serves, or the policy has not learned the log yet.
    """

    made: list[ReleaseRecord] = []  # one a try

    async def attempt(seen: LoopRecord) -> int:
        keys = Keys(seen.name, seen.id)
        await _check(redis, seen, name, steps, most_lag=guard["lag"])
        former = await release_store.read_release(redis, keys, name)
        at, traffic = await now(redis), split(seen.traffic, name, steps[0])
        record = ReleaseRecord(
            id=uuid4().hex[:12],
            policy=name,
            by=by,
            created=at,
            steps=list(steps),
            guard=dict(guard),
            confidence=confidence,
            before=seen.traffic,
            epoch=seen.epoch + 1,
            begun=at,
            why="it begins",
            taken=[{"at": at, "share": steps[0], "why": "it begins"}],
        )
        made.append(record)
        await release_store.forget_served(redis, keys, name)
        running = {"policy": name, "id": record.id, "latency_ms": guard["latency_ms"]}
        noted = Change(by, "begin release", seen.traffic, traffic)
        return await release_store.write_release(
            redis,
            seen,
            0 if former is None else former.revision,
            record,
            sums=b"",
            changes={"traffic": traffic, "release": running},
            change=noted,
        )

    await change(redis, loop, attempt)
    follower.nudge(loop)
    return made[-1]


async def _check(redis: Redis, seen: LoopRecord, name: str, steps: Sequence[float], *, most_lag: int) -> None:
    keys = Keys(seen.name, seen.id)
    policy = await policy_store.read_policy(redis, keys, name)
    if seen.release is not None:
        raise Conflict(
            f"a release of policy {seen.release['policy']!r} runs in loop {seen.name!r}; wait, or cancel it",
            code="release_runs",
        )
    share = seen.traffic.get(name, 0.0)
    if list(steps) != sorted(set(steps)):
        raise InvalidRequest("steps", "each must be larger than the one before")
    if steps[0] >= 1:
        raise InvalidRequest("steps", "the first must be below 1, or there is nobody to compare with; or activate it")
    if steps[0] <= share:
        raise InvalidRequest("steps", f"the first must be larger than the share that {name!r} has, {share:g}")
    if not seen.traffic.keys() - {name}:
        raise Conflict(
            f"nobody else serves in loop {seen.name!r}, so there is nobody to compare {name!r} with; activate it",
            code="nothing_to_compare",
        )
    stats = await event_log.read_stats(redis, keys)
    left = event_log.lag(stats, policy)
    if left > most_lag or (policy.version == 0 and stats.get("events")):
        raise Conflict(
            f"policy {name!r} has still to learn {left:,} events, and version {policy.version} is its newest; release"
            " it when it has learned the log",
            code="not_learned_yet",
        )


async def read_release(redis: Redis, loop: str, name: str) -> ReleaseRecord:
    """Return the newest release of a policy.

    Raises:
        NotFound: there is no such loop, or the policy was never released.
    """
    seen = await loop_store.read_loop(redis, loop)
    return (await release_store.need_release(redis, Keys(loop, seen.id), name)).record


async def release_status(redis: Redis, keys: Keys, name: str) -> ReleaseStatus | None:
    """Return how the newest release of a policy stands, None where there was none, or it cannot be read."""
    with suppress(Conflict):
        if (found := await release_store.read_release(redis, keys, name)) is not None:
            record = found.record
            return ReleaseStatus(
                state=record.state,
                share=record.share,
                step=record.step + 1,
                steps=list(record.steps),
                why=record.why,
            )
    return None


async def cancel_release(redis: Redis, follower: Follower, loop: str, name: str, *, by: str) -> ReleaseRecord:
    """Go back to the traffic before the release, and end it; one that has ended stays as it is.

    Raises:
        NotFound: there is no such loop, or the policy was never released.
    """

    async def attempt(seen: LoopRecord) -> int:
        found = await release_store.need_release(redis, Keys(seen.name, seen.id), name)
        if not found.record.running:
            return seen.epoch
        noted = Change(by, "cancel release", seen.traffic, found.record.before)
        why = f"{by} cancelled it; the traffic is as it was before"
        share = found.record.before.get(name, 0.0)
        return await release_store.cancel_release(
            redis, seen, found, {"traffic": found.record.before}, noted, share=share, why=why
        )

    await change(redis, loop, attempt)
    follower.nudge(loop)
    return await read_release(redis, loop, name)


async def change_traffic(redis: Redis, seen: LoopRecord, changes: Mapping[str, Any], noted: Change) -> int:
    """Change a loop's traffic by a person's word, which ends a release that runs; return the new epoch.

    Args:
        changes: fields of the loop, `traffic` among them.

    Raises:
        StaleEpoch, NotFound: as `loop_store.change_loop`.
    """
    found = None
    if seen.release is not None:
        name = seen.release["policy"]
        with suppress(UnreadableRecord):  # a garbled release stops nobody
            found = await release_store.read_release(redis, Keys(seen.name, seen.id), name)
    if found is None:
        written = {field: orjson.dumps(value) for field, value in {**changes, "release": None}.items()}
        return await loop_store.change_loop(redis, seen, written, noted)
    why = f"{noted.by} changed the traffic ({noted.what}), which stays as it was changed"
    return await release_store.cancel_release(
        redis, seen, found, changes, noted, share=changes["traffic"].get(name, 0.0), why=why
    )
