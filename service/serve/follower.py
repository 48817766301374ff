"""Keeps the active loops of a worker current.

A change (a new version, another policy, an item, a setting) is built beside the active loop and checked, and then
replaces it by one assignment. Identities are compared, never numbers alone: a loop or a policy that was deleted and
made again is another one, whatever its epoch or version.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import structlog
from redis.asyncio import Redis

from service.decide.active import UNIFORM, ActiveLoop, ServedPolicy, serving
from service.decide.assignment import Assigner
from service.decide.catalogue import Catalogue
from service.errors import NotFound, StoreUnavailable
from service.records import ItemChange, LoopRecord
from service.represent.stored import AnyEncoder, make_encoder, schema_of, stored_encoder
from service.retrieve.counts import Counts
from service.retrieve.retriever import Retriever
from service.retrieve.towers import Towers
from service.store import embedding_store, item_store, loop_store, policy_store, retrieval_store, workers
from service.store import encoders as encoder_store
from service.store.announcements import listen
from service.store.codec import encoder_of, unpack
from service.store.keys import CHANGES, Keys
from service.store.open_time import OpenTime

BEAT_S = 0.25
POLL_S = 1.0
LOOK_S = 10.0  # from one look at every loop to the next, for what no announcement told
AT_ONCE = 100  # loops that are asked for in one round trip

Seen: TypeAlias = tuple[bytes | None, bytes | None, Mapping[str, tuple[str, int] | None], tuple[int, int]]
"""What an active loop was made of: its id, its epoch, the id and newest version of each policy that serves, and the
versions of the counts and of the embeddings of its funnel, 0 where it has none."""

log = structlog.get_logger()


class Follower:
    """Holds the active loops. `swaps` and `refused` count for /metrics."""

    def __init__(self, redis: Redis, worker: str) -> None:
        self._redis, self.worker = redis, worker
        self.open_time = OpenTime(redis, worker)
        self._loops: Mapping[str, ActiveLoop] = {}
        self._changed: set[str] = set()
        self._wake, self._refreshing = asyncio.Event(), asyncio.Lock()
        self._refused: set[tuple[str, int]] = set()  # (policy id, or key of counts; version) not to be tried again
        self._failing: set[str] = set()  # loops that cannot be loaded, each told once
        self._seen: dict[str, Seen] = {}
        self._due = 0.0  # when all loops are to be looked at, on the monotonic clock
        self._identity: str | None = None  # of the data, when it was first seen
        self.swaps = self.refused = 0
        self.store_since: float | None = None  # since when Redis has not answered (monotonic)
        self.store_lost = False

    def loop(self, name: str) -> ActiveLoop:
        """Return the active loop of this name.

        Raises:
            NotFound: there is none.
        """
        try:
            return self._loops[name]
        except KeyError:
            raise NotFound(f"there is no loop {name!r}; PUT /loops/{name} makes it", code="unknown_loop") from None

    @property
    def names(self) -> list[str]:
        """Names of the active loops."""
        return list(self._loops)

    def store_usable(self) -> bool:
        """Return whether Redis holds the data that this worker serves from, as far as is known."""
        return not self.store_lost

    def check_store(self) -> None:
        """Refuse to acknowledge anything while the data is lost.

        Raises:
            StoreUnavailable.
        """
        if self.store_lost:
            raise StoreUnavailable("Redis lost its data; nothing is acknowledged until a person restarts the workers")

    def nudge(self, name: str) -> None:
        """Look at this loop now, without waiting for the announcement."""
        self._changed.add(name)
        self._wake.set()

    async def start(self) -> None:
        """Load everything once.

        Raises:
            StoreUnavailable: Redis does not answer.
        """
        self._identity = await workers.store_identity(self._redis)
        await self._poll()
        await self._look()

    def run(self) -> list[asyncio.Task[None]]:
        """Follow the announcements, and poll, until each task is cancelled."""
        listening = listen(self._redis, CHANGES, heard=lambda _, name: self.nudge(name), connected=self._look_soon)
        parts = (listening, self._beat_forever(), self._poll_forever(), self._follow())
        return [asyncio.create_task(part) for part in parts]

    def _look_soon(self) -> None:
        self._due = 0.0

    async def _follow(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            changed, self._changed = self._changed, set()
            for name in changed:
                try:
                    await self.refresh(name)
                except StoreUnavailable:
                    self._lost_touch()

    async def _beat_forever(self) -> None:
        """By itself: a look at many loops takes long, and meanwhile feedback is taken."""
        while True:
            try:
                await self._poll()
                self.store_since = None
            except StoreUnavailable:
                self._lost_touch()
            await asyncio.sleep(BEAT_S)

    async def _poll_forever(self) -> None:
        while True:
            if time.monotonic() >= self._due:
                try:
                    await self._look()
                except StoreUnavailable:
                    self._lost_touch()
            await asyncio.sleep(POLL_S)

    def _lost_touch(self) -> None:
        if self.store_since is None:
            self.store_since = time.monotonic()
            log.warning("redis does not answer; serving from memory")

    async def _poll(self) -> None:
        """Beat, and see whether the data is still there. Once it is known to be lost there are no beats."""
        if self.store_lost:
            await self._look_for_loss()
        else:
            self._judge(await self.open_time.beat())

    async def _look_for_loss(self) -> None:
        self._judge(await workers.read_identity(self._redis))

    def _judge(self, found: str | None) -> None:
        """Take the data for lost if this is not its identity."""
        self._identity = self._identity or found
        lost = found != self._identity
        if lost and not self.store_lost:
            log.error("redis lost its data; serving from memory until a person restarts the workers")
        self.store_lost = lost

    async def _look(self) -> None:
        """Refresh every loop that is no longer what it was made of."""
        self._due = time.monotonic() + LOOK_S
        try:
            names = sorted({*self._loops, *await loop_store.listed(self._redis)})
            for first in range(0, len(names), AT_ONCE):
                for name, seen in (await self._see(names[first : first + AT_ONCE])).items():
                    if self._seen.get(name) != seen:
                        await self.refresh(name)
        except StoreUnavailable:
            self._look_soon()
            raise

    async def _see(self, names: Sequence[str]) -> dict[str, Seen]:
        """Return what these loops would be made of now."""
        served = {name: (Keys(name, found.id), found.served) for name in names if (found := self._loops.get(name))}
        policies = [(keys, policy) for keys, serving in served.values() for policy in serving]
        newest: dict[str, dict[str, tuple[str, int] | None]] = {name: {} for name in names}
        versions = await policy_store.newest_versions(self._redis, policies)
        for (keys, policy), version in zip(policies, versions, strict=True):
            newest[keys.loop][policy] = version
        epochs = await loop_store.epochs(self._redis, names)
        narrowed = {name: Keys(name, found.id) for name in names if (found := self._narrowed(name)) is not None}
        counts = dict(
            zip(narrowed, await retrieval_store.read_versions(self._redis, [*narrowed.values()]), strict=True)
        )
        return {name: (*epochs[name], newest[name], counts.get(name, (0, 0))) for name in names}

    def _narrowed(self, name: str) -> ActiveLoop | None:
        """Return the active loop of this name, if a funnel narrows its candidates."""
        active = self._loops.get(name)
        return active if active is not None and active.retriever is not None else None

    async def refresh(self, name: str) -> None:
        """Build the loop's newest state beside the old one, check it, swap.

        Raises:
            StoreUnavailable: Redis does not answer.
        """
        async with self._refreshing:  # or a state that was read earlier could replace one that was read later
            if self.store_lost:
                return
            try:
                await self._rebuild(name)
                self._failing.discard(name)
            except StoreUnavailable:
                raise
            except Exception:  # one broken loop must not stop the others from being followed
                if name not in self._failing:
                    log.exception("loop cannot be loaded; DELETE /loops/{loop} removes it", loop=name)
                self._failing.add(name)

    async def _rebuild(self, name: str) -> None:
        try:
            record = await loop_store.read_loop(self._redis, name)
        except NotFound:
            await self._forget(name)
            return
        keys = Keys(name, record.id)
        old = self._loops.get(name)
        if old is not None and old.id != record.id:
            old = None
        encoders = _Encoders(self._redis, keys, record, old)
        encoder = await encoders.of_loop()
        policies = {policy for policy, share in record.traffic.items() if share > 0}
        experiment = record.experiment_at(time.time())
        if experiment is not None:
            policies |= {arm.policy for arm in experiment.arms.values()}
        newest = await policy_store.latest_versions(self._redis, keys, sorted(policies))
        served = await self._served(keys, record, old, encoders, newest)
        catalogue = await self._catalogue(keys, record, old, encoder, served)
        retriever, counted = await self._retriever(keys, record, old, catalogue)
        scored = catalogue if retriever is None else None  # behind a funnel few of the items are
        for one, policy in served.items():
            if policy.can_fold:
                served[one] = await asyncio.to_thread(policy.folded, scored)
        new = ActiveLoop(
            name=name,
            id=record.id,
            settings=record.settings,
            encoder=encoder,
            catalogue=catalogue,
            traffic={policy: share for policy in sorted(served) if (share := record.traffic.get(policy, 0.0)) > 0},
            served=served,
            epoch=record.epoch,
            activity=record.activity,
            edges=record.edges,
            assigner=None if experiment is None else Assigner(experiment),
            release=record.release,
            retriever=retriever,
        )
        if old is None or catalogue is not old.catalogue or served.keys() != old.served.keys():
            await self._look_for_loss()
        if self.store_lost:  # lost while it was read: what was missing then is not gone
            return
        self._loops = {**self._loops, name: new}
        if old is None or old.epoch != new.epoch:
            await workers.adopt(self._redis, keys, self.worker, new.epoch)
        self._seen[name] = (record.id.encode(), b"%d" % record.epoch, newest, counted)

    async def _forget(self, name: str) -> None:
        """Stop serving a loop that was deleted; Redis without any of our data has deleted nothing."""
        await self._look_for_loss()
        if not self.store_lost:
            self._loops = {other: active for other, active in self._loops.items() if other != name}
            self._seen.pop(name, None)

    async def _catalogue(
        self,
        keys: Keys,
        record: LoopRecord,
        old: ActiveLoop | None,
        encoder: AnyEncoder,
        served: Mapping[str, ServedPolicy],
    ) -> Catalogue:
        """Return the items, encoded once for each encoder that serves: of what is served now, what changed alone."""
        live = {policy.encoder.version: policy.encoder for policy in served.values() if policy.encoder is not None}
        encoders = list(({encoder.version: encoder} | live).values())
        if old is not None:
            catalogue = old.catalogue
            if not catalogue.is_encoded(encoders):
                catalogue = await asyncio.to_thread(catalogue.encoded, encoders)
            if catalogue.version == record.catalogue:
                return catalogue
            found = await item_store.read_changes(self._redis, keys, catalogue.version)
            if found is not None:
                return await asyncio.to_thread(catalogue.changed, *found, encoders)
        return await asyncio.to_thread(Catalogue.written, *await item_store.read_written(self._redis, keys), encoders)

    async def _retriever(
        self, keys: Keys, record: LoopRecord, old: ActiveLoop | None, catalogue: Catalogue
    ) -> tuple[Retriever | None, tuple[int, int]]:
        """Return the funnel, and the newest versions of what it is made from; None: every item is a candidate."""
        funnel = record.settings.funnel
        if not funnel or len(catalogue.features) <= funnel.cut:
            return None, (0, 0)
        [newest] = await retrieval_store.read_versions(self._redis, [keys])
        former = old.retriever if old is not None else None
        version, counts = (0, Counts()) if former is None else (former.version, former.counts)
        embedding, towers = (0, None) if former is None or not funnel.embeds else (former.embedding, former.towers)
        newer = False
        if newest[0] != version and (loaded := await self._load_counts(keys, newest[0])) is not None:
            (version, counts), newer = loaded, True
        if funnel.embeds and newest[1] != embedding and (found := await self._load_towers(keys, newest[1])):
            (embedding, towers), newer = found, True
        if not newer and former is not None and former.funnel == funnel and former.catalogue == catalogue.version:
            return former, newest
        if version:  # else nothing is known, and the whole log of changes would have to be read
            counts.follow(await self._turnover(keys, counts.catalogue))
        changed: list[str] | None = None
        if former is not None:
            changes = await self._turnover(keys, former.catalogue)
            if {change.version for change in changes} >= {*range(former.catalogue + 1, catalogue.version + 1)}:
                changed = [change.item for change in changes]
        items = await asyncio.to_thread(catalogue.asked, record.settings.rules)
        made = await asyncio.to_thread(
            Retriever.of,
            funnel,
            items.ids,
            catalogue.features,
            counts,
            version=version,
            catalogue=catalogue.version,
            former=former,
            changed=changed,
            embedding=embedding,
            towers=towers,
        )
        return made, newest

    async def _turnover(self, keys: Keys, after: int) -> list[ItemChange]:
        """Return which items came and went after a version of the catalogue, as far as it is still kept."""
        found: list[ItemChange] = []
        while changes := await item_store.read_turnover(self._redis, keys, after):
            found += changes
            after = changes[-1].version
        return found

    async def _load_counts(self, keys: Keys, version: int) -> tuple[int, Counts] | None:
        """Load counts; None when there are no good ones: those of before stay."""
        if (refused := (keys.retrieval, version)) in self._refused:
            return None
        try:
            found = await retrieval_store.read_retrieval(self._redis, keys)
            if found.state is None:
                raise ValueError("these are not the bytes that were published")
            counts = await asyncio.to_thread(Counts.load, unpack(found.state))
        except (ValueError, RuntimeError) as error:  # RuntimeError: a newer version wrote it
            self._refused.add(refused)
            self.refused += 1
            log.error("counts of a funnel refused", loop=keys.loop, version=version, why=str(error))
            return None
        self.swaps += 1
        return found.version, counts

    async def _load_towers(self, keys: Keys, version: int) -> tuple[int, Towers | None] | None:
        """Load embeddings, (version, None) where they were withdrawn; None when there are no good ones."""
        if (refused := (keys.embedding, version)) in self._refused:
            return None
        try:
            found = await embedding_store.read_embedding(self._redis, keys)
            towers = None if found.state is None else await asyncio.to_thread(Towers.load, unpack(found.state))
        except (ValueError, RuntimeError) as error:  # RuntimeError: a newer version wrote it
            self._refused.add(refused)
            self.refused += 1
            log.error("learned embeddings refused", loop=keys.loop, version=version, why=str(error))
            return None
        self.swaps += 1
        return found.version, towers

    async def _served(
        self,
        keys: Keys,
        record: LoopRecord,
        old: ActiveLoop | None,
        encoders: _Encoders,
        newest: Mapping[str, tuple[str, int]],
    ) -> dict[str, ServedPolicy]:
        served = {}
        for policy, (policy_id, latest) in newest.items():
            version = record.pins.get(policy, latest)
            before = old.served.get(policy) if old else None
            if before is not None and before.id != policy_id:
                before = None
            if before is not None and before.version == version:
                served[policy] = before
            else:
                loaded = await self._load(keys, record, policy, policy_id, version, encoders)
                served[policy] = loaded or before or ServedPolicy(policy, policy_id, 0, UNIFORM.scorer)
        return served

    async def _load(
        self, keys: Keys, record: LoopRecord, policy: str, policy_id: str, version: int, encoders: _Encoders
    ) -> ServedPolicy | None:
        """Load a version; None when there is nothing (good) to load: what was served before stays."""
        if version == 0 or (policy_id, version) in self._refused:
            return None
        stored = await policy_store.read_policy(self._redis, keys, policy)
        snapshot = await policy_store.read_snapshot(self._redis, keys, policy, version)
        if snapshot is None:  # replaced by a newer one since we looked; its announcement is on the way
            return None
        try:
            encoder = await encoders.get(encoder_of(snapshot) or record.encoder)
            made = await asyncio.to_thread(lambda: serving(stored, version, unpack(snapshot), encoder))
        except (ValueError, RuntimeError) as error:  # RuntimeError: a newer version wrote it
            self._refused.add((policy_id, version))
            self.refused += 1
            log.error("snapshot refused", loop=record.name, policy=policy, version=version, why=str(error))
            return None
        self.swaps += 1
        return replace(made, policy=policy, id=policy_id)

    def rung(self) -> str:
        """Return which rung of the degradation ladder this worker stands on: ok, store_down or store_lost."""
        if self.store_lost:
            return "store_lost"
        return "ok" if self.store_since is None else "store_down"

    def versions(self) -> dict[str, Any]:
        """Return loop -> policy -> version that this worker serves."""
        return {name: {p: s.version for p, s in active.served.items()} for name, active in self._loops.items()}


class _Encoders:
    """The encoders of one loop: those that serve already, or made from their schemas."""

    def __init__(self, redis: Redis, keys: Keys, record: LoopRecord, old: ActiveLoop | None) -> None:
        self._redis, self._keys, self._record = redis, keys, record
        live = [] if old is None else [old.encoder, *(policy.encoder for policy in old.served.values())]
        self._known = {encoder.version: encoder for encoder in live if encoder is not None}

    async def of_loop(self) -> AnyEncoder:
        """Return the encoder of imports."""
        return await self.get(self._record.encoder_of_imports)

    async def get(self, version: str) -> AnyEncoder:
        """Return the encoder of this version.

        Raises:
            ValueError: its schema is not kept, or this code makes another encoder of it.
        """
        if version not in self._known:
            if version == self._record.encoder:
                encoder = make_encoder(schema_of(self._record.schema))
            else:
                schemas = await encoder_store.read_schemas(self._redis, self._keys, [version])
                encoder = stored_encoder(version, schemas.get(version))
            self._known[version] = encoder
        return self._known[version]
