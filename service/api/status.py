"""What /status says, and /metrics with it."""

from __future__ import annotations

import time
from typing import Any

from redis.asyncio import Redis

from service.decide.live import Live
from service.errors import NotFound, StoreUnavailable
from service.store import log, loops, policies
from service.store.decisions import DecisionLog

STALE_S = 10.0  # a policy with events to learn that has published nothing for so long is stuck


async def read_status(redis: Redis, live: Live, decisions: DecisionLog) -> dict[str, Any]:
    """The whole service as this worker sees it; without Redis, what it knows by itself."""
    worker = {
        "worker": live.worker,
        "serves": live.versions(),
        "buffered": decisions.buffered,
        "dropped": decisions.dropped,
        "degraded": decisions.degraded,
        "refused_snapshots": live.refused,
    }
    try:
        workers = sorted(await loops.live_workers(redis))
        learner = await policies.learner_alive(redis)
        found = {name: await _loop(redis, name) for name in await loops.loop_names(redis)}
    except StoreUnavailable:
        return {"rung": "store_down", "workers": 0, "learner": False, "loops": {}, "this_worker": worker}
    rung = live.rung()
    if rung == "ok" and not learner:
        rung = "learner_down"
    return {"rung": rung, "workers": len(workers), "learner": learner, "loops": found, "this_worker": worker}


async def _loop(redis: Redis, name: str) -> dict[str, Any]:
    stats = await log.read_stats(redis, name)
    learners: dict[str, dict[str, Any]] = {}
    for policy in await policies.policy_names(redis, name):
        try:
            stored = await policies.read_policy(redis, name, policy)
        except NotFound:  # deleted this very moment
            continue
        lag = max(0, stats.get("events", 0) - stored.skipped - stored.events)
        age = None if stored.published is None else round(time.time() - stored.published, 3)
        learners[policy] = {
            "kind": stored.kind,
            "version": stored.version,
            "events": stored.events,
            "lag": lag,
            "bytes": stored.bytes,
            "snapshot_age_s": age,
            "alarms": stored.alarms[-1]["number"] if stored.alarms else 0,
            "last_alarm": stored.alarms[-1] if stored.alarms else None,
        }
    behind = any(found["lag"] and (found["snapshot_age_s"] or STALE_S) >= STALE_S for found in learners.values())
    counters = ("decisions", "joined", "defaulted", "late", "duplicate", "rejected", "imported", "events", "pending")
    return {
        "learning": bool(stats.get("events")) and bool(learners) and not behind,
        **{counter: stats.get(counter, 0) for counter in (*counters, "dead_letters")},
        "policies": learners,
    }
