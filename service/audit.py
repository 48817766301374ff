"""`rebound audit`: what the service says about itself, checked on real traffic.

1. Propensities: an item drawn with probability p out of n has E[1 / (n p)] = sum_i p_i / (n p_i) = 1, whatever the
   policy. The mean over the log must be 1 within its 99 % interval; propensities that were not drawn from fail.
2. Decisions: each is made again from its record, the catalogue of then and the version of then, bit for bit. A version
   that is no longer kept is rebuilt by replaying the log up to its place.
3. Learning: every policy is learned anew from the start of the log up to its checkpoint; the state must be the same,
   byte for byte.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import orjson
from redis.asyncio import Redis

from service.decide.catalogue import Catalogue
from service.decide.decision import decide, request_of
from service.decide.features import Encoder, FeatureSchema
from service.decide.live import UNIFORM, LiveLoop, Served, build_scorer
from service.errors import Conflict, NotFound
from service.events import Event, UndecodableEvent, decode
from service.learn.student import Student
from service.store import log, loops, policies
from service.store.codec import pack
from service.store.decisions import ledger
from service.store.loops import LoopRecord


@dataclass(frozen=True)
class Propensities:
    """Mean of 1 / (n p) over a policy's logged decisions, and the half width of its confidence interval."""

    decisions: int
    mean: float
    half_width: float

    @property
    def passed(self) -> bool:
        return abs(self.mean - 1.0) <= max(self.half_width, 1e-9)


@dataclass(frozen=True)
class Replayed:
    """How many were made again: the same bit for bit, different, or past checking (catalogue or log trimmed)."""

    same: int
    different: list[str]
    gone: int


async def audit_propensities(redis: Redis, loop: str, *, confidence: float = 0.99) -> dict[str, Propensities]:
    """Policy -> its propensity audit, over the retained log; an honest log fails with probability 1 - confidence."""
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    d = (await loops.read_loop(redis, loop)).d
    weights: dict[str, list[float]] = defaultdict(list)
    async for entries in log.scan(redis, loop):
        for position, fields in entries:
            try:
                event = decode(position, fields, d)
            except UndecodableEvent:
                continue
            if isinstance(event, Event) and event.n and event.propensity and event.policy:
                weights[event.policy].append(1.0 / (event.n * event.propensity))
    return {policy: _mean(values, z) for policy, values in sorted(weights.items())}


def _mean(values: list[float], z: float) -> Propensities:
    n = len(values)
    mean = math.fsum(values) / n
    variance = math.fsum((value - mean) ** 2 for value in values) / max(n - 1, 1)
    return Propensities(n, mean, z * math.sqrt(variance / n))


async def audit_learning(redis: Redis, loop: str) -> dict[str, bool]:
    """Policy -> whether a replay of the log from its start gives the checkpointed state, byte for byte."""
    loop_record = await loops.read_loop(redis, loop)
    found = {}
    for name in await policies.policy_names(redis, loop):
        record = await policies.read_policy(redis, loop, name)
        state = await policies.read_state(redis, loop, name)
        student = Student(redis, loop_record, record)
        async for entries in log.scan(redis, loop, until=record.position):
            await student.learn(entries)
        found[name] = state == pack(student.state()) and student.events == record.events
    return found


async def audit_decisions(redis: Redis, loop: str, *, most: int = 1000) -> Replayed:
    """Make the newest decisions of the log again, each from its record."""
    records = await _records(redis, loop, most)
    record = await loops.read_loop(redis, loop)
    encoder = Encoder(FeatureSchema.model_validate(record.schema))
    served = await _scorers(redis, record, {(r["policy"], r["version"]) for r in records})
    catalogues: dict[int, Catalogue | None] = {}
    same, different, gone = 0, [], 0
    for stored in records:
        version = stored["catalogue"]
        if version not in catalogues:
            catalogues[version] = await _catalogue(redis, loop, version, encoder)
        catalogue, policy = catalogues[version], served.get((stored["policy"], stored["version"]))
        if catalogue is None or policy is None or stored["encoder"] != encoder.version:
            gone += 1
        elif _again(stored, record, encoder, catalogue, policy) == stored["items"]:
            same += 1
        else:
            different.append(stored["decision_id"])
    return Replayed(same, different, gone)


def _again(
    stored: Mapping[str, Any], record: LoopRecord, encoder: Encoder, catalogue: Catalogue, served: Served
) -> list[dict[str, Any]]:
    settings = record.settings.model_copy(update={"exploration_floor": stored["exploration_floor"]})
    live = LiveLoop(record.name, settings, encoder, catalogue, {}, {}, record.epoch)
    items: list[dict[str, Any]] = orjson.loads(decide(request_of(stored), live, served).record)["items"]
    return items


async def _records(redis: Redis, loop: str, most: int) -> list[dict[str, Any]]:
    """Records of the newest decisions that the ledger still holds, newest first."""
    seen: dict[str, dict[str, Any]] = {}
    async for decision_id in log.newest_decisions(redis, loop):
        if decision_id in seen:
            continue
        try:
            seen[decision_id] = (await ledger(redis, loop, decision_id))["decision"]
        except NotFound:  # an imported event, or its time in the ledger is over
            continue
        if len(seen) == most:
            break
    return list(seen.values())


async def _catalogue(redis: Redis, loop: str, version: int, encoder: Encoder) -> Catalogue | None:
    try:
        return Catalogue.of(version, await loops.read_items_at(redis, loop, version), encoder)
    except Conflict:
        return None


async def _scorers(redis: Redis, record: LoopRecord, wanted: set[tuple[str, int]]) -> dict[tuple[str, int], Served]:
    """The scorers of (policy, version) pairs: from kept snapshots, else from a replay of the log."""
    found = {("random", 0): UNIFORM}
    rebuild: dict[str, dict[str, int]] = defaultdict(dict)  # policy -> position -> version
    for name, version in wanted - set(found):
        try:
            stored = await policies.read_policy(redis, record.name, name)
        except NotFound:
            continue
        if version == 0:
            found[name, 0] = Served(name, stored.kind, 0, UNIFORM.scorer)
        elif snapshot := await policies.read_snapshot(redis, record.name, name, version):
            found[name, version] = Served(name, stored.kind, version, build_scorer(stored, snapshot, record.d))
        elif position := await policies.version_position(redis, record.name, name, version):
            rebuild[name][position] = version
    for name, stops in rebuild.items():
        stored = await policies.read_policy(redis, record.name, name)
        student = Student(redis, record, stored)
        for position in sorted(stops, key=log.order):
            while entries := await log.read(redis, record.name, student.position, until=position):
                await student.learn(entries)
            version = stops[position]
            snapshot = pack(student.policy.snapshot())
            found[name, version] = Served(name, stored.kind, version, build_scorer(stored, snapshot, record.d))
    return found
