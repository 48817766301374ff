"""Experiments: made, changed, ended, deleted; and what they show so far."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any
from uuid import uuid4

import numpy as np
from pydantic import BaseModel, Field
from redis.asyncio import Redis

from service.admin.adoption import Adoption, adoption
from service.admin.change import change
from service.decide.assignment import divided, outside
from service.errors import Conflict, InvalidRequest, NotFound
from service.evaluate.experiment import COLUMNS, METRICS, SHOWN, UNIT, GuardRail, Verdict, findings, mean_of
from service.evaluate.units import arms_of
from service.loop import LOOP_NAME
from service.policies import Array
from service.records import OUTSIDE, Arm, Change, Experiment, LoopRecord
from service.serve.follower import Follower
from service.store import experiment_store, loop_store, policy_store
from service.store.codec import experiments_bytes
from service.store.connection import now
from service.store.keys import Keys

CONTROL = "control"
MOST_ARMS = 10
MOST_KEPT = 20  # experiments of a loop; the oldest that has ended goes first
MOST_SPANS = 200  # a change of shares makes some more
FIXED = ("learning", "unit", "session", "metric", "minimum_effect", "confidence", "starts")  # once it has begun

# ---- what there is


class LiftReply(BaseModel):
    """How much larger a mean is than the control's, as a share of it: an interval that holds at any time."""

    estimate: float
    low: float
    high: float


class GuardRailReply(BaseModel):
    metric: str
    drop: float = Field(description="that is tolerated, as a share of the control's mean")
    verdict: str = Field(description="ok: no worse than that; broken: worse, perhaps by more; open: not known yet")
    lift: LiftReply | None


class ArmReply(BaseModel):
    """An arm: who fell there, and what came of it."""

    arm: str = Field(description="`control`, or another name; empty: the units that were left out")
    policy: str | None
    share: float = Field(description="of the units that take part")
    units: int
    shown: int = Field(description="items shown to them, with their final reward")
    mean: float | None = Field(description="of the metric; null: no units yet")
    error: float | None = Field(description="its standard error, units being independent")
    code: str | None = Field(None, description="better | worse | same | open, beside the control")
    lift: LiftReply | None = None
    reduced: float | None = Field(None, description="share of the variance that the time before explained")
    days: float | None = Field(None, description="until it is likely settled, if the lift is the minimum effect; about")
    guardrails: list[GuardRailReply] = []
    says: str | None = None


class ExperimentReply(BaseModel):
    """An experiment, and what it shows so far."""

    name: str
    loop: str
    status: str = Field(description="planned | running | ended")
    code: str = Field(description="mismatch: do not trust it; broken: a guard rail is; settled; open")
    says: str = Field(description="the same in a sentence")
    version: int = Field(description="rises when units move between arms; results count from then on")
    learning: str = Field(description="shared | disjoint: whether the arms' policies learn from each other's events")
    unit: str = Field(description="user | session | decision")
    session: str = Field(description="field of the context that names the session, where that is the unit")
    metric: str
    guardrails: dict[str, float]
    minimum_effect: float
    confidence: float
    holdout: float
    starts: float = Field(description="unix time, as the times below")
    ends: float | None
    arms: list[ArmReply]
    mismatch: float = Field(
        description="p-value of the split, valid at any time; below .01 it is not what was asked for"
    )
    events: int = Field(description="counted")
    left_out: int = Field(description="events of units that were not counted: there were too many")
    first: float | None = Field(description="the first event that was counted")
    last: float | None
    whole: bool = Field(description="it has ended, and all its rewards are counted")


async def list_experiments(redis: Redis, loop: str) -> list[ExperimentReply]:
    """Return a loop's experiments, oldest first.

    Raises:
        NotFound: there is no such loop.
    """
    record = await loop_store.read_loop(redis, loop)
    return [await _described(redis, record, one) for one in record.experiments.values()]


async def read_experiment(redis: Redis, loop: str, name: str) -> ExperimentReply:
    """Return one experiment.

    Raises:
        NotFound: there is no such loop or experiment.
    """
    record = await loop_store.read_loop(redis, loop)
    return await _described(redis, record, _named(record, name))


