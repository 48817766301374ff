"""What `/status` says, and `/metrics` with it: is it learning, and what is broken?"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import asdict
from typing import Any

from pydantic import BaseModel, Field
from redis.asyncio import Redis

from service.admin.evaluations import EvaluationStatus, unfinished
from service.admin.releases import ReleaseStatus, release_status
from service.admin.shadows import ShadowStatus, shadows
from service.errors import NotFound, StoreUnavailable
from service.serve.follower import Follower
from service.store import (
    activity,
    activity_log,
    change_log,
    edges,
    embedding_store,
    encoders,
    erasure_store,
    event_log,
    graph_store,
    history_store,
    limits,
    loop_store,
    policy_store,
    profile_store,
    retrieval_store,
    workers,
)
from service.store.decisions import DecisionWriter
from service.store.keys import Keys
from service.store.memory import read_memory
from service.store.open_time import read_opening

STALE_S = 10.0  # a policy with events to learn that has published nothing for so long is stuck


class Alarm(BaseModel):
    """A change of the world that a policy noticed."""

    number: int = Field(description="from 1")
    at: float = Field(description="unix time of the event that gave it away")
    events: int = Field(description="events that the policy had learned by then")
    position: str = Field(description="of that event in the log")
    reaction: str = Field(
        description="reset: all that it had learned was forgotten; succession: all but the last few thousand events; "
        "recall: it goes on from what it knew before an earlier alarm; none: it learns in trainings only"
    )


class Trial(BaseModel):
    """A successor of the encoder that a policy learns beside its own."""

    encoder: str = Field(description="version of the successor's encoder")
    position: str = Field(description="of the successor in the log")
    fitted: int = Field(description="events that it was fitted on")
    why: str
    events: int = Field(description="events after the successor, which both have learned")
    loss: float = Field(description="logarithmic loss over these events through the successor's encoder, in nats")
    loss_before: float = Field(description="the same through the policy's own encoder")
    lead: float = Field(0.0, description="nats by which successors before it, in the same trial, were ahead")


class Swap(BaseModel):
    """When a policy took up its encoder."""

    at: float = Field(description="unix time of the event, or of the successor")
    events: int = Field(description="events that the policy had learned by then")
    position: str = Field(description="in the log")
    why: str
    trial: Trial | None = Field(description="how the trial ended; null: a person's word is not tried")


class PolicyStatus(BaseModel):
    """How far a policy has learned."""

    kind: str
    version: int = Field(description="the newest; 0: nothing published yet")
    events: int = Field(description="events learned")
    set_aside: int = Field(0, description="of them, those that it could not learn: GET /dead-letters lists them")
    apart: int = Field(
        0, description="of them, those that an experiment kept for another policy: it did not learn them"
    )
    lag: int = Field(description="events in the log that it has still to learn")
    bytes: int = Field(description="of its learned state and newest snapshot")
    snapshot_age_s: float | None = Field(description="seconds since the newest version was published")
    alarms: int = Field(description="changes of the world that it noticed")
    last_alarm: Alarm | None
    encoder: str = Field(description="version of the encoder of the newest version")
    encoder_since: Swap | None = Field(description="when it took that up; null: it began with it")
    encoder_swaps: int = Field(description="encoders that it took up, since it was made")
    trial: Trial | None = Field(description="the trial of a successor that goes on")
    release: ReleaseStatus | None = Field(None, description="the newest; GET /policies/{name}/release says more")
    shadow: ShadowStatus | None = Field(None, description="what it would have got; null: it serves, or is too new")


class DataNotice(BaseModel):
    """Something in the loop's data that keeps it from being learned, in short."""

    code: str
    field: str | None = Field(description="`side/path` of the field; null: it is about the loop")
    count: int = Field(description="values, requests or items at fault since it began")
    means: str
    needs_person: bool = Field(description="false: the service has dealt with it by itself")


class RetrievalStatus(BaseModel):
    """What the sources of a funnel are made from."""

    version: int
    age_s: float = Field(description="seconds since it was published; nothing is published while nothing happens")
    events: int = Field(description="events counted")
    items: int = Field(description="items that it knows, of at most 1 000 000")
    together: int = Field(0, description="items of which it knows what is taken with them, of at most 50 000")
    bytes: int


class JudgedEmbedding(BaseModel):
    """How well embeddings found what was rewarded after they were trained."""

    version: int
    events: int = Field(description="rewarded events that it was judged on, at most 2000")
    recall: float = Field(description="share of them whose item was among the 100 nearest of the catalogue")
    popular: float = Field(description="the same of the 100 items that had brought most when it was trained")


