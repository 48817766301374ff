"""Policies and traffic: create, watch, activate, roll back."""

from fastapi import APIRouter

from service.api.problems import documented
from service.api.routes._depends import ControlDep, LoopParam, RedisDep, StrictRoute, changed
from service.api.schemas import Changed, PolicyBody, PolicyList, PolicyReply, Rollback, Traffic
from service.errors import Conflict, MalformedJson, NotFound, StoreUnavailable
from service.policies import KINDS
from service.store import loops

router = APIRouter(tags=["policies"], route_class=StrictRoute)
READS = documented(NotFound, StoreUnavailable)
WRITES = documented(MalformedJson, NotFound, Conflict, StoreUnavailable)


@router.get("/policies", responses=READS)
async def list_policies(control: ControlDep, loop: LoopParam = "default") -> PolicyList:
    policies = [PolicyReply(**found) for found in await control.describe_all(loop)]
    return PolicyList(policies=policies, kinds=sorted(KINDS))


@router.post("/policies", status_code=201, responses=WRITES)
async def create_policy(body: PolicyBody, control: ControlDep, loop: LoopParam = "default") -> PolicyReply:
    """Make a policy. It learns the retained log, then along with the others; it serves once it is given traffic."""
    await control.create_policy(loop, body.name, body.kind, body.params)
    return PolicyReply(**await control.describe(loop, body.name, summary=False))


@router.get("/policies/{name}", responses=READS)
async def get_policy(name: str, control: ControlDep, loop: LoopParam = "default") -> PolicyReply:
    """One policy, with a summary of what it has learned."""
    return PolicyReply(**await control.describe(loop, name, summary=True))


@router.delete("/policies/{name}", status_code=204, responses=WRITES)
async def delete_policy(name: str, control: ControlDep, loop: LoopParam = "default") -> None:
    """Only a policy without traffic."""
    await control.delete_policy(loop, name)


@router.post("/policies/{name}/activate", responses=WRITES)
async def activate(name: str, control: ControlDep, loop: LoopParam = "default") -> Changed:
    """Give it all the traffic, at its newest version. Returns when every live worker serves it."""
    return changed(await control.activate(loop, name))


@router.post("/policies/{name}/rollback", responses=WRITES)
async def rollback(name: str, body: Rollback, control: ControlDep, loop: LoopParam = "default") -> Changed:
    """Serve exactly this version until the policy is activated again; it goes on learning meanwhile."""
    return changed(await control.rollback(loop, name, body.version))


@router.post("/policies/{name}/train", status_code=202, responses=WRITES)
async def train(name: str, control: ControlDep, loop: LoopParam = "default") -> dict[str, str]:
    """Train a batch-trained policy anew on the retained log; its version rises when that is done."""
    return {"position": await control.train(loop, name)}


@router.get("/traffic", responses=READS)
async def get_traffic(redis: RedisDep, loop: LoopParam = "default") -> dict[str, float]:
    """Policy -> share of the users. Empty: uniform choice."""
    return (await loops.read_loop(redis, loop)).traffic


@router.put("/traffic", responses=WRITES)
async def put_traffic(body: Traffic, control: ControlDep, loop: LoopParam = "default") -> Changed:
    """Split the users between policies; a user stays with his policy as long as the split stays."""
    return changed(await control.set_traffic(loop, body))
