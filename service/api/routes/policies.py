"""Kinds, policies and traffic: create, watch, activate, roll back."""

from fastapi import APIRouter

from service.admin import policies as administration
from service.admin import traffic as shares
from service.admin.policies import PolicyDescription
from service.api.problems import OF_BODIES, documented
from service.api.routes._depends import FollowerDep, KeyDep, LoopParam, RedisDep, StrictRoute, changed
from service.api.schemas import (
    Changed,
    KindList,
    PolicyBody,
    PolicyList,
    PolicyReply,
    Rollback,
    Traffic,
    TrainingReply,
)
from service.errors import Conflict, NotFound, StoreUnavailable
from service.policies import KINDS, describe_kinds
from service.store.loop_store import read_loop

router = APIRouter(tags=["policies"], route_class=StrictRoute)
READS = documented(NotFound, Conflict, StoreUnavailable)
WRITES = documented(*OF_BODIES, NotFound, Conflict, StoreUnavailable)


def _reply(found: PolicyDescription) -> PolicyReply:
    record = found.record
    return PolicyReply(
        name=record.name,
        kind=record.kind,
        params=dict(record.params),
        version=record.version,
        events=record.events,
        lag=found.lag,
        bytes=record.bytes,
        share=found.share,
        pinned=found.pinned,
        kept_versions=found.kept_versions,
        published=record.published,
        alarms=[dict(alarm) for alarm in record.alarms],
        release=found.release,
        shadow=found.shadow,
        summary=found.summary,
    )


@router.get("/kinds")
async def list_kinds() -> KindList:
    """List the kinds of policy that this service knows, each with its parameters as JSON Schema."""
    return KindList(kinds=describe_kinds())


@router.get("/policies", responses=READS)
async def list_policies(redis: RedisDep, loop: LoopParam = "default") -> PolicyList:
    """List the policies of a loop."""
    found = await administration.describe_all(redis, loop)
    return PolicyList(policies=[_reply(policy) for policy in found], kinds=sorted(KINDS))


@router.post("/policies", status_code=201, responses=WRITES)
async def create_policy(body: PolicyBody, redis: RedisDep, key: KeyDep, loop: LoopParam = "default") -> PolicyReply:
    """Make a policy. It learns the retained log, then along with the others; it serves once it is given traffic."""
    name = body.kind if body.name is None else body.name
    await administration.create_policy(redis, await read_loop(redis, loop), name, body.kind, body.params, by=key.name)
    return _reply(await administration.describe(redis, loop, name))


@router.get("/policies/{name}", responses=READS)
async def get_policy(name: str, redis: RedisDep, loop: LoopParam = "default") -> PolicyReply:
    """Return one policy, with a summary of what it has learned."""
    return _reply(await administration.describe(redis, loop, name, summary=True))


@router.delete("/policies/{name}", status_code=204, responses=WRITES)
async def delete_policy(name: str, redis: RedisDep, key: KeyDep, loop: LoopParam = "default") -> None:
    """Delete a policy. It must have no share of the traffic."""
    await administration.delete_policy(redis, loop, name, by=key.name)


@router.post("/policies/{name}/activate", responses=WRITES)
async def activate(
    name: str, redis: RedisDep, follower: FollowerDep, key: KeyDep, loop: LoopParam = "default"
) -> Changed:
    """Give a policy all the traffic, at its newest version. The reply comes when every live worker serves it."""
    return changed(await shares.activate(redis, follower, loop, name, by=key.name))


@router.post("/policies/{name}/rollback", responses=WRITES)
async def rollback(
    name: str, body: Rollback, redis: RedisDep, follower: FollowerDep, key: KeyDep, loop: LoopParam = "default"
) -> Changed:
    """Serve exactly this version until the policy is activated again; it goes on learning meanwhile."""
    return changed(await shares.rollback(redis, follower, loop, name, body.version, by=key.name))


@router.post("/policies/{name}/train", status_code=202, responses=WRITES)
async def train(name: str, redis: RedisDep, key: KeyDep, loop: LoopParam = "default") -> TrainingReply:
    """Train a batch-trained policy anew on the retained log; its version rises when that is done."""
    return TrainingReply(position=await administration.train(redis, loop, name, by=key.name))


@router.get("/traffic", responses=READS)
async def get_traffic(redis: RedisDep, loop: LoopParam = "default") -> dict[str, float]:
    """Return policy → share of the users. Without any, items are chosen uniformly."""
    return dict((await read_loop(redis, loop)).traffic)


@router.put("/traffic", responses=WRITES)
async def put_traffic(
    body: Traffic, redis: RedisDep, follower: FollowerDep, key: KeyDep, loop: LoopParam = "default"
) -> Changed:
    """Split the users between policies. A user stays with one policy for as long as the split stays."""
    return changed(await shares.set_traffic(redis, follower, loop, body, by=key.name))
