"""Who serves whom: traffic shares, activation, and rollback to a kept version."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from redis.asyncio import Redis

from service.admin.adoption import Adoption, adoption
from service.admin.change import change
from service.admin.encoders import encoder_for
from service.admin.releases import change_traffic
from service.decide.active import build_scorer
from service.errors import Conflict, InvalidRequest
from service.records import Change, LoopRecord
from service.serve.follower import Follower
from service.store import policy_store
from service.store.codec import encoder_of, unpack
from service.store.connection import now
from service.store.keys import Keys


async def set_traffic(redis: Redis, follower: Follower, loop: str, shares: Mapping[str, float], *, by: str) -> Adoption:
    """Split the traffic.

    Raises:
        NotFound: there is no such loop.
        InvalidRequest: an unknown policy, or shares that do not sum to 1.
    """

    async def attempt(seen: LoopRecord) -> int:
        known = await policy_store.policy_names(redis, Keys(seen.name, seen.id))
        for name in shares:
            if name not in known:
                raise InvalidRequest(
                    name, f"there is no such policy in loop {loop!r}; there are {', '.join(known) or 'none'}"
                )
        traffic = {name: share for name, share in shares.items() if share > 0}
        noted = Change(by, "split traffic", seen.traffic, traffic)
        return await change_traffic(redis, seen, {"traffic": traffic}, noted)

    if not math.isclose(total := sum(shares.values()), 1.0, abs_tol=1e-9):
        raise InvalidRequest("traffic", f"the shares sum to {total:g}, not to 1")
    return await _adopted(redis, follower, *await change(redis, loop, attempt))


async def activate(redis: Redis, follower: Follower, loop: str, name: str, *, by: str) -> Adoption:
    """Give a policy all the traffic, at its newest version.

    Raises:
        NotFound: there is no such loop or policy.
        Conflict: an experiment has some of the traffic.
    """

    async def attempt(seen: LoopRecord) -> int:
        await policy_store.read_policy(redis, Keys(seen.name, seen.id), name)
        if (experiment := seen.experiment_at(await now(redis))) is not None:
            raise Conflict(
                f"experiment {experiment.name!r} has traffic of loop {loop!r}; end that first "
                f"(POST /experiments/{experiment.name}/end)",
                code="experiment_runs",
            )
        pins = {policy: version for policy, version in seen.pins.items() if policy != name}
        after: dict[str, Any] = {"traffic": {name: 1.0}, "pins": pins}
        noted = Change(by, "activate policy", {"traffic": seen.traffic, "pins": seen.pins}, after)
        return await change_traffic(redis, seen, after, noted)

    return await _adopted(redis, follower, *await change(redis, loop, attempt))


async def rollback(redis: Redis, follower: Follower, loop: str, name: str, version: int, *, by: str) -> Adoption:
    """Serve exactly this version, until the policy is activated again. It goes on learning meanwhile.

    Raises:
        NotFound: there is no such loop or policy, or the version is not kept.
        Conflict: its snapshot does not load, or it had learned from a user who was erased.
    """

    async def attempt(seen: LoopRecord) -> int:
        keys = Keys(seen.name, seen.id)
        policy = await policy_store.read_policy(redis, keys, name)
        snapshot = await policy_store.read_snapshot(redis, keys, name, version)
        if snapshot is not None:  # else the script says that it is missing
            try:
                encoder = await encoder_for(redis, seen, encoder_of(snapshot))
                build_scorer(policy, unpack(snapshot), encoder)
            except (ValueError, RuntimeError) as error:
                raise Conflict(
                    f"version {version} of policy {name!r} does not load: {error}", code="bad_snapshot"
                ) from error
        before = {"policy": name, "version": seen.pins.get(name)}  # null: the newest
        noted = Change(by, "roll back", before, {"policy": name, "version": version})
        return await policy_store.pin_version(redis, seen, name, version, noted)

    return await _adopted(redis, follower, *await change(redis, loop, attempt))


async def _adopted(redis: Redis, follower: Follower, seen: LoopRecord, epoch: int) -> Adoption:
    return await adoption(redis, follower, Keys(seen.name, seen.id), epoch)
