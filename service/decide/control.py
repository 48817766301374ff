"""The administrative side: loops, items, policies, traffic. Every change returns after all live workers serve it."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import orjson
from pydantic import ValidationError
from redis.asyncio import Redis

from service import events
from service.decide.catalogue import Features
from service.decide.features import Encoder, FeatureSchema
from service.decide.live import Live, build_scorer
from service.errors import Conflict, InvalidRequest, NotFound
from service.loop import LOOP_NAME, LoopSettings
from service.policies import KINDS
from service.store import log, loops, policies
from service.store.loops import LoopRecord
from service.store.policies import PolicyRecord

DEFAULT_LOOP = "default"
DEFAULT_POLICY = "adaptive"


@dataclass(frozen=True)
class Adoption:
    """Which live workers serve a change, and which do not yet."""

    epoch: int
    there: list[str]
    missing: list[str]


@dataclass(frozen=True)
class Past:
    """One row of a historical log."""

    event_id: str
    user_id: str | None
    context: Features
    item_id: str
    features: Features | None
    reward: float
    propensity: float | None


class Control:
    """Administrative calls, carried out in Redis and adopted by the workers."""

    def __init__(self, redis: Redis, live: Live) -> None:
        self._redis, self._live = redis, live

    async def bootstrap(self) -> None:
        """Make the loop `default` where there is no data at all; a loop that somebody deleted stays deleted."""
        if await loops.read_identity(self._redis) is None:
            await self._create_loop(DEFAULT_LOOP, LoopSettings(), FeatureSchema())
            with suppress(Conflict):  # another worker starts at the same moment, or a start was cut off
                await self._create_policy(DEFAULT_LOOP, DEFAULT_POLICY, DEFAULT_POLICY, {})
            await loops.change_loop(self._redis, DEFAULT_LOOP, {"traffic": orjson.dumps({DEFAULT_POLICY: 1.0})})

    # ---- loops

    async def put_loop(self, name: str, settings: Mapping[str, Any], schema: FeatureSchema | None) -> bool:
        """Create a loop, or change the given settings of one; True when it was created.

        Raises:
            InvalidRequest: the name is no loop name, or the settings do not fit together.
            Conflict: the schema or the reward range would change, and there are policies or events of the old one.
        """
        if not LOOP_NAME.fullmatch(name):
            raise InvalidRequest(
                "loop", "1 to 64 of: lower-case letters, digits, . _ - (starting with a letter or digit)"
            )
        try:
            record = await loops.read_loop(self._redis, name)
        except NotFound:
            created = await self._create_loop(name, self._settings({}, settings), schema or FeatureSchema())
            await self._adopted(name, 1)
            return created
        changed = self._settings(record.settings.model_dump(), settings)
        changes: dict[str, str | bytes | int] = {"settings": changed.model_dump_json()}
        if changed.reward_range != record.settings.reward_range:
            await self._check_unused(name, "reward_range")
        if schema is not None and Encoder(schema).version != record.encoder:
            await self._check_unused(name, "schema")
            encoder = Encoder(schema)
            changes |= {"schema": _dump(schema), "d": encoder.d, "encoder": encoder.version}
        await self._adopted(name, await loops.change_loop(self._redis, name, changes))
        return False

    async def _check_unused(self, name: str, what: str) -> None:
        """Raises Conflict when policies or events were made with the loop's present schema or reward range."""
        if await policies.policy_names(self._redis, name) or await log.read(self._redis, name, log.START, most=1):
            raise Conflict(
                f"policies or events of loop {name!r} were made with its {what}; make a new loop and import the log",
                code=f"{what}_in_use",
            )

    @staticmethod
    def _settings(old: Mapping[str, Any], new: Mapping[str, Any]) -> LoopSettings:
        try:
            return LoopSettings.model_validate({**old, **new})
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"])) or "default_reward"
            raise InvalidRequest(field, _message(first)) from error

    async def _create_loop(self, name: str, settings: LoopSettings, schema: FeatureSchema) -> bool:
        encoder = Encoder(schema)
        return await loops.create_loop(
            self._redis,
            LoopRecord(
                name=name,
                settings=settings,
                schema=orjson.loads(_dump(schema)),
                d=encoder.d,
                encoder=encoder.version,
                epoch=1,
                catalogue=0,
                traffic={},
                pins={},
            ),
        )

    async def delete_loop(self, name: str) -> None:
        """Everything that belongs to the loop goes."""
        await loops.read_loop(self._redis, name)
        await loops.delete_loop(self._redis, name)
        self._live.forget(name)

    # ---- items

    async def change_items(self, loop: str, changes: Mapping[str, Features | None]) -> Adoption:
        """Upsert items (None: delete), all or nothing.

        Raises:
            InvalidRequest: a feature does not fit the loop's schema.
        """
        live = self._live.loop(loop)
        live.encoder.items([features for features in changes.values() if features is not None], where="items")
        return await self._adopted(loop, await loops.change_items(self._redis, loop, changes))

    async def delete_item(self, loop: str, item: str) -> Adoption:
        """Raises NotFound."""
        if item not in self._live.loop(loop).catalogue.index:
            raise NotFound(f"there is no item {item!r} in loop {loop!r}", code="unknown_item")
        return await self.change_items(loop, {item: None})

    # ---- the log

    async def import_events(self, loop: str, rows: Sequence[Past]) -> int:
        """Append historical events, all or nothing; how many were new.

        Raises:
            InvalidRequest: a reward is out of range, or a feature does not fit the schema.
        """
        live = self._live.loop(loop)
        check_rewards(live.settings, [row.reward for row in rows], "events.{}.reward")
        encoded = await asyncio.to_thread(self._encode, loop, rows)
        return await log.append_imported(self._redis, loop, encoded)

    def _encode(self, loop: str, rows: Sequence[Past]) -> list[tuple[str, bytes, bytes, float]]:
        live = self._live.loop(loop)
        found = []
        for number, row in enumerate(rows):
            try:
                _, block = live.catalogue.eligible([(row.item_id, row.features)], (), live.encoder)
                x = live.encoder.encode(row.context, block)
            except InvalidRequest as error:
                field = error.extra["errors"][0]
                place = field["field"].removeprefix("candidates.0.")
                raise InvalidRequest(f"events.{number}.{place}", field["message"]) from error
            body = events.body(
                decision_id=row.event_id,
                item=row.item_id,
                user=row.user_id,
                context=row.context,
                n=None,
                propensity=row.propensity,
                policy=None,
                version=0,
            )
            found.append((row.event_id, body, x[0].astype("<f4").tobytes(), row.reward))
        return found

    # ---- policies

    async def create_policy(self, loop: str, name: str, kind: str, params: Mapping[str, Any]) -> PolicyRecord:
        """Make a policy: it learns the retained log first, in the shadow. A batch-trained one trains on it at once.

        Raises:
            InvalidRequest: no such kind, or a parameter is wrong.
            Conflict: the name is taken.
        """
        await loops.read_loop(self._redis, loop)
        record = await self._create_policy(loop, name, kind, params)
        if KINDS[kind].batch_trained:
            await log.append_training(self._redis, loop, name)
        return record

    async def _create_policy(self, loop: str, name: str, kind: str, params: Mapping[str, Any]) -> PolicyRecord:
        if kind not in KINDS:
            raise InvalidRequest("kind", f"there is no kind {kind!r}; there are {', '.join(sorted(KINDS))}")
        try:
            checked = KINDS[kind].Params.model_validate(params)
        except ValidationError as error:
            first = error.errors()[0]
            raise InvalidRequest(".".join(["params", *map(str, first["loc"])]), _message(first)) from error
        record = PolicyRecord(name=name, kind=kind, params=checked.model_dump(mode="json"), seed=0)
        await policies.create_policy(self._redis, loop, record)
        return record

    async def train(self, loop: str, name: str) -> str:
        """Ask a batch-trained policy to train anew on the retained log; the position of the request in the log."""
        record = await policies.read_policy(self._redis, loop, name)
        if not KINDS[record.kind].batch_trained:
            raise Conflict(
                f"{record.kind} learns from every event by itself; there is nothing to train", code="not_trained"
            )
        return await log.append_training(self._redis, loop, name)

    async def delete_policy(self, loop: str, name: str) -> None:
        """Raises Conflict while the policy has a share of the traffic."""
        await policies.read_policy(self._redis, loop, name)
        record = await loops.read_loop(self._redis, loop)
        if record.traffic.get(name):
            raise Conflict(f"policy {name!r} serves; give its traffic to another one first", code="policy_serves")
        await policies.delete_policy(self._redis, loop, name)

    async def activate(self, loop: str, name: str) -> Adoption:
        """Give a policy all the traffic, at its newest version."""
        await policies.read_policy(self._redis, loop, name)
        record = await loops.read_loop(self._redis, loop)
        pins = {policy: version for policy, version in record.pins.items() if policy != name}
        return await self._change(loop, traffic={name: 1.0}, pins=pins)

    async def rollback(self, loop: str, name: str, version: int) -> Adoption:
        """Serve exactly this version, until the policy is activated again. It goes on learning meanwhile.

        Raises:
            NotFound: the version is not kept.
            Conflict: its snapshot does not load.
        """
        stored = await policies.read_policy(self._redis, loop, name)
        record = await loops.read_loop(self._redis, loop)
        pins = {**record.pins, name: version}
        await self._change(loop, traffic=record.traffic, pins=pins, wait=False)  # pinned first: now it cannot go
        snapshot = await policies.read_snapshot(self._redis, loop, name, version)
        if snapshot is None:
            await self._change(loop, traffic=record.traffic, pins=record.pins)
            kept = await policies.kept_versions(self._redis, loop, name)
            raise NotFound(
                f"version {version} of policy {name!r} is not kept; kept are {_ranges(kept)}", code="unknown_version"
            )
        try:
            build_scorer(stored, snapshot, record.d)
        except ValueError as error:
            await self._change(loop, traffic=record.traffic, pins=record.pins)
            raise Conflict(
                f"version {version} of policy {name!r} does not load: {error}", code="bad_snapshot"
            ) from error
        return await self._change(loop, traffic=record.traffic, pins=pins)

    async def set_traffic(self, loop: str, shares: Mapping[str, float]) -> Adoption:
        """Split the traffic.

        Raises:
            InvalidRequest: an unknown policy, or shares that do not sum to 1.
        """
        record = await loops.read_loop(self._redis, loop)
        known = await policies.policy_names(self._redis, loop)
        for name in shares:
            if name not in known:
                raise InvalidRequest(
                    name, f"there is no such policy in loop {loop!r}; there are {', '.join(known) or 'none'}"
                )
        if not math.isclose(total := sum(shares.values()), 1.0, abs_tol=1e-9):
            raise InvalidRequest("traffic", f"the shares sum to {total:g}, not to 1")
        return await self._change(loop, traffic={n: s for n, s in shares.items() if s > 0}, pins=record.pins)

    async def _change(
        self, loop: str, *, traffic: Mapping[str, float], pins: Mapping[str, int], wait: bool = True
    ) -> Adoption:
        changes: dict[str, str | bytes | int] = {"traffic": orjson.dumps(traffic), "pins": orjson.dumps(pins)}
        epoch = await loops.change_loop(self._redis, loop, changes)
        return await self._adopted(loop, epoch) if wait else Adoption(epoch, [], [])

    async def _adopted(self, loop: str, epoch: int) -> Adoption:
        self._live.nudge(loop)
        return Adoption(epoch, *await loops.adopted(self._redis, loop, epoch))

    # ---- reading

    async def describe(self, loop: str, name: str, *, summary: bool) -> dict[str, Any]:
        """A policy as `GET /policies` shows it."""
        stored = await policies.read_policy(self._redis, loop, name)
        record = await loops.read_loop(self._redis, loop)
        stats = await log.read_stats(self._redis, loop)
        found: dict[str, Any] = {
            "name": name,
            "kind": stored.kind,
            "params": stored.params,
            "version": stored.version,
            "events": stored.events,
            "lag": max(0, stats.get("events", 0) - stored.skipped - stored.events),
            "bytes": stored.bytes,
            "share": record.traffic.get(name, 0.0),
            "pinned": record.pins.get(name),
            "kept_versions": await policies.kept_versions(self._redis, loop, name),
            "published": stored.published,
            "alarms": stored.alarms,
        }
        if summary:
            snapshot = await policies.read_snapshot(self._redis, loop, name, stored.version)
            scorer = build_scorer(stored, snapshot, record.d) if snapshot else None
            found["summary"] = scorer.summary() if scorer else {}
        return found

    async def describe_all(self, loop: str) -> list[dict[str, Any]]:
        await loops.read_loop(self._redis, loop)
        names = await policies.policy_names(self._redis, loop)
        return [await self.describe(loop, name, summary=False) for name in names]


def _message(error: Mapping[str, Any]) -> str:
    """What pydantic found wrong."""
    return str(error["msg"]).removeprefix("Value error, ")


def check_rewards(settings: LoopSettings, rewards: Sequence[float], field: str) -> None:
    """Raises InvalidRequest for the first reward outside the loop's range; `field` has a place for its number."""
    low, high = settings.reward_range
    for number, reward in enumerate(rewards):
        if not low <= reward <= high:
            raise InvalidRequest(
                field.format(number), f"{reward:g} lies outside the loop's reward range [{low:g}, {high:g}]"
            )


def _dump(schema: FeatureSchema) -> bytes:
    return orjson.dumps(schema.model_dump(mode="json"))


def _ranges(versions: Sequence[int]) -> str:
    return f"{versions[0]} to {versions[-1]}" if versions else "none"