def _named(record: LoopRecord, name: str) -> Experiment:
    if name not in record.experiments:
        raise NotFound(f"there is no experiment {name!r} in loop {record.name!r}", code="unknown_experiment")
    return record.experiments[name]


async def _described(redis: Redis, record: LoopRecord, experiment: Experiment) -> ExperimentReply:
    sums = await experiment_store.read_sums(redis, Keys(record.name, record.id), experiment)
    at = await now(redis)
    names = arms_of(experiment)
    known = sums.moments if len(sums.moments) else np.zeros((len(names), COLUMNS, COLUMNS))
    moments = dict(zip(names, known, strict=True))
    found = findings(
        moments,
        {name: arm.share for name, arm in experiment.arms.items()},
        control=CONTROL,
        metric=experiment.metric,
        guardrails=experiment.guardrails,
        minimum_effect=experiment.minimum_effect,
        confidence=experiment.confidence,
        days=0.0 if sums.first is None or sums.last is None else (sums.last - sums.first) / 86_400,
    )
    verdicts = {one.arm: one for one in found.verdicts}
    started = "running" if at >= experiment.starts else "planned"
    return ExperimentReply(
        name=experiment.name,
        loop=record.name,
        status="ended" if experiment.ended(at) else started,
        code=found.code,
        says=found.says,
        version=experiment.version,
        learning=_learning(experiment),
        unit=experiment.unit,
        session=experiment.session,
        metric=experiment.metric,
        guardrails=dict(experiment.guardrails),
        minimum_effect=experiment.minimum_effect,
        confidence=experiment.confidence,
        holdout=experiment.holdout,
        starts=experiment.starts,
        ends=experiment.ends,
        arms=[
            _arm(name, experiment, moments[name], verdicts.get(name))
            for name in names
            if name != OUTSIDE or experiment.holdout > 0
        ],
        mismatch=found.mismatch,
        events=sums.events,
        left_out=sums.left_out,
        first=sums.first,
        last=sums.last,
        whole=sums.whole,
    )


def _arm(name: str, experiment: Experiment, moments: Array, verdict: Verdict | None) -> ArmReply:
    mean, arm = mean_of(moments, METRICS[experiment.metric]), experiment.arms.get(name)
    reply = ArmReply(
        arm=name,
        policy=None if arm is None else arm.policy,
        share=experiment.holdout if arm is None else arm.share,
        units=round(float(moments[UNIT, UNIT])),
        shown=round(float(moments[UNIT, SHOWN])),
        mean=None if math.isnan(mean.value) else mean.value,
        error=None if math.isinf(mean.error) else mean.error,
    )
    if verdict is None:
        return reply
    return reply.model_copy(
        update={
            "code": verdict.code,
            "lift": None if verdict.lift is None else LiftReply(**verdict.lift.lift._asdict()),
            "reduced": None if verdict.lift is None else verdict.lift.reduced,
            "days": verdict.days,
            "guardrails": [_rail(one) for one in verdict.guardrails],
            "says": verdict.says,
        }
    )


def _rail(found: GuardRail) -> GuardRailReply:
    lift = None if found.lift is None else LiftReply(**found.lift._asdict())
    return GuardRailReply(metric=found.metric, drop=found.drop, verdict=found.verdict, lift=lift)


# ---- changes


