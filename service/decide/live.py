"""What is being served right now, and the hot swap.

A request reads `Live.loop(name)` once and works on that immutable object to its end. A change (a new version, another
policy, an item, a setting) is built beside it and checked, and then replaces it by one assignment, so no request ever
sees half of a change.
"""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_right
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import accumulate
from typing import Any

import structlog
from redis.asyncio import Redis

from service.decide.catalogue import Catalogue
from service.decide.features import Encoder, FeatureSchema
from service.errors import NotFound, StoreUnavailable
from service.loop import LoopSettings
from service.policies import KINDS, Scorer
from service.policies.random import RandomScorer
from service.store import loops, policies
from service.store.codec import unpack
from service.store.connection import GONE
from service.store.keys import CHANGES
from service.store.loops import LoopRecord
from service.store.policies import PolicyRecord

POLL_S = 1.0  # the announcements are fire-and-forget; a poll catches what they lost

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Served:
    """One policy at one version, ready to score. Version 0: no snapshot yet, uniform."""

    policy: str
    kind: str
    version: int
    scorer: Scorer


UNIFORM = Served("random", "random", 0, RandomScorer())


@dataclass(frozen=True)
class LiveLoop:
    """All that a decision in one loop needs."""

    name: str
    settings: LoopSettings
    encoder: Encoder
    catalogue: Catalogue
    traffic: Mapping[str, float]  # policy -> share; sums to 1, or is empty: uniform
    served: Mapping[str, Served]
    epoch: int
    cumulative: tuple[float, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "cumulative", tuple(accumulate(self.traffic.values()))[:-1])

    def policy_for(self, user: str) -> Served:
        """The policy that serves this user: the same one for as long as the traffic stays as it is."""
        if not self.traffic:
            return UNIFORM
        if not self.cumulative:
            return self.served[next(iter(self.traffic))]
        digest = blake2b(f"{self.name}\0{user}".encode(), digest_size=8).digest()
        at = int.from_bytes(digest, "big") / 2**64
        return self.served[tuple(self.traffic)[bisect_right(self.cumulative, at)]]


def build_scorer(record: PolicyRecord, snapshot: bytes, d: int) -> Scorer:
    """The serving half of a snapshot, checked.

    Raises:
        ValueError: garbled, not finite, of the wrong shape, or of a kind that this version does not know.
    """
    if record.kind not in KINDS:
        raise ValueError(f"unknown kind {record.kind!r}")
    kind = KINDS[record.kind]
    return kind.scorer(unpack(snapshot), d=d, params=kind.Params.model_validate(record.params))