class EmbeddingStatus(BaseModel):
    """The learned embeddings of a funnel."""

    version: int
    age_s: float = Field(description="seconds since they were published")
    events: int = Field(description="events of the log when they were trained; 0: withdrawn, because of an erasure")
    rewarded: int = Field(description="of these, the rewarded ones that they were trained on, at most 100 000")
    bytes: int
    judged: JudgedEmbedding | None = Field(None, description="the version before, on events that came after it")


class LastChange(BaseModel):
    """The newest administrative change."""

    at: float = Field(description="unix time")
    by: str = Field(description="name of the key, or of the command")
    what: str


class LoopStatus(BaseModel):
    """Whether a loop learns, and its counters since it was made."""

    learning: bool = Field(description="there are events, and every policy keeps up with them")
    decisions: int = Field(0, description="decisions stored")
    joined: int = Field(0, description="feedback joined to its decision in time")
    defaulted: int = Field(0, description="items whose reward was the default: no feedback by the deadline")
    late: int = Field(0, description="feedback after the deadline: recorded, not learned from")
    duplicate: int = Field(0, description="feedback that came before: changed nothing")
    rejected: int = Field(0, description="feedback refused: for no decision that can be there, or no item of it, ...")
    replaced: int = Field(0, description="joined feedback that a correction replaced")
    early: int = Field(0, description="reports and displays that came before their decision, and were kept for it")
    early_waiting: int = Field(0, description="of them, those that wait now; at most 10 000")
    unknown: int = Field(0, description="of them, those whose decision did not come in time: dropped")
    undisplayed: int = Field(0, description="deferred decisions that were not displayed in time: they teach nothing")
    activity: int = Field(0, description="activities accepted")
    activity_duplicate: int = Field(0, description="activities that came before: changed nothing")
    activity_users: int = Field(0, description="users of whom activity is kept now")
    activity_user_bytes: int = Field(0, description="most bytes of one user's activity, without Redis's own")
    activity_waiting: int = Field(
        0, description="users with rewarded items that are yet to be taken up; at most 10 000"
    )
    activity_dropped: int = Field(0, description="rewarded items that were not taken up, for want of room")
    activity_logged: int = Field(0, description="activities appended to their log: as many as accepted")
    activity_held: int = Field(0, description="of them, those that the log holds: logged - trimmed - erased")
    activity_trimmed: int = Field(0, description="of them, those beyond the loop's `retention`: dropped")
    activity_erased: int = Field(0, description="of them, those deleted because a user was erased")
    activity_log_bytes: int = Field(0, description="memory that the log of activity takes in Redis, about")
    capped_users: int = Field(0, description="users for whom caps count something now")
    capped_user_bytes: int = Field(0, description="most bytes of what caps count of one user, without Redis's own")
    budgets: int = Field(0, description="items with a budget, of at most 1 000")
    budgets_spent: int = Field(0, description="of them, those that have nothing left, of a day or in all")
    overtaken: int = Field(0, description="decisions that met a limit when they were to be stored, and were made again")
    edges: int = Field(0, description="edges that are kept")
    edges_refused: int = Field(0, description="edges that found no room, at either user")
    edges_pending: int = Field(0, description="users whose reverse entries are to be written")
    edge_users: int = Field(0, description="users with edges")
    edge_user_bytes: int = Field(0, description="most bytes of one user's edges and their fields, without Redis's own")
    graph_stale: int = Field(0, description="users who acted, or whose fields are to be computed again")
    imported: int = Field(0, description="events imported")
    events: int = Field(0, description="events appended to the log")
    erased: int = Field(0, description="events deleted from the log because a user was erased")
    erased_pending: int = Field(0, description="decisions deleted for it while they waited: they have no event")
    erasures: int = Field(0, description="erasures that have not ended: GET /erasures lists them")
    pending: int = Field(0, description="decisions that wait for their feedback, or for their display")
    dead_letters: int = Field(0, description="entries of the log that some policy could not learn: set aside")
    misfits: dict[str, int] = Field(description="`side/field/reason` of values that could not be used -> how often")
    notices: list[DataNotice] = Field(
        [], description="what is wrong with the data; GET /loops/{loop}/profile says more"
    )
    profiled: int = Field(0, description="events that the profile has counted")
    profile_bytes: int = Field(0, description="of the profile")
    history_bins: int = Field(0, description="bins of GET /loops/{loop}/history; at most 12 240 are kept")
    history_bytes: int = Field(0, description="that they take in Redis")
    encoders: int = Field(1, description="encoders that are kept, the first among them")
    retrieval: RetrievalStatus | None = Field(None, description="of a loop with a funnel; null: nothing published yet")
    embedding: EmbeddingStatus | None = Field(None, description="of a funnel that learns them; null: not trained yet")
    changes: int = Field(0, description="administrative changes of settings, policies and traffic in GET /changes")
    last_change: LastChange | None = None
    experiment: str | None = Field(None, description="that runs, or is planned: GET /experiments/{name} says more")
    policies: dict[str, PolicyStatus]
    problem: str | None = Field(None, description="why the loop cannot be read; DELETE /loops/{loop} removes it")


