"""Says why a decision came out as it did, and what policies would do with a request. It writes nothing.

An explanation is made in a thread, one at a time in a worker, and is given up when it takes too long. The thread stops
for breath between small pieces of work, so that the worker's event loop does not wait for it.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from redis.asyncio import Redis

from service.decide.active import UNIFORM, ActiveLoop, ServedPolicy, serving
from service.decide.catalogue import Catalogue
from service.decide.decision import Request, narrowed, request_of
from service.decide.explanation import FEWEST_LOGGED, MOST_SAMPLED, Explanation, NotLinear, Steps, explained
from service.decide.shapley import Logged
from service.errors import ExplainerBusy, InvalidRequest, NotFound
from service.records import Decision, Event, Features
from service.represent.stored import AnyEncoder, make_encoder, schema_of, stored_encoder
from service.serve.activity import ActivityKeeper, check_names
from service.serve.follower import Follower
from service.serve.limits import Limiter
from service.serve.recommend import check_candidates
from service.settings import Settings
from service.store import encoders, event_log, item_store, loop_store, policy_store
from service.store.codec import encoder_of, unpack
from service.store.connection import end
from service.store.keys import Keys

WITHIN_S = 2.0
BREATH_S = 0.0005
BACKGROUND = 100  # logged requests that estimates compare with
MOST_ENCODED = 2000  # candidates that are encoded anew for one explanation
MOST_POLICIES = 10  # that are asked at once
KEPT_BYTES = 32 << 20  # of versions that were read for an explanation, beside those that serve
SAME_SCORE = 1e-4  # of the reward range: rounding

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why there is no explanation. `code` is stable and made for programs."""

    code: str
    why: str


Answer = Explanation | Refusal


@dataclass(frozen=True, slots=True)
class Tried:
    """What one policy would do with a request."""

    policy: str
    version: int
    share: float  # of the traffic; 0: a shadow, or an arm of an experiment
    answer: Answer


@dataclass(frozen=True, slots=True)
class Trial:
    """What policies would do with a request."""

    context: Features  # with the user's state
    serves: str  # the policy that would serve it
    policies: Sequence[Tried]


class _Refused(Exception):
    def __init__(self, code: str, why: str) -> None:
        super().__init__(why)
        self.refusal = Refusal(code, why)


class _GivenUp(Exception):
    """Nobody waits for it any more."""


