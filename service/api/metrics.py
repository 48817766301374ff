"""Prometheus metrics.

Each worker counts its own requests and decisions; the multi-process mode of prometheus-client sums the workers. Counts
that lie in Redis (joined, defaulted, lag, ...) are read from there at each scrape, so every worker gives the same.
Names and units follow Prometheus' conventions: a value that only rises is a counter, and its name ends in `_total`.
"""

from __future__ import annotations

import os
from collections import Counter as Counted
from collections.abc import Iterable, Iterator
from functools import cache

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from service.admin.status import LoopStatus, Status

BUCKETS = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
RUNGS = ("ok", "learner_down", "store_down", "store_lost")

LOOP_COUNTERS = {  # field of LoopStatus -> (name, help)
    "joined": ("rebound_feedback_joined", "Feedback joined to its decision in time"),
    "late": ("rebound_feedback_late", "Feedback after the deadline: recorded, not learned from"),
    "duplicate": ("rebound_feedback_duplicate", "Feedback that came before: changed nothing"),
    "rejected": (
        "rebound_feedback_rejected",
        "Feedback refused: for no decision that can be there, no item of it, ...",
    ),
    "replaced": ("rebound_feedback_replaced", "Joined feedback that a correction replaced"),
    "early": ("rebound_feedback_early", "Reports and displays that came before their decision, and were kept for it"),
    "unknown": ("rebound_feedback_unknown", "Early ones whose decision did not come in time: dropped"),
    "undisplayed": ("rebound_undisplayed_decisions", "Deferred decisions that were not displayed in time"),
    "defaulted": ("rebound_items_defaulted", "Items whose reward was the default: no feedback by the deadline"),
    "imported": ("rebound_events_imported", "Events imported"),
    "events": ("rebound_events", "Events appended to the log"),
    "erased": ("rebound_events_erased", "Events deleted from the log because a user was erased"),
    "dead_letters": ("rebound_dead_letters", "Entries of the log that some policy could not learn: set aside"),
}
POLICY_GAUGES = {  # field of PolicyStatus -> (name, help)
    "version": ("rebound_policy_version", "Newest published version"),
    "events": ("rebound_policy_learned_events", "Events learned"),
    "set_aside": ("rebound_policy_set_aside_events", "Of the events learned, those that it could not learn"),
    "apart": ("rebound_policy_apart_events", "Of the events learned, those that an experiment kept for another policy"),
    "lag": ("rebound_policy_lag_events", "Events in the log still to be learned"),
    "bytes": ("rebound_policy_bytes", "Bytes of learned state and newest snapshot"),
    "snapshot_age_s": ("rebound_policy_snapshot_age_seconds", "Seconds since the newest version was published"),
    "encoder_swaps": ("rebound_policy_encoder_swaps", "Encoders that it took up, since it was made"),
    "alarms": ("rebound_policy_alarms", "Changes of the world that it noticed, since it was made"),
}


class Metrics:
    """Counts the requests and decisions of one worker."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Histogram(
            "rebound_request_seconds", "Time to answer", ["route", "status"], buckets=BUCKETS, registry=self._registry
        )
        self._decisions = self._counter("rebound_decisions", "Decisions answered", "loop", "policy")
        self._degraded = self._counter("rebound_degraded_decisions", "Decisions answered without the store", "loop")
        self._limited = self._counter(
            "rebound_rate_limited", "Requests refused because their key called too often", "key"
        )
        self._totals = {
            "dropped": self._counter("rebound_dropped_decisions", "Decisions lost because the buffer was full"),
            "refused": self._counter("rebound_refused_snapshots", "Snapshots refused: garbled, not finite, ..."),
            "swaps": self._counter("rebound_swaps", "Versions taken into service"),
        }
        self._counted = dict.fromkeys(self._totals, 0)
        # `labels` takes longer than to count, on the hot path.
        self._request = cache(lambda route, status: self._requests.labels(route, str(status)).observe)
        self._decision = cache(lambda loop, policy: self._decisions.labels(loop, policy).inc)
        self._buffered = Gauge(
            "rebound_buffered_decisions",
            "Decisions in memory that wait for the store",
            multiprocess_mode="livesum",
            registry=self._registry,
        )

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, registry=self._registry)

    def request(self, route: str, status: int, seconds: float) -> None:
        """Count one answered request."""
        self._request(route, status)(seconds)

    def decision(self, loop: str, policy: str, *, degraded: bool) -> None:
        """Count one decision."""
        self._decision(loop, policy)()
        if degraded:
            self._degraded.labels(loop).inc()

    def limited(self, key: str) -> None:
        """Count one request that was refused because its key calls too often."""
        self._limited.labels(key).inc()

    def worker(self, *, buffered: int, **totals: int) -> None:
        """Copy counts that this worker keeps elsewhere: `buffered` as of now, `totals` since it started."""
        self._buffered.set(buffered)
        for name, total in totals.items():
            self._totals[name].inc(total - self._counted[name])
            self._counted[name] = total

    def render(self, status: Status) -> bytes:
        """Return the exposition text of all workers' counts and of `status`, which was read from Redis."""
        registry = self._registry
        if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
            registry = CollectorRegistry()
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        shared = CollectorRegistry()
        shared.register(_Stored(status))
        return generate_latest(registry) + generate_latest(shared)