class OutageStatus(BaseModel):
    """A time in which no worker could take feedback."""

    since: float = Field(description="unix seconds, as `until`")
    until: float


class StoreStatus(BaseModel):
    """The memory of Redis."""

    memory_bytes: int = Field(description="that it has taken")
    memory_limit_bytes: int = Field(description="`maxmemory`, or else the memory of its machine; 0: it does not say")


class WorkerStatus(BaseModel):
    """The API worker that answers this request."""

    worker: str
    serves: dict[str, dict[str, int]] = Field(description="loop -> policy -> version")
    buffered: int = Field(description="decisions in memory that wait for the store")
    dropped: int = Field(description="decisions lost because the buffer was full")
    degraded: int = Field(description="decisions answered without the store")
    refused_snapshots: int = Field(description="snapshots refused: garbled, not finite, of the wrong shape")
    swaps: int = Field(description="versions taken into service")


class Status(BaseModel):
    """The whole service, as one worker sees it."""

    rung: str = Field(description="ok | learner_down | store_down | store_lost (docs/operations.md)")
    workers: int = Field(description="API workers that are alive")
    learner: bool = Field(description="a learner has been heard of in the last 10 s")
    outages: int = Field(0, description="times in which no worker could take feedback for more than a second")
    closed_s: float = Field(0.0, description="seconds of all these: deadlines stood still")
    last_outage: OutageStatus | None = Field(None, description="the newest of these")
    store: StoreStatus | None = Field(None, description="null: Redis does not answer")
    loops: dict[str, LoopStatus]
    evaluations: list[EvaluationStatus] = Field([], description="that have not ended, oldest first")
    this_worker: WorkerStatus


async def read_status(
    redis: Redis, follower: Follower, decisions: DecisionWriter, *, only: Collection[str] | None = None
) -> Status:
    """Return the state of the service; without Redis, what this worker knows by itself.

    Args:
        only: names of the loops to tell of; None: all.
    """
    worker = WorkerStatus(
        worker=follower.worker,
        serves={name: served for name, served in follower.versions().items() if only is None or name in only},
        buffered=decisions.buffered,
        dropped=decisions.dropped,
        degraded=decisions.degraded,
        refused_snapshots=follower.refused,
        swaps=follower.swaps,
    )
    try:
        alive = len(await workers.live_workers(redis))
        learner = await workers.learner_alive(redis)
        opening = await read_opening(redis)
        memory = await read_memory(redis)
        loops = {}
        for name in await loop_store.loop_names(redis):
            if only is not None and name not in only:
                continue
            try:
                loops[name] = await loop_status(redis, name)
            except NotFound:  # deleted this very moment
                continue
            except (KeyError, ValueError, RuntimeError) as error:
                problem = f"{type(error).__name__}: {error}"
                loops[name] = LoopStatus(learning=False, misfits={}, policies={}, problem=problem)
        evaluations = [one for one in await unfinished(redis) if only is None or one.loop in only]
    except StoreUnavailable:
        return Status(rung="store_down", workers=0, learner=False, loops={}, this_worker=worker)
    rung = follower.rung()
    if rung == "ok" and not learner:
        rung = "learner_down"
    return Status(
        rung=rung,
        workers=alive,
        learner=learner,
        outages=opening.outages,
        closed_s=opening.closed_ms / 1000,
        last_outage=None if opening.last is None else OutageStatus(**asdict(opening.last)),
        store=StoreStatus(memory_bytes=memory.used, memory_limit_bytes=memory.limit),
        loops=loops,
        evaluations=evaluations,
        this_worker=worker,
    )


