"""Experiments: which of some policies is better, on people? Made, looked at any time, ended, deleted."""

from fastapi import APIRouter

from service.admin import experiments as administration
from service.admin.experiments import ExperimentReply
from service.api.problems import OF_BODIES, documented
from service.api.routes._depends import FollowerDep, KeyDep, LoopParam, RedisDep, StrictRoute, changed
from service.api.schemas import Changed, ExperimentBody, ExperimentList
from service.errors import Conflict, NotFound, StoreUnavailable

router = APIRouter(tags=["experiments"], route_class=StrictRoute)
READS = documented(NotFound, Conflict, StoreUnavailable)
WRITES = documented(*OF_BODIES, NotFound, Conflict, StoreUnavailable)


@router.get("/experiments", responses=READS)
async def list_experiments(redis: RedisDep, loop: LoopParam = "default") -> ExperimentList:
    """List the loop's experiments, oldest first, each with what it shows so far."""
    return ExperimentList(experiments=await administration.list_experiments(redis, loop))


@router.put("/experiments/{name}", responses=WRITES)
async def put_experiment(
    name: str, body: ExperimentBody, redis: RedisDep, follower: FollowerDep, key: KeyDep, loop: LoopParam = "default"
) -> Changed:
    """Make an experiment, or change one that has not ended. A loop has one at a time."""
    asked = body.model_dump()
    for field in ("starts", "ends"):
        asked[field] = None if asked[field] is None else asked[field].timestamp()
    return changed(await administration.put_experiment(redis, follower, loop, name, asked, by=key.name))


@router.get("/experiments/{name}", responses=READS)
async def get_experiment(name: str, redis: RedisDep, loop: LoopParam = "default") -> ExperimentReply:
    """Return an experiment, and what it shows so far. Look as often as you like: its intervals hold at any time."""
    return await administration.read_experiment(redis, loop, name)


@router.post("/experiments/{name}/end", responses=WRITES)
async def end_experiment(
    name: str, redis: RedisDep, follower: FollowerDep, key: KeyDep, loop: LoopParam = "default"
) -> Changed:
    """End an experiment now. The loop's traffic has its units again, and the results stay."""
    return changed(await administration.end_experiment(redis, follower, loop, name, by=key.name))


@router.delete("/experiments/{name}", status_code=204, responses=WRITES)
async def delete_experiment(
    name: str, redis: RedisDep, follower: FollowerDep, key: KeyDep, loop: LoopParam = "default"
) -> None:
    """Delete an experiment with its results. One that runs ends."""
    await administration.delete_experiment(redis, follower, loop, name, by=key.name)