class Live:
    """Keeps the live loops current. `swaps` and `refused` count for /metrics."""

    def __init__(self, redis: Redis, worker: str) -> None:
        self._redis, self.worker = redis, worker
        self._loops: Mapping[str, LiveLoop] = {}
        self._dirty: set[str] = set()
        self._wake, self._refreshing = asyncio.Event(), asyncio.Lock()
        self._refused: dict[tuple[str, str], int] = {}  # (loop, policy) -> version not to be tried again
        self._identity: str | None = None
        self.swaps = self.refused = 0
        self.store_since: float | None = None  # since when Redis has not answered (monotonic)
        self.store_lost = False

    def loop(self, name: str) -> LiveLoop:
        """Raises NotFound."""
        try:
            return self._loops[name]
        except KeyError:
            raise NotFound(f"there is no loop {name!r}; PUT /loops/{name} makes it", code="unknown_loop") from None

    def nudge(self, name: str) -> None:
        """Look at this loop now, without waiting for the announcement."""
        self._dirty.add(name)
        self._wake.set()

    def forget(self, name: str) -> None:
        """The loop was deleted."""
        self._loops = {other: live for other, live in self._loops.items() if other != name}

    @property
    def names(self) -> list[str]:
        return list(self._loops)

    async def start(self) -> None:
        """Load everything once.

        Raises:
            StoreUnavailable: Redis does not answer.
        """
        self._identity = await loops.store_identity(self._redis)
        await self._poll()

    def run(self) -> list[asyncio.Task[None]]:
        """Follow the announcements, and poll, until each task is cancelled."""
        return [asyncio.create_task(part) for part in (self._listen(), self._pulse(), self._follow())]

    async def _listen(self) -> None:
        while True:
            with suppress(*GONE):
                async with self._redis.pubsub() as channel:
                    await channel.subscribe(CHANGES)
                    while True:
                        message = await channel.get_message(ignore_subscribe_messages=True, timeout=POLL_S)
                        if message is not None:
                            self._dirty.add(message["data"].decode())
                            self._wake.set()
            await asyncio.sleep(0.1)  # Redis is gone; ask again soon

    async def _follow(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            dirty, self._dirty = self._dirty, set()
            for name in dirty:
                try:
                    await self._refresh(name)
                except StoreUnavailable:
                    self._lost_touch()

    async def _pulse(self) -> None:
        while True:
            try:
                await self._poll()
                self.store_since = None
            except StoreUnavailable:
                self._lost_touch()
            await asyncio.sleep(POLL_S)

    def _lost_touch(self) -> None:
        if self.store_since is None:
            self.store_since = time.monotonic()
            log.warning("redis does not answer; serving from memory")

    async def _poll(self) -> None:
        identity = await loops.read_identity(self._redis)
        if identity != self._identity:
            if not self.store_lost:
                log.error("redis lost its data; serving from memory until a person restarts the workers")
            self.store_lost = True
            return
        self.store_lost = False
        await loops.heartbeat(self._redis, self.worker)
        for name in {*self._loops, *await loops.loop_names(self._redis)}:
            await self._refresh(name)

    async def _refresh(self, name: str) -> None:
        """Build the loop's newest state beside the old one, check it, swap."""
        async with self._refreshing:  # or a state that was read earlier could replace one that was read later
            try:
                await self._rebuild(name)
            except StoreUnavailable:
                raise
            except Exception:  # one broken loop must not stop the others from being followed
                log.exception("refresh failed", loop=name)

    async def _rebuild(self, name: str) -> None:
        if self.store_lost:
            return
        try:
            record = await loops.read_loop(self._redis, name)
        except NotFound:
            self.forget(name)
            return
        old = self._loops.get(name)
        encoder = old.encoder if old else Encoder(FeatureSchema.model_validate(record.schema))
        catalogue = await self._catalogue(record, old, encoder)
        served = await self._served(record, old)
        new = LiveLoop(
            name=name,
            settings=record.settings,
            encoder=encoder,
            catalogue=catalogue,
            traffic={policy: record.traffic[policy] for policy in sorted(served)},
            served=served,
            epoch=record.epoch,
        )
        self._loops = {**self._loops, name: new}
        if old is None or old.epoch != new.epoch:
            await loops.adopt(self._redis, name, self.worker, new.epoch)

    async def _catalogue(self, record: LoopRecord, old: LiveLoop | None, encoder: Encoder) -> Catalogue:
        if old is not None and old.catalogue.version == record.catalogue:
            return old.catalogue
        version, features = await loops.read_items(self._redis, record.name)
        return await asyncio.to_thread(Catalogue.of, version, features, encoder)

    async def _served(self, record: LoopRecord, old: LiveLoop | None) -> dict[str, Served]:
        names = [policy for policy, share in record.traffic.items() if share > 0]
        versions = await policies.latest_versions(self._redis, record.name, names)
        served = {}
        for policy, newest in versions.items():
            version = record.pins.get(policy, newest)
            before = old.served.get(policy) if old else None
            if before is not None and before.version == version:
                served[policy] = before
            else:
                loaded = await self._load(record, policy, version)
                served[policy] = loaded or before or await self._blank(record, policy)
        return served

    async def _load(self, record: LoopRecord, policy: str, version: int) -> Served | None:
        """None when there is nothing (good) to load: what was served before stays."""
        if version == 0 or self._refused.get((record.name, policy)) == version:
            return None
        stored = await policies.read_policy(self._redis, record.name, policy)
        snapshot = await policies.read_snapshot(self._redis, record.name, policy, version)
        if snapshot is None:  # replaced by a newer one since we looked; its announcement is on the way
            return None
        try:
            scorer = await asyncio.to_thread(build_scorer, stored, snapshot, record.d)
        except ValueError as error:
            self._refused[record.name, policy] = version
            self.refused += 1
            log.error("snapshot refused", loop=record.name, policy=policy, version=version, why=str(error))
            return None
        self.swaps += 1
        return Served(policy, stored.kind, version, scorer)

    async def _blank(self, record: LoopRecord, policy: str) -> Served:
        stored = await policies.read_policy(self._redis, record.name, policy)
        return Served(policy, stored.kind, 0, UNIFORM.scorer)

    def rung(self) -> str:
        """Which rung of the degradation ladder this worker stands on."""
        if self.store_lost:
            return "store_lost"
        return "ok" if self.store_since is None else "store_down"

    def versions(self) -> dict[str, Any]:
        """Loop -> policy -> version served by this worker."""
        return {name: {p: s.version for p, s in live.served.items()} for name, live in self._loops.items()}