async def put_experiment(
    redis: Redis, follower: Follower, loop: str, name: str, asked: Mapping[str, Any], *, by: str
) -> Adoption:
    """Make an experiment, or change one that has not ended.

    Once it has begun, its shares, holdout, guard rails and end may change. Where shares change, units move between
    arms, no more than they must, and the results begin anew.

    Args:
        asked: the fields of `ExperimentBody`; `starts` None: now, or as it is.

    Raises:
        NotFound: there is no such loop.
        InvalidRequest: a field is wrong.
        Conflict: it has ended, or what may not change has begun; or the loop has another one.
    """
    if not LOOP_NAME.fullmatch(name):
        raise InvalidRequest("name", "1 to 64 of: lower-case letters, digits, . _ - (starting with a letter or digit)")
    _check(asked)
    gone: list[Experiment] = []

    async def attempt(seen: LoopRecord) -> int:
        at = await now(redis)
        ids = await _check_policies(redis, seen, asked)
        if seen.release is not None:
            raise Conflict(
                f"a release of policy {seen.release['policy']!r} moves traffic of loop {seen.name!r}, which would be"
                " taken for the experiment's; wait, or cancel it",
                code="release_runs",
            )
        old = seen.experiments.get(name)
        _check_state(seen, name, at)
        new = _changed(old, name, asked, at, ids if asked["learning"] == "disjoint" else {})
        others = {other: one for other, one in seen.experiments.items() if other != name}
        ended = [other for other, one in others.items() if one.ended(at)]
        dropped = ended[: max(0, len(others) + 1 - MOST_KEPT)]
        kept = {other: one for other, one in others.items() if other not in dropped} | {name: new}
        gone[:] = [others[other] for other in dropped]
        if old is not None and old.version != new.version:
            gone.append(old)
        what = "make experiment" if old is None else "change experiment"
        return await _written(redis, seen, kept, Change(by, what, old and _told(old), _told(new)))

    return await _done(redis, follower, loop, attempt, gone)


async def end_experiment(redis: Redis, follower: Follower, loop: str, name: str, *, by: str) -> Adoption:
    """End an experiment now: the traffic of the loop has its units again, its results stay.

    Raises:
        NotFound: there is no such loop or experiment.
        Conflict: it has ended.
    """

    async def attempt(seen: LoopRecord) -> int:
        at, old = await now(redis), _named(seen, name)
        _check_state(seen, name, at)
        new = replace(old, ends=at)
        noted = Change(by, "end experiment", {"experiment": name, "ends": old.ends}, {"experiment": name, "ends": at})
        return await _written(redis, seen, {**seen.experiments, name: new}, noted)

    return await _done(redis, follower, loop, attempt, [])


async def delete_experiment(redis: Redis, follower: Follower, loop: str, name: str, *, by: str) -> None:
    """Delete an experiment with its results, whether it has ended or not.

    Raises:
        NotFound: there is no such loop or experiment.
    """
    gone: list[Experiment] = []

    async def attempt(seen: LoopRecord) -> int:
        gone[:] = [_named(seen, name)]
        kept = {other: one for other, one in seen.experiments.items() if other != name}
        return await _written(redis, seen, kept, Change(by, "delete experiment", _told(gone[0]), None))

    await _done(redis, follower, loop, attempt, gone)


async def _written(redis: Redis, seen: LoopRecord, experiments: Mapping[str, Experiment], noted: Change) -> int:
    return await loop_store.change_loop(redis, seen, {"experiments": experiments_bytes(experiments)}, noted)


async def _done(
    redis: Redis, follower: Follower, loop: str, attempt: Callable[[LoopRecord], Any], gone: list[Experiment]
) -> Adoption:
    """Carry out a change, wait for the workers, and remove what is known of experiments that are gone."""
    seen, epoch = await change(redis, loop, attempt)
    keys = Keys(seen.name, seen.id)
    found = await adoption(redis, follower, keys, epoch)
    for one in gone:
        await experiment_store.forget(redis, keys, one)
    return found


def _told(experiment: Experiment) -> dict[str, Any]:
    """Return an experiment for the log of changes."""
    return {name: value for name, value in asdict(experiment).items() if name not in ("spans", "id")}


def _check(asked: Mapping[str, Any]) -> None:
    """Refuse what is wrong whatever the loop is like.

    Raises:
        InvalidRequest: names the field.
    """
    arms = asked["arms"]
    if CONTROL not in arms or not 2 <= len(arms) <= MOST_ARMS:
        raise InvalidRequest("arms", f"expected 2 to {MOST_ARMS}, one of them called {CONTROL!r}")
    for arm in arms:
        if not LOOP_NAME.fullmatch(arm):
            raise InvalidRequest(f"arms.{arm}", "1 to 64 of: lower-case letters, digits, . _ -")
    if not math.isclose(total := sum(arm["share"] for arm in arms.values()), 1.0, abs_tol=1e-9):
        raise InvalidRequest("arms", f"the shares sum to {total:g}, not to 1")
    policies = [arm["policy"] for arm in arms.values()]
    if asked["learning"] == "disjoint" and len(set(policies)) < len(policies):
        raise InvalidRequest("learning", "two arms have the same policy, which cannot learn apart from itself")
    for field, named in (("metric", asked["metric"]), *((f"guardrails.{one}", one) for one in asked["guardrails"])):
        if named not in METRICS:
            raise InvalidRequest(field, f"there is no metric {named!r}; there are {', '.join(METRICS)}")


