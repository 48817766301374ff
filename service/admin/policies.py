"""Make, train, delete and describe policies."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from redis.asyncio import Redis

from service.admin.change import change
from service.admin.encoders import encoder_for
from service.admin.releases import ReleaseStatus, release_status
from service.admin.shadows import ShadowStatus, shadows
from service.admin.validation import checked_params
from service.decide.active import build_scorer
from service.errors import Conflict, NotFound
from service.policies import KINDS
from service.records import Change, LoopRecord, PolicyRecord
from service.store import change_log, event_log, loop_store, policy_store
from service.store.codec import encoder_of, unpack
from service.store.connection import now
from service.store.keys import Keys


@dataclass(frozen=True)
class PolicyDescription:
    """A policy as an administrator sees it."""

    record: PolicyRecord
    lag: int  # events in the log that it has still to learn
    share: float
    pinned: int | None
    kept_versions: list[int]
    release: ReleaseStatus | None = None  # the newest
    shadow: ShadowStatus | None = None  # None: it serves, or is too new
    summary: dict[str, Any] | None = None


async def create_policy(
    redis: Redis,
    loop: LoopRecord,
    name: str,
    kind: str,
    params: Mapping[str, Any],
    *,
    by: str,
    serve_alone: bool = False,
) -> None:
    """Make a policy: it learns the retained log first, in the shadow. A batch-trained one trains on it at once.

    Raises:
        InvalidRequest: there is no such kind, or a parameter is wrong.
        Conflict: the name is taken.
        NotFound: the loop is gone.
    """
    record = PolicyRecord(
        name=name,
        id=uuid4().hex[:12],
        kind=kind,
        params=checked_params(kind, params),
        seed=0,
        retention=loop.settings.retention,
        begun=loop.newest,
    )
    keys = Keys(loop.name, loop.id)
    if KINDS[kind].batch_trained:
        # Asked for first: a request to train that names a policy which never came to be asks nobody.
        await event_log.append_training(redis, keys, name, record.id)
    noted = Change(by, "make policy", None, {"policy": name, "kind": kind, "params": record.params})
    await policy_store.create_policy(redis, keys, record, serve_alone=serve_alone, change=noted)


async def train(redis: Redis, loop: str, name: str, *, by: str) -> str:
    """Ask a batch-trained policy to train anew on the retained log; return the request's position in the log.

    Raises:
        NotFound: there is no such loop or policy.
        Conflict: the policy learns by itself.
    """
    record = await loop_store.read_loop(redis, loop)
    keys = Keys(loop, record.id)
    policy = await policy_store.read_policy(redis, keys, name)
    if policy.kind in KINDS and not KINDS[policy.kind].batch_trained:
        raise Conflict(
            f"{policy.kind} learns from every event by itself; there is nothing to train", code="not_trained"
        )
    await change_log.append(redis, keys.change_log, Change(by, "train policy", None, {"policy": name}))
    return await event_log.append_training(redis, keys, name, policy.id)


async def delete_policy(redis: Redis, loop: str, name: str, *, by: str) -> None:
    """Delete a policy that has no share of the traffic.

    Raises:
        NotFound: there is no such loop or policy.
        Conflict: the policy serves, or is in an experiment.
    """

    async def attempt(seen: LoopRecord) -> int:
        if name not in await policy_store.policy_names(redis, Keys(seen.name, seen.id)):
            raise NotFound(f"there is no policy {name!r} in loop {loop!r}", code="unknown_policy")
        if seen.traffic.get(name):
            raise Conflict(f"policy {name!r} serves; give its traffic to another one first", code="policy_serves")
        experiment = seen.experiment_at(await now(redis))
        if experiment is not None and name in {arm.policy for arm in experiment.arms.values()}:
            raise Conflict(
                f"policy {name!r} is in experiment {experiment.name!r}; end that first", code="experiment_runs"
            )
        before: dict[str, Any] = {"policy": name}
        with suppress(Conflict):  # a record that cannot be read can be deleted
            record = await policy_store.read_policy(redis, Keys(seen.name, seen.id), name)
            before |= {"kind": record.kind, "params": record.params}
        return await policy_store.delete_policy(redis, seen, name, Change(by, "delete policy", before, None))

    await change(redis, loop, attempt)


async def describe(redis: Redis, loop: str, name: str, *, summary: bool = False) -> PolicyDescription:
    """Return what is known of a policy, with a summary of what it has learned if asked for.

    Raises:
        NotFound: there is no such loop or policy.
    """
    record = await loop_store.read_loop(redis, loop)
    keys = Keys(loop, record.id)
    policy = await policy_store.read_policy(redis, keys, name)
    stats = await event_log.read_stats(redis, keys)
    return PolicyDescription(
        record=policy,
        lag=event_log.lag(stats, policy),
        share=record.traffic.get(name, 0.0),
        pinned=record.pins.get(name),
        kept_versions=await policy_store.kept_versions(redis, keys, name),
        release=await release_status(redis, keys, name),
        shadow=(await shadows(redis, keys)).get(name),
        summary=await _summary(redis, record, policy) if summary else None,
    )


async def _summary(redis: Redis, loop: LoopRecord, policy: PolicyRecord) -> dict[str, Any]:
    snapshot = await policy_store.read_snapshot(redis, Keys(loop.name, loop.id), policy.name, policy.version)
    if not snapshot:
        return {}
    encoder = await encoder_for(redis, loop, encoder_of(snapshot))
    return build_scorer(policy, unpack(snapshot), encoder).summary()


async def describe_all(redis: Redis, loop: str) -> list[PolicyDescription]:
    """Return what is known of every policy of a loop.

    Raises:
        NotFound: there is no such loop.
    """
    record = await loop_store.read_loop(redis, loop)
    found = []
    for name in await policy_store.policy_names(redis, Keys(loop, record.id)):
        try:
            found.append(await describe(redis, loop, name))
        except NotFound:  # deleted this very moment
            continue
    return found
