"""Keeps the estimates of one loop's shadow policies (`service/evaluate/shadow.py`) up to date: a fold over its log.

An event holds the row of the chosen item alone, and its policies have learned it before this fold reads it. So the fold
holds *anchors*: the version of each shadow at some moments, a sixteenth of the wait time apart. A decision is judged
by the last anchor before it was made, from its record in the ledger. That version can't have learned its reward.

Of the decisions one in `every` is judged, drawn by a hash of the id. An anchor says how many, before the decisions that
it concerns are made: what they got must not change whether they are judged. It is chosen so that judging takes at most
`SHARE` of the time, and so that no more than `MOST_PENDING` wait for their settlement.

Rewards are in the log at once, and their absence when the wait is over. So a judged decision waits until all that were
made before it are settled. What waits is held in memory only. After a restart the sums go on with the decisions that
are made from then on: those that waited are left out, whatever they got.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from heapq import heappop, heappush
from typing import Any, NamedTuple

import structlog
from redis.asyncio import Redis

from service.decide.active import ServedPolicy, serving
from service.decide.catalogue import Catalogue
from service.errors import NotFound
from service.evaluate.counterfactual import opinion
from service.evaluate.shadow import Judged, Shadow, estimates
from service.learn.log_fold import LogFold
from service.learn.tail import Tail
from service.records import Decision, Entry, Event, LoopRecord, PolicyRecord, order
from service.represent.stored import AnyEncoder, make_encoder, schema_of, stored_encoder
from service.store import encoders, item_store, policy_store, shadow_store
from service.store.codec import encoder_of, unpack
from service.store.connection import now
from service.store.keys import Keys
from service.store.settled import read_decisions, settled_before
from service.store.shadow_store import LEASE

ANCHORS = 16  # in a wait time; fewer where their versions are large
LEAST_APART_S = 1.0
MOST_BYTES = 64 * 2**20  # of the versions that are held, unless three anchors take more
SHARE = 0.05  # of its time that judging may take
MOST_PENDING = 20_000  # judged decisions that wait; half as many are expected at most
MOST_ITEMS = 50_000  # of a catalogue that is encoded for the shadows
IN_SHADOW = "it came into the shadow"
FORGETS = ("reset", "succession", "recall")  # alarms after which a policy goes on from something else

log = structlog.get_logger()


@dataclass(frozen=True)
class Asked:
    """A shadow at one version."""

    served: ServedPolicy
    position: str  # in the log, that it has learned to at most
    bytes: int


@dataclass(frozen=True)
class Anchor:
    """What was known at a moment, for the decisions from then on."""

    at: float  # unix seconds
    every: int  # one decision in so many is judged
    shadows: Mapping[str, Asked]


class Pending(NamedTuple):
    """A judged decision that waits until all before it are settled."""

    deadline: int  # ms
    decision_id: str
    decided: float  # unix seconds
    judged: Mapping[str, Judged]  # by policy


class ShadowKeeper(LogFold):
    """Judges the shadow policies of one loop, as long as it has any."""

    name, period_s = "estimates of shadow policies", 2.0

    def __init__(self, redis: Redis, keys: Keys, tail: Tail | None = None) -> None:
        super().__init__(redis, keys, LEASE, tail)
        self._names: list[str] = []  # of the loop's shadows
        self._shadows: dict[str, Shadow] = {}
        self._why = IN_SHADOW  # estimates that begin now do so
        self._anchors: list[Anchor] = []  # the oldest first
        self._begun = math.inf  # unix seconds: when the first of them was made
        self._pending: list[Pending] = []  # a heap
        self._settled = 0  # the deadline before which all was settled when the log was last read to its end
        self._added = False  # since the last checkpoint
        self._seen, self._seen_from = 0, time.monotonic()  # decisions in the log since then
        self._cost = 0.0  # seconds of CPU to judge a decision, lately
        self._spent = 0.0  # of the batch at hand
        self._encoders: dict[str | None, AnyEncoder] = {}
        self._catalogues: tuple[int, dict[str, Catalogue | None]] = (0, {})  # version, and by encoder

    @property
    def _wanted(self) -> bool:
        return bool(self._names)

    @property
    def _dirty(self) -> bool:
        return super()._dirty or self._added

    async def _read_loop(self) -> None:
        await super()._read_loop()
        policies = await policy_store.policy_names(self._redis, self._keys)
        self._names = shadows_of(self._loop, policies, at=time.time())

    async def _read_position(self) -> str:
        return await shadow_store.read_position(self._redis, self._keys)

    async def _load(self) -> str:
        position, state = await shadow_store.read_state(self._redis, self._keys)
        self._shadows = {name: Shadow.load(said) for name, said in state.items()}
        self._anchors, self._pending, self._begun, self._settled = [], [], math.inf, 0
        return position

    # ---- judging

    async def _take(self, entries: Sequence[Entry]) -> None:
        if not self._anchors:
            await self._anchor()
        shown = [
            entry
            for entry in entries
            if isinstance(entry, Event) and entry.decided is not None and not entry.place and entry.propensity
        ]
        self._seen += len(shown)
        anchored: dict[str, tuple[Event, Anchor]] = {}
        for event in shown:
            if (anchor := self._anchor_of(event)) is not None and drawn(event.decision_id, anchor.every):
                anchored[event.decision_id] = event, anchor
        if anchored:
            self._spent = 0.0
            await self._judge(anchored)
            cost = self._spent / len(anchored)
            self._cost += 0.1 * (cost - self._cost) if self._cost else cost
        self.position = entries[-1].position
        if len(self._pending) > MOST_PENDING:
            self._begin_anew("more decisions came than could wait")

    def _anchor_of(self, event: Event) -> Anchor | None:
        """Return the last anchor before a decision; None where it was made before the first."""
        assert event.decided is not None, "it was decided here"
        for anchor in reversed(self._anchors):
            if anchor.at <= event.decided and all(
                order(one.position) < order(event.position) for one in anchor.shadows.values()
            ):
                return anchor
        if event.decided >= self._begun:  # others of its time were judged: those that were rewarded sooner
            self._begin_anew("the learner fell behind")
        return None

    def _begin_anew(self, why: str) -> None:
        """Throw away what was judged, as not all that belongs to it could be."""
        log.warning("shadow policies are judged anew", loop=self._keys.loop, why=why)
        self._shadows, self._pending, self._anchors, self._begun = {}, [], [], math.inf
        self._why, self._added = why, True

    async def _judge(self, anchored: Mapping[str, tuple[Event, Anchor]]) -> None:
        found = await read_decisions(self._redis, self._keys, list(anchored))
        for _ in range(len(anchored) - len(found)):
            self._leave_out("gone")
        low, high = self._loop.settings.reward_range
        by_catalogue: dict[int, list[tuple[int, Decision, float, Anchor]]] = defaultdict(list)
        for deadline, decision in found:
            event, anchor = anchored[decision.decision_id]
            if len(decision.items) > 1:
                self._leave_out("slates")
            elif not low <= event.reward <= high:
                self._leave_out("outside")
            else:
                reward = (event.reward - low) / (high - low)
                by_catalogue[decision.catalogue].append((deadline, decision, reward, anchor))
        for version, some in sorted(by_catalogue.items()):
            catalogues = await self._catalogues_for(version, [anchor for *_, anchor in some])
            for pending in await self._timed(self._asked, some, catalogues):
                heappush(self._pending, pending)

    def _asked(
        self, some: Sequence[tuple[int, Decision, float, Anchor]], catalogues: Mapping[str, Catalogue | None]
    ) -> list[Pending]:
        """Ask the shadows about decisions (deadline, decision, share of the reward range, anchor) of one catalogue."""
        found = []
        for deadline, decision, reward, anchor in some:
            judged = {}
            for name, asked in anchor.shadows.items():
                assert asked.served.encoder is not None
                catalogue = catalogues[asked.served.encoder.version]
                reward_range = self._loop.settings.reward_range
                said = None if catalogue is None else opinion(decision, catalogue, asked.served, reward_range)
                if said is None:
                    self._leave_out("catalogue", name)
                else:
                    weight = said.chosen / decision.items[0].propensity
                    judged[name] = Judged(reward, weight, said.predicted, said.expected)
            found.append(Pending(deadline, decision.decision_id, decision.at, judged))
        return found

    def _leave_out(self, reason: str, name: str | None = None) -> None:
        for one, shadow in self._shadows.items():
            if name in (None, one):
                shadow.left_out[reason] += 1
                self._added = True

    async def _catalogues_for(self, version: int, anchors: Iterable[Anchor]) -> dict[str, Catalogue | None]:
        """Return encoder -> the catalogue of a version; None where it is no longer kept, or too large."""
        wanted = {
            one.served.encoder.version: one.served.encoder
            for anchor in anchors
            for one in anchor.shadows.values()
            if one.served.encoder is not None
        }
        version_held, held = self._catalogues
        if version_held != version:  # kept are those of one version: decisions come by it
            held = {}
        if missing := [encoder for name, encoder in wanted.items() if name not in held]:
            items = await item_store.kept_items_at(self._redis, self._keys, version)
            for encoder in missing:
                usable = items is not None and len(items) <= MOST_ITEMS
                held[encoder.version] = await self._timed(Catalogue.of, version, items, encoder) if usable else None
        self._catalogues = version, held
        return held

    async def _timed(self, work: Callable[..., Any], *args: Any) -> Any:
        """Do something in a thread, and add its CPU time to what judging takes."""

        def timed() -> Any:
            started = time.thread_time()
            result = work(*args)
            self._spent += time.thread_time() - started
            return result

        return await asyncio.to_thread(timed)

    # ---- settlement, and anchors

    async def drain(self) -> int:
        total = await super().drain()
        await self._at_rest()
        await self.save()
        return total

    async def _at_rest(self) -> None:
        """Add what is settled: all before it has been read. Then note what the next decisions are judged by."""
        while self._pending and self._pending[0].deadline < self._settled:
            one = heappop(self._pending)
            for name, judged in one.judged.items():
                shadow = self._shadows.get(name)
                if shadow is not None and one.decided >= shadow.since:
                    shadow.add(judged)
                    self._added = True
        wait_ms = self._loop.settings.wait_ms
        self._settled = await settled_before(self._redis, self._keys, wait_ms=wait_ms)
        at = await now(self._redis)
        if not self._anchors or at >= self._anchors[-1].at + self._apart_s(at):
            await self._anchor()

    def _apart_s(self, at: float) -> float:
        """Return the seconds from one anchor to the next: few at first, when policies learn most."""
        last = self._anchors[-1].shadows
        if len(last) < len(self._names):  # one has no version yet
            return LEAST_APART_S
        size = sum(one.bytes for one in last.values())
        fit = max(1, min(ANCHORS, MOST_BYTES // size)) if size else ANCHORS
        wait_s = self._loop.settings.wait_ms / 1000
        return max(LEAST_APART_S, min(wait_s / fit, (at - self._begun) / 4))

    async def _anchor(self) -> None:
        """Note the newest versions of the shadows, for the decisions from now on."""
        await self._read_loop()
        before = self._anchors[-1].shadows if self._anchors else {}
        asked: dict[str, Asked] = {}
        regimes: dict[str, str] = {}
        for name in self._names:
            try:
                policy = await policy_store.read_policy(self._redis, self._keys, name)
                found = await self._newest(policy, before.get(name))
            except (NotFound, ValueError, KeyError):  # deleted this very moment, or of a kind that is not installed
                continue
            regimes[name] = regime_of(self._loop, policy)
            if found is not None:
                asked[name] = found
        at = await now(self._redis)  # after the versions were read: they have learned nothing of what comes
        for name, regime in regimes.items():
            known = self._shadows.get(name)
            if known is None or known.regime != regime:
                why = self._why if known is None else "it, or what serves beside it, was changed"
                self._shadows[name] = Shadow(regime, at, why)
                self._added = True
        self._why = IN_SHADOW
        gone = self._shadows.keys() - regimes.keys()
        self._shadows = {name: one for name, one in self._shadows.items() if name not in gone}
        self._added = self._added or bool(gone)
        self._anchors = [*self._anchors, Anchor(at, self._every(), asked)]
        self._begun = min(self._begun, at)
        keep_s = 2 * self._loop.settings.wait_ms / 1000 + 10  # deferred decisions wait twice
        while len(self._anchors) > 2 and self._anchors[1].at < at - keep_s:
            del self._anchors[0]

    async def _newest(self, policy: PolicyRecord, before: Asked | None) -> Asked | None:
        """Return a policy as it would serve now, from what the anchor before held if that is the same version."""
        version = self._loop.pins.get(policy.name, policy.version)
        if before is not None and (before.served.id, before.served.version) == (policy.id, version):
            return before
        snapshot = await policy_store.read_snapshot(self._redis, self._keys, policy.name, version)
        if snapshot is None:
            return None
        encoder = await self._encoder(encoder_of(snapshot))
        served = await asyncio.to_thread(serving, policy, version, unpack(snapshot), encoder)
        return Asked(served, policy.position, len(snapshot))

    async def _encoder(self, version: str | None) -> AnyEncoder:
        if version == self._loop.encoder:
            version = None
        if version not in self._encoders:
            if version is None:
                made = make_encoder(schema_of(self._loop.schema))
            else:
                schemas = await encoders.read_schemas(self._redis, self._keys, [version])
                made = stored_encoder(version, schemas.get(version))
            self._encoders = dict([*self._encoders.items(), (version, made)][-8:])
        return self._encoders[version]

    def _every(self) -> int:
        """Return of how many decisions one is to be judged from now on."""
        at = time.monotonic()
        rate = self._seen / max(at - self._seen_from, 0.1)
        self._seen, self._seen_from = 0, at
        judged = MOST_PENDING / 2 / (self._loop.settings.wait_ms / 1000)  # a second, at most
        if self._cost:
            judged = min(judged, SHARE / self._cost)
        return max(1, math.ceil(rate / judged))

    async def _write(self) -> bool:
        range_ = self._loop.settings.reward_range
        every = self._anchors[-1].every if self._anchors else 1
        said = {name: {**estimates(one, range_), "every": every} for name, one in self._shadows.items()}
        state = {name: one.state() for name, one in self._shadows.items()}
        saved = await shadow_store.save(
            self._redis, self._keys, seen=self._saved, position=self.position, state=state, said=said
        )
        self._added = self._added and not saved
        return saved


def shadows_of(loop: LoopRecord, policies: Iterable[str], *, at: float) -> list[str]:
    """Return those of a loop's policies that serve nobody: no share of the traffic, and no arm of an experiment.

    Args:
        at: unix seconds; an experiment that is over by then has no arms.
    """
    serve = {name for name, share in loop.traffic.items() if share > 0}
    if (experiment := loop.experiment_at(at)) is not None:
        serve |= {arm.policy for arm in experiment.arms.values()}
    return [name for name in policies if name not in serve]


def regime_of(loop: LoopRecord, policy: PolicyRecord) -> str:
    """Name all that must stay as it is for an estimate of a shadow to say something."""
    alarms = [alarm["number"] for alarm in policy.alarms if alarm["reaction"] in FORGETS]
    settings = loop.settings
    said = (
        policy.id,
        policy.erased,
        alarms[-1:],
        loop.pins.get(policy.name),
        sorted(loop.traffic.items()),
        sorted((name, version) for name, version in loop.pins.items() if loop.traffic.get(name)),
        [(one.id, one.ends) for one in loop.experiments.values()],
        settings.reward_range,
        settings.exploration_floor,
    )
    return blake2b(repr(said).encode(), digest_size=8).hexdigest()


def drawn(decision_id: str, every: int) -> bool:
    """Return whether a decision is one of those that are judged, one in `every`."""
    digest = blake2b(f"shadow\0{decision_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % every == 0