def _learning(experiment: Experiment) -> str:
    return "disjoint" if experiment.learners else "shared"


async def _check_policies(redis: Redis, seen: LoopRecord, asked: Mapping[str, Any]) -> dict[str, str]:
    """Return policy -> id of the arms' policies.

    Raises:
        InvalidRequest: there is no such policy.
    """
    keys = Keys(seen.name, seen.id)
    known = await policy_store.policy_names(redis, keys)
    for name, arm in asked["arms"].items():
        if arm["policy"] not in known:
            raise InvalidRequest(
                f"arms.{name}.policy",
                f"there is no policy {arm['policy']!r} in loop {seen.name!r}; there are {', '.join(known) or 'none'}",
            )
    arms = sorted({arm["policy"] for arm in asked["arms"].values()})
    return {name: id for name, (id, _) in (await policy_store.latest_versions(redis, keys, arms)).items()}


def _check_state(seen: LoopRecord, name: str, at: float) -> None:
    """Refuse to change what has ended, and to have two at once.

    Raises:
        Conflict.
    """
    if name in seen.experiments and seen.experiments[name].ended(at):
        raise Conflict(f"experiment {name!r} has ended; take another name, or delete it", code="experiment_ended")
    running = seen.experiment_at(at)
    if running is not None and running.name != name:
        raise Conflict(
            f"loop {seen.name!r} has experiment {running.name!r}, and one at a time; end that first",
            code="experiment_runs",
        )


def _changed(
    old: Experiment | None, name: str, asked: Mapping[str, Any], at: float, learners: Mapping[str, str]
) -> Experiment:
    """Return the experiment as it is to be.

    Args:
        learners: policy -> id of those that learn each their own events; none: they learn all.

    Raises:
        InvalidRequest: its times are wrong.
        Conflict: it has begun, and what is asked for may not change.
    """
    arms = {arm: Arm(said["policy"], said["share"]) for arm, said in asked["arms"].items()}
    begun = old is not None and at >= old.starts
    starts, ends = asked["starts"], asked["ends"]
    if starts is None:
        starts = at if old is None else old.starts
    elif starts < at and not begun:
        raise InvalidRequest("starts", "lies in the past; leave it out to start now")
    if ends is not None and ends <= max(at, starts):
        raise InvalidRequest("ends", "must come after `starts`, and lie in the future")
    shares = {arm: (1 - asked["holdout"]) * said.share for arm, said in arms.items()} | {OUTSIDE: asked["holdout"]}
    version = 1
    if old is not None and begun:
        fixed = {**asked, "starts": starts, "arms": {arm: said.policy for arm, said in arms.items()}}
        before = {
            **asdict(old),
            "learning": _learning(old),
            "arms": {arm: said.policy for arm, said in old.arms.items()},
        }
        for field in (*FIXED, "arms"):
            if fixed[field] != before[field]:
                raise Conflict(
                    f"experiment {name!r} has begun, and {field} may not change: make another one",
                    code="experiment_begun",
                )
        moved = any(not math.isclose(arms[arm].share, old.arms[arm].share, abs_tol=1e-9) for arm in arms)
        version = old.version + moved
    new = Experiment(
        name=name,
        id=uuid4().hex[:12] if old is None else old.id,
        version=version,
        arms=arms,
        spans=divided(outside() if old is None else old.spans, shares),
        unit=asked["unit"],
        session=asked["session"],
        metric=asked["metric"],
        guardrails=asked["guardrails"],
        minimum_effect=asked["minimum_effect"],
        confidence=asked["confidence"],
        holdout=asked["holdout"],
        starts=starts,
        ends=ends,
        learners=learners,
    )
    if len(new.spans) > MOST_SPANS:
        raise Conflict(f"the shares of experiment {name!r} changed too often: make another one", code="too_many_spans")
    return new