async def loop_status(redis: Redis, name: str) -> LoopStatus:
    """Return whether one loop learns.

    Raises:
        NotFound: there is no such loop.
    """
    record = await loop_store.read_loop(redis, name)
    keys = Keys(name, record.id)
    stats = await event_log.read_stats(redis, keys)
    if record.activity:
        stats["activity_waiting"] = await activity.count_waiting(redis, keys)
        stats["activity_users"] = await activity.count_users(redis, keys)
        stats["activity_user_bytes"] = activity.bytes_at_most(record.settings)
        stats["activity_held"], stats["activity_log_bytes"] = await activity_log.size_of(redis, keys)
    if record.settings.caps:
        stats["capped_users"] = await limits.count_capped_users(redis, keys)
        stats["capped_user_bytes"] = limits.bytes_at_most(record.settings.caps)
    budgets = record.settings.budgets
    used = await limits.used_of(redis, keys, budgets)
    stats["budgets"] = len(budgets)
    stats["budgets_spent"] = sum(used[item] >= budget.impressions for item, budget in budgets.items())
    if record.edges:
        stats["edges_pending"], stats["graph_stale"] = await graph_store.count_waiting(redis, keys)
        stats["edge_user_bytes"] = edges.bytes_at_most(record.settings) + graph_store.USER_BYTES
    policies: dict[str, PolicyStatus] = {}
    estimated = await shadows(redis, keys)
    for policy in await policy_store.policy_names(redis, keys):
        try:
            stored = await policy_store.read_policy(redis, keys, policy)
        except NotFound:  # deleted this very moment
            continue
        said = stored.encoding or {}
        policies[policy] = PolicyStatus(
            kind=stored.kind,
            version=stored.version,
            events=stored.events,
            set_aside=stored.set_aside,
            apart=stored.apart,
            lag=event_log.lag(stats, stored),
            bytes=stored.bytes,
            snapshot_age_s=None if stored.published is None else round(time.time() - stored.published, 3),
            alarms=stored.alarms[-1]["number"] if stored.alarms else 0,
            last_alarm=Alarm(**stored.alarms[-1]) if stored.alarms else None,
            encoder=stored.encoder or record.encoder,
            encoder_since=said.get("since"),
            encoder_swaps=said.get("swaps", 0),
            trial=said.get("trial"),
            release=await release_status(redis, keys, policy),
            shadow=estimated.get(policy),
        )
    behind = any(found.lag and (found.snapshot_age_s or STALE_S) >= STALE_S for found in policies.values())
    profiled, notices, profile_bytes = await profile_store.read_summary(redis, keys)
    history_bins, history_bytes = await history_store.size(redis, keys)
    changes, last = await change_log.newest(redis, keys)
    experiment = record.experiment_at(time.time())
    stats["erasures"] = await erasure_store.count_unfinished(redis, keys)
    counters = {name: stats[name] for name in stats.keys() & LoopStatus.model_fields.keys()}
    return LoopStatus(
        learning=bool(stats.get("events")) and bool(policies) and not behind,
        misfits=await event_log.read_misfits(redis, keys),
        notices=[_short(notice) for notice in notices],
        profiled=profiled,
        profile_bytes=profile_bytes,
        history_bins=history_bins,
        history_bytes=history_bytes,
        encoders=1 + await encoders.count(redis, keys),
        retrieval=await _retrieval(redis, keys) if record.settings.funnel else None,
        embedding=await _embedding(redis, keys) if record.settings.funnel.embeds else None,
        changes=changes,
        last_change=None if last is None else LastChange(at=last.at, by=last.by, what=last.what),
        experiment=None if experiment is None else experiment.name,
        policies=policies,
        **counters,
    )


async def _retrieval(redis: Redis, keys: Keys) -> RetrievalStatus | None:
    found = await retrieval_store.read_summary(redis, keys)
    if found is None:
        return None
    age = round(time.time() - found.published, 3)
    return RetrievalStatus(
        version=found.version,
        age_s=age,
        events=found.events,
        items=found.items,
        together=found.together,
        bytes=found.bytes,
    )


async def _embedding(redis: Redis, keys: Keys) -> EmbeddingStatus | None:
    found = await embedding_store.read_summary(redis, keys)
    if found is None:
        return None
    told = asdict(found)
    return EmbeddingStatus(age_s=round(time.time() - told.pop("published"), 3), **told)


def _short(notice: Mapping[str, Any]) -> DataNotice:
    side, path = notice["side"], notice["path"]
    return DataNotice(
        code=notice["code"],
        field=None if side is None else side if path is None else f"{side}/{path}",
        count=notice["count"],
        means=notice["means"],
        needs_person=notice["needs_person"],
    )
