"""Prometheus metrics, right under several workers: prometheus-client's multi-process mode sums what each one counts.

What lives in Redis (joined, defaulted, lag, ...) is read from there when it is asked for, and so is right whichever
worker answers.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

BUCKETS = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)

COUNTERS = {
    "joined": "Feedback joined to its decision in time",
    "defaulted": "Items whose reward was the default: no feedback by the deadline",
    "late": "Feedback after the deadline: recorded, not learned from",
    "duplicate": "Feedback that came before: changed nothing",
    "rejected": "Feedback for no known decision or item",
    "imported": "Events imported",
    "events": "Events appended to the log",
    "dead_letters": "Undecodable entries of the log, set aside",
}


class Metrics:
    """One worker's counts."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Histogram(
            "rebound_request_seconds", "Time to answer", ["route", "status"], buckets=BUCKETS, registry=self._registry
        )
        self._decisions = Counter(
            "rebound_decisions_total", "Decisions answered", ["loop", "policy"], registry=self._registry
        )
        self._degraded = Counter(
            "rebound_degraded_total", "Decisions answered without the store", ["loop"], registry=self._registry
        )
        self._worker = {
            name: Gauge(f"rebound_{name}", text, multiprocess_mode="livesum", registry=self._registry)
            for name, text in (
                ("buffered_decisions", "Decisions in memory that wait for the store"),
                ("dropped_decisions", "Decisions lost because the buffer was full"),
                ("refused_snapshots", "Snapshots refused: not finite, wrong shape, garbled"),
                ("swaps", "Versions taken into service"),
            )
        }

    def request(self, route: str, status: int, seconds: float) -> None:
        self._requests.labels(route, str(status)).observe(seconds)

    def decision(self, loop: str, policy: str, *, degraded: bool) -> None:
        self._decisions.labels(loop, policy).inc()
        if degraded:
            self._degraded.labels(loop).inc()

    def worker(self, **values: float) -> None:
        """This worker's own gauges."""
        for name, value in values.items():
            self._worker[name].set(value)

    def render(self, status: Mapping[str, Any]) -> bytes:
        """The exposition text: all workers' counts, and `status` as read from Redis."""
        registry = self._registry
        if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
            registry = CollectorRegistry()
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        shared = CollectorRegistry()
        shared.register(_Stored(status))
        return generate_latest(registry) + generate_latest(shared)


class _Stored(Collector):
    """What /status knows, as metrics."""

    def __init__(self, status: Mapping[str, Any]) -> None:
        self._loops: Mapping[str, Any] = status["loops"]

    def collect(self) -> Iterable[Metric]:
        yield from self._counters()
        yield self._gauge("rebound_pending_decisions", "Decisions that wait for feedback", "pending")
        yield from self._policies()

    def _counters(self) -> Iterator[Metric]:
        for name, text in COUNTERS.items():
            family = CounterMetricFamily(f"rebound_{name}", text, labels=["loop"])
            for loop, status in self._loops.items():
                family.add_metric([loop], status.get(name, 0))
            yield family

    def _gauge(self, metric: str, text: str, field: str) -> Metric:
        family = GaugeMetricFamily(metric, text, labels=["loop"])
        for loop, status in self._loops.items():
            family.add_metric([loop], status.get(field, 0))
        return family

    def _policies(self) -> Iterator[Metric]:
        for field, text in (
            ("version", "Newest published version"),
            ("events", "Events learned"),
            ("lag", "Events in the log still to be learned"),
            ("bytes", "Bytes of learned state and newest snapshot"),
            ("snapshot_age_s", "Seconds since the newest version was published"),
            ("alarms", "Changes of the world that it noticed"),
        ):
            family = GaugeMetricFamily(f"rebound_policy_{field}", text, labels=["loop", "policy"])
            for loop, status in self._loops.items():
                for policy, values in status["policies"].items():
                    if values[field] is not None:
                        family.add_metric([loop, policy], values[field])
            yield family