class Explainer:
    """Explains decisions and requests of the loops that a worker serves."""

    def __init__(
        self, follower: Follower, redis: Redis, activity: ActivityKeeper, limiter: Limiter, settings: Settings
    ) -> None:
        self._follower, self._redis, self._activity, self._limiter = follower, redis, activity, limiter
        self._most_candidates = settings.max_candidates
        self._turn = asyncio.Lock()
        self._tasks: set[asyncio.Task[object]] = set()
        self._kept: OrderedDict[tuple[str, int], tuple[ServedPolicy, int]] = OrderedDict()  # and its bytes

    async def decision(self, decision: Decision) -> Answer:
        """Explain a decision from the version that made it.

        Raises:
            ExplainerBusy: it takes too long, or others do.
            NotFound: the loop is gone.
            StoreUnavailable: Redis does not answer.
        """
        active = self._follower.loop(decision.loop)

        async def explain(stop: threading.Event) -> Answer:
            try:
                return await self._of_decision(decision, active, stop)
            except _Refused as refused:
                return refused.refusal

        return await self._alone(explain)

    async def attempt(
        self,
        loop: str,
        *,
        user_id: str | None,
        context: Features,
        candidates: Sequence[tuple[str, Features | None]] | None,
        policies: Sequence[str] | None,
    ) -> Trial:
        """Say what policies would do with a request, and why: those that are named, else all of the loop.

        Raises:
            ExplainerBusy: it takes too long, or others do.
            InvalidRequest: see `Recommender.recommend`; or too many policies.
            NoCandidates: nothing is eligible.
            NotFound: the loop, or a policy that is named, is not there.
            StoreUnavailable: Redis does not answer.
        """
        active = self._follower.loop(loop)
        check_names(context)
        check_candidates(candidates, self._most_candidates)
        if policies is not None and len(policies) > MOST_POLICIES:
            raise InvalidRequest("policies", f"at most {MOST_POLICIES}, got {len(policies)}")

        async def explain(stop: threading.Event) -> Trial:
            at = time.time()
            asked, seen = context, None
            if user_id is not None and active.knows_users:
                asked, seen = await self._activity.with_state(
                    context, user_id, active, at=round(1000 * at), takes_up=False
                )
            removed = await self._limiter.of_request(active, user_id, candidates)
            request = Request(
                "",
                user_id,
                asked,
                candidates,
                (),
                1,
                active.settings.rules,
                seen=seen,
                removed=removed if any(removed) else None,
            )
            request = await asyncio.to_thread(narrowed, request, active)
            serves, _ = active.assigned(user_id, "", at=at, context=context)
            tried = []
            named = await self._named(active, policies)
            most_sampled = MOST_SAMPLED if len(named) == 1 else 1
            for name, version in named.items():
                answer = await self._tried(request, active, name, version, stop, most_sampled)
                tried.append(Tried(name, version, active.traffic.get(name, 0.0), answer))
            return Trial(asked, serves.policy, tried)

        return await self._alone(explain)

    async def close(self) -> None:
        """Give up what is being explained."""
        await end(*self._tasks)

    # ---- one at a time

    async def _alone(self, work: Callable[[threading.Event], Awaitable[T]]) -> T:
        """Do some work when no other is done; wait for it for so long.

        Raises:
            ExplainerBusy: it is not done in time. It gives up at its next breath, and until then no other begins.
        """
        stop = threading.Event()

        async def in_turn() -> T:
            try:
                async with self._turn:
                    if stop.is_set():
                        raise _GivenUp
                    return await work(stop)
            finally:
                stop.set()

        task = asyncio.create_task(in_turn())
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        try:
            done, _ = await asyncio.wait({task}, timeout=WITHIN_S)
        finally:
            stop.set()
        if not done:
            raise ExplainerBusy(
                f"it was not made within {WITHIN_S:g} s; ask again, or name fewer candidates and policies"
            )
        return task.result()

    def _ended(self, task: asyncio.Task[object]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # nobody waits for it any more, if it was given up

    # ---- what is explained

    async def _of_decision(self, decision: Decision, live: ActiveLoop, stop: threading.Event) -> Explanation:
        settings = live.settings.model_copy(update={"exploration_floor": decision.exploration_floor})
        active, request = replace(live, settings=settings), request_of(decision)
        served = await self._version(live, decision.policy, decision.version)
        encoder = served.encoder or await self._encoder(live, decision.encoder)
        served = replace(served, encoder=encoder, fold=served.fold if decision.folded else None)
        if live.catalogue.version != decision.catalogue or not live.catalogue.is_encoded_for(encoder):
            features: Mapping[str, Features] | None = live.catalogue.features
            if live.catalogue.version != decision.catalogue:
                keys = Keys(live.name, live.id)
                features = await item_store.kept_items_at(self._redis, keys, decision.catalogue)
            if features is None:
                why = f"version {decision.catalogue} of the catalogue is no longer kept"
                raise _Refused("catalogue_not_kept", why)
            request, active = _spelled_out(request, active, features, encoder)
        shown = [item.id for item in decision.items]
        found = await self._explained(request, active, served, stop, first=shown)
        low, high = encoder.reward_range or settings.reward_range
        again = {one.id: one.reply_score for one in found.candidates}
        for item in decision.items[: len(found.candidates)]:
            if abs(again.get(item.id, float("inf")) - item.score) > SAME_SCORE * (high - low):
                why = f"item {item.id!r} had the score {item.score:g}, and gets another one now: the policy was deleted"
                raise _Refused("not_reproduced", f"{why} and made again, or the loop's reward range has changed")
        return found

    async def _tried(
        self,
        request: Request,
        active: ActiveLoop,
        name: str,
        version: int,
        stop: threading.Event,
        most_sampled: int,
    ) -> Answer:
        try:
            served = await self._version(active, name, version)
            encoder = served.encoder or active.encoder
            if not active.catalogue.is_encoded_for(encoder):
                request, active = _spelled_out(request, active, active.catalogue.features, encoder)
            return await self._explained(request, active, served, stop, most_sampled=most_sampled)
        except _Refused as refused:
            return refused.refusal

    async def _explained(
        self,
        request: Request,
        active: ActiveLoop,
        served: ServedPolicy,
        stop: threading.Event,
        *,
        first: Sequence[str] = (),
        most_sampled: int = MOST_SAMPLED,
    ) -> Explanation:
        try:
            return await asyncio.to_thread(_finish, explained(request, active, served, first=first), stop)
        except NotLinear:
            background = await self._background(active)
        if len(background) < FEWEST_LOGGED:
            why = "its score is not linear: estimates compare with logged requests, and the log holds too few yet"
            raise _Refused("no_background", why)
        steps = explained(request, active, served, first=first, background=background, most_sampled=most_sampled)
        return await asyncio.to_thread(_finish, steps, stop)

    # ---- what is read

    async def _named(self, active: ActiveLoop, policies: Sequence[str] | None) -> dict[str, int]:
        """Return policy -> the version that serves, or would.

        Raises:
            NotFound: a policy that is named is not there.
        """
        keys = Keys(active.name, active.id)
        names = policies if policies is not None else await policy_store.policy_names(self._redis, keys)
        pins = (await loop_store.read_loop(self._redis, active.name)).pins
        newest = await policy_store.latest_versions(self._redis, keys, names)
        for name in names:
            if name not in newest:
                raise NotFound(f"there is no policy {name!r} in loop {active.name!r}", code="unknown_policy")
        found = {name: pins.get(name, version) for name, (_, version) in newest.items()}
        return dict([*found.items()][:MOST_POLICIES]) if found or policies is not None else {UNIFORM.policy: 0}

    async def _version(self, active: ActiveLoop, name: str, version: int) -> ServedPolicy:
        """Return a policy at a version: as it serves, as it was read before, or from its kept snapshot."""
        live = active.served.get(name)
        if live is not None and live.version == version:
            return live
        if version == 0:
            return ServedPolicy(name, "", 0, UNIFORM.scorer)
        keys = Keys(active.name, active.id)
        try:
            record = await policy_store.read_policy(self._redis, keys, name)
        except NotFound:
            raise _Refused("policy_gone", f"there is no policy {name!r} any more") from None
        known = self._kept.get((record.id, version))
        if known is not None:
            self._kept.move_to_end((record.id, version))
            return known[0]
        snapshot = await policy_store.read_snapshot(self._redis, keys, name, version)
        if snapshot is None:
            why = f"version {version} of policy {name!r} is no longer kept; `rebound audit` learns it anew from the log"
            raise _Refused("version_not_kept", why)
        encoder = await self._encoder(active, encoder_of(snapshot))
        try:
            made = await asyncio.to_thread(lambda: serving(record, version, unpack(snapshot), encoder))
        except (ValueError, RuntimeError) as error:  # RuntimeError: a newer version wrote it
            raise _Refused("unreadable_version", f"version {version} of policy {name!r}: {error}") from error
        self._keep((record.id, version), made, len(snapshot))
        return made

    def _keep(self, version: tuple[str, int], made: ServedPolicy, size: int) -> None:
        """Keep a version for the next explanation; those that were not asked for longest are dropped."""
        if size > KEPT_BYTES:
            return
        self._kept[version] = (made, size)
        while sum(size for _, size in self._kept.values()) > KEPT_BYTES:
            self._kept.popitem(last=False)

    async def _encoder(self, active: ActiveLoop, version: str | None) -> AnyEncoder:
        """Return the encoder of this version; None is the loop's first."""
        live = [active.encoder, *(served.encoder for served in active.served.values())]
        for encoder in live:
            if encoder is not None and encoder.version == version:
                return encoder
        record = await loop_store.read_loop(self._redis, active.name)
        if version in (None, record.encoder):
            return make_encoder(schema_of(record.schema))
        schemas = await encoders.read_schemas(self._redis, Keys(record.name, record.id), [version])
        try:
            return stored_encoder(version, schemas.get(version))
        except ValueError as error:
            raise _Refused("encoder_not_kept", str(error)) from error

    async def _background(self, active: ActiveLoop) -> list[Logged]:
        """Return the newest requests of the log, with the items that were shown."""
        keys, items = Keys(active.name, active.id), active.catalogue.features
        found = []
        async for entries in event_log.scan(self._redis, keys, newest=BACKGROUND):
            for entry in entries:
                if isinstance(entry, Event):
                    features = items.get(entry.item, {}) if entry.features is None else entry.features
                    found.append(Logged(entry.decision_id, entry.item, entry.user, entry.context, features))
        return found[-BACKGROUND:]


def _spelled_out(
    request: Request, active: ActiveLoop, features: Mapping[str, Features], encoder: AnyEncoder
) -> tuple[Request, ActiveLoop]:
    """Return a request whose candidates bring their features, and the loop without its catalogue, for one encoder."""
    if request.candidates is not None:
        pairs = [(item, features.get(item, {}) if own is None else own) for item, own in request.candidates]
    else:
        ids = sorted(features)
        named = ids if request.retrieved is None else [ids[row] for row in request.retrieved.rows]
        if len(named) > MOST_ENCODED:
            raise _Refused(
                "too_many_candidates",
                f"{len(named)} candidates would have to be encoded anew, and at most {MOST_ENCODED} are",
            )
        pairs = [(item, features[item]) for item in named]
    none = Catalogue.of(active.catalogue.version, {}, encoder)
    return replace(request, candidates=pairs, retrieved=None), replace(
        active, encoder=encoder, catalogue=none, retriever=None
    )


def _finish(steps: Steps[T], stop: threading.Event) -> T:
    """Do all the work, with breaths between."""
    while not stop.is_set():
        try:
            next(steps)
        except StopIteration as done:
            result: T = done.value
            return result
        time.sleep(BREATH_S)
    raise _GivenUp