class _Stored(Collector):
    """Collects the values of `/status` as metrics."""

    def __init__(self, status: Status) -> None:
        self._status = status
        self._loops: dict[str, LoopStatus] = status.loops

    def collect(self) -> Iterable[Metric]:
        yield GaugeMetricFamily("rebound_workers", "API workers that are alive", value=self._status.workers)
        yield GaugeMetricFamily(
            "rebound_learner_up", "1 if a learner was heard of in the last 10 s", value=int(self._status.learner)
        )
        yield CounterMetricFamily(
            "rebound_outages", "Times in which no worker could take feedback", value=self._status.outages
        )
        yield CounterMetricFamily(
            "rebound_closed_seconds", "Seconds of these times: deadlines stood still", value=self._status.closed_s
        )
        if self._status.store is not None:
            yield GaugeMetricFamily(
                "rebound_store_memory_bytes", "Memory that Redis has taken", value=self._status.store.memory_bytes
            )
            yield GaugeMetricFamily(
                "rebound_store_memory_limit_bytes",
                "Memory that Redis may take; 0: it does not say",
                value=self._status.store.memory_limit_bytes,
            )
        rung = GaugeMetricFamily("rebound_rung", "1 for the rung on which this worker stands", labels=["rung"])
        for name in RUNGS:
            rung.add_metric([name], int(name == self._status.rung))
        yield rung
        yield from self._of_loops()
        yield from self._of_policies()

    def _of_loops(self) -> Iterator[Metric]:
        for field, (name, text) in LOOP_COUNTERS.items():
            counter = CounterMetricFamily(name, text, labels=["loop"])
            for loop, status in self._loops.items():
                counter.add_metric([loop], getattr(status, field))
            yield counter
        pending = GaugeMetricFamily("rebound_pending_decisions", "Decisions that wait for feedback", labels=["loop"])
        early = GaugeMetricFamily(
            "rebound_waiting_feedback", "Early reports and displays that wait for their decision", labels=["loop"]
        )
        misfits = CounterMetricFamily(
            "rebound_misfits", "Values that the encoder could not use", labels=["loop", "side", "field", "reason"]
        )
        for loop, status in self._loops.items():
            pending.add_metric([loop], status.pending)
            early.add_metric([loop], status.early_waiting)
            for misfit, count in status.misfits.items():
                side, rest = misfit.split("/", 1)
                field, reason = rest.rsplit("/", 1)
                misfits.add_metric([loop, side, field, reason], count)
        yield pending
        yield early
        yield misfits
        yield from self._of_data()

    def _of_data(self) -> Iterator[Metric]:
        notices = GaugeMetricFamily(
            "rebound_data_notices", "Notices about the data that hold now", labels=["loop", "code", "needs_person"]
        )
        profiled = CounterMetricFamily("rebound_profiled_events", "Events in the profile", labels=["loop"])
        size = GaugeMetricFamily("rebound_profile_bytes", "Bytes of the profile", labels=["loop"])
        history = GaugeMetricFamily("rebound_history_bytes", "Bytes of the history in Redis", labels=["loop"])
        for loop, status in self._loops.items():
            for (code, person), count in Counted((n.code, n.needs_person) for n in status.notices).items():
                notices.add_metric([loop, code, str(person).lower()], count)
            profiled.add_metric([loop], status.profiled)
            size.add_metric([loop], status.profile_bytes)
            history.add_metric([loop], status.history_bytes)
        yield notices
        yield profiled
        yield size
        yield history

    def _of_policies(self) -> Iterator[Metric]:
        for field, (name, text) in POLICY_GAUGES.items():
            gauge = GaugeMetricFamily(name, text, labels=["loop", "policy"])
            for loop, status in self._loops.items():
                for policy, found in status.policies.items():
                    if (value := getattr(found, field)) is not None:
                        gauge.add_metric([loop, policy], value)
            yield gauge
        release = GaugeMetricFamily(
            "rebound_policy_release", "1 for the state of its newest release", labels=["loop", "policy", "state"]
        )
        for loop, status in self._loops.items():
            for policy, found in status.policies.items():
                if found.release is not None:
                    release.add_metric([loop, policy, found.release.state], 1)
        yield release
        yield from self._of_shadows()

    def _of_shadows(self) -> Iterator[Metric]:
        judged = GaugeMetricFamily(
            "rebound_shadow_decisions", "Settled decisions by which a shadow is judged", labels=["loop", "policy"]
        )
        gain = GaugeMetricFamily(
            "rebound_shadow_difference",
            "Reward of a decision, had the shadow served, less what served: the estimate, and ends of its interval",
            labels=["loop", "policy", "estimator", "end"],
        )
        for loop, status in self._loops.items():
            for policy, found in status.policies.items():
                if (shadow := found.shadow) is None:
                    continue
                judged.add_metric([loop, policy], shadow.decisions)
                for estimator, said in (("dr", shadow.dr), ("ips", shadow.ips)):
                    if said is not None:
                        for end, value in said.difference:
                            gain.add_metric([loop, policy, estimator, end], value)
        yield judged
        yield gain
