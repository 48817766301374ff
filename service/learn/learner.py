"""The process `rebound learn`: a runner for every policy of every loop; a sweeper, a profiler, a historian for each.

It takes the steps of releases, has evaluations done, and erases users, too.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import structlog
from redis.asyncio import Redis

from service.errors import NotFound, StoreUnavailable, UnreadableRecord
from service.learn.bell import Bell, rest
from service.learn.embedder import Embedder
from service.learn.eraser import Eraser
from service.learn.evaluations import Evaluator
from service.learn.experiments import TASK as EXPERIMENTS
from service.learn.experiments import ExperimentKeeper
from service.learn.graph_keeper import GraphKeeper
from service.learn.historian import Historian
from service.learn.indexer import Indexer
from service.learn.profiler import Profiler
from service.learn.releaser import Releaser
from service.learn.runner import PolicyRunner
from service.learn.shadows import ShadowKeeper, shadows_of
from service.learn.sweeper import Sweeper
from service.learn.tail import Tail
from service.settings import Settings
from service.store import event_log, loop_store, policy_store, workers
from service.store.announcements import listen
from service.store.codec import NewerFormat
from service.store.connection import connect, end
from service.store.embedding_store import LEASE as EMBEDDING
from service.store.graph_store import LEASE as GRAPH
from service.store.history_store import LEASE as HISTORY
from service.store.keys import CHANGES, USED, Keys
from service.store.profile_store import LEASE as PROFILE
from service.store.release_store import LEASE as RELEASE
from service.store.retrieval_store import LEASE as RETRIEVAL
from service.store.shadow_store import LEASE as SHADOWS
from service.store.upgrade import upgrade

PERIOD_S = 1.0  # of the heartbeat
LOOK_S = 10.0  # from one look at every loop to the next, for what no announcement told
AT_ONCE = 100  # loops that are asked for in one round trip

log = structlog.get_logger()


@dataclass
class _Known:
    """A loop whose tasks were started."""

    keys: Keys
    bell: Bell
    tail: Tail
    state: tuple[bytes | None, bytes | None] | None  # id and epoch at the last look; None: look again
    end: str | None = None  # of its log at the last look


class Learner:
    """Starts a task for whatever is new. Tasks of what is gone end by themselves.

    Announcements say which loops changed and which are used. Now and then it looks at all of them.
    """

    def __init__(self, redis: Redis, settings: Settings) -> None:
        self._redis, self._settings = redis, settings
        self._tasks: dict[tuple[Keys, str], asyncio.Task[None]] = {}
        self._loops: dict[str, _Known] = {}
        self._changed: set[str] = set()  # names of loops to look at
        self._wake = asyncio.Event()
        self._due = 0.0  # when all are to be looked at, on the monotonic clock
        self._unreadable: set[str] = set()  # loops that cannot be read, each told once
        self._identity: str | None = None  # of the data, when it was first seen
        self._evaluator = Evaluator(redis, settings)
        self._eraser = Eraser(redis)

    async def follow(self, stop: asyncio.Event) -> None:
        """Start a task for every loop and policy that has none; wake the loops whose log has grown.

        Raises:
            StoreUnavailable: Redis does not answer.
        """
        names = sorted({*self._loops, *await loop_store.listed(self._redis)})
        for first in range(0, len(names), AT_ONCE):
            some = names[first : first + AT_ONCE]
            await self._look_at(some, stop)
            known = [self._loops[name] for name in some if name in self._loops]
            ends = await event_log.ends(self._redis, [one.keys for one in known])
            for one, last in zip(known, ends, strict=True):
                if one.end not in (None, last):
                    one.bell.ring()
                one.end = last
                one.tail.forget()  # nearly all of it was read by every task

    async def _look_at(self, names: Sequence[str], stop: asyncio.Event) -> None:
        """Start what is missing in those of these loops that have changed."""
        for name, state in (await loop_store.epochs(self._redis, names)).items():
            if name not in self._loops or self._loops[name].state != state:
                await self._start(name, state, stop)

    async def _start(self, name: str, state: tuple[bytes | None, bytes | None], stop: asyncio.Event) -> None:
        known = self._loops.get(name)
        if known is not None:
            known.bell.ring()  # tasks of what is gone are to notice
        try:
            record = await loop_store.read_loop(self._redis, name)
            self._unreadable.discard(name)
        except NotFound:
            self._loops.pop(name, None)
            return
        except (UnreadableRecord, NewerFormat) as error:
            if name not in self._unreadable:
                log.error("loop cannot be read", loop=name, why=str(error))
            self._unreadable.add(name)
            return
        keys = Keys(name, record.id)
        if known is None or known.keys != keys:
            known = self._loops[name] = _Known(keys, Bell(awake=False), Tail(self._redis, keys), state)
        known.state = state
        self._run(keys, "", Sweeper(self._redis, keys).run, stop)
        self._run(keys, PROFILE, Profiler(self._redis, keys, known.tail).run, stop)
        self._run(keys, HISTORY, Historian(self._redis, keys, known.tail).run, stop)
        if record.experiments:
            self._run(keys, EXPERIMENTS, ExperimentKeeper(self._redis, keys, known.tail).run, stop)
        if record.release is not None:
            self._run(keys, RELEASE, Releaser(self._redis, keys, known.tail).run, stop)
        if record.settings.funnel:
            self._run(keys, RETRIEVAL, Indexer(self._redis, keys, known.tail).run, stop)
        if record.settings.funnel.embeds:
            self._run(keys, EMBEDDING, Embedder(self._redis, keys, self._settings).run, stop)
        if record.edges:
            self._run(keys, GRAPH, GraphKeeper(self._redis, keys, known.tail).run, stop)
        policies = await policy_store.policy_names(self._redis, keys)
        if shadows_of(record, policies, at=time.time()):
            self._run(keys, SHADOWS, ShadowKeeper(self._redis, keys, known.tail).run, stop)
        for policy in policies:
            self._run(keys, policy, PolicyRunner(self._redis, keys, policy, self._settings, known.tail).run, stop)

    def _run(
        self,
        keys: Keys,
        what: str,
        run: Callable[[asyncio.Event, Bell], Coroutine[Any, Any, None]],
        stop: asyncio.Event,
    ) -> None:
        """Start a task, unless it runs already."""
        if (keys, what) in self._tasks:
            return

        def ended(_: asyncio.Task[None]) -> None:
            del self._tasks[keys, what]
            if (known := self._loops.get(keys.loop)) is not None:
                known.state = None  # what is gone may have been made again meanwhile
            self._tell(keys.loop)

        task = self._tasks[keys, what] = asyncio.create_task(run(stop, self._loops[keys.loop].bell))
        task.add_done_callback(ended)

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop`; then every policy is checkpointed and every lease let go."""
        listening = asyncio.create_task(
            listen(self._redis, CHANGES, USED, heard=self._heard, connected=self._look_at_all)
        )
        try:
            await asyncio.gather(
                self._repeat(self._beat, stop, asyncio.Event(), every_s=PERIOD_S),
                self._repeat(lambda: self._look(stop), stop, self._wake),
                self._repeat(lambda: self._evaluate(stop), stop, asyncio.Event(), every_s=PERIOD_S),
                self._repeat(lambda: self._erase(stop), stop, asyncio.Event(), every_s=PERIOD_S),
            )
        finally:
            await end(listening)
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    def _heard(self, channel: str, name: str) -> None:
        if channel == USED and name in self._loops:
            self._loops[name].bell.ring()
        else:
            self._tell(name)

    def _tell(self, name: str) -> None:
        """Have a loop looked at."""
        self._changed.add(name)
        self._wake.set()

    def _look_at_all(self) -> None:
        self._due = 0.0
        self._wake.set()

    async def _repeat(
        self,
        step: Callable[[], Awaitable[None]],
        stop: asyncio.Event,
        wake: asyncio.Event,
        *,
        every_s: float | None = None,
    ) -> None:
        while not stop.is_set():
            wake.clear()
            with suppress(StoreUnavailable):
                await step()
            await rest(stop, wake, within_s=every_s)

    async def _beat(self) -> None:
        """Say that this learner is at work. It does not wait for `_look`, which takes long with many loops."""
        if await self._data_is_ours():
            await workers.learner_heartbeat(self._redis)
            if time.monotonic() >= self._due:
                self._wake.set()
        elif self._identity is not None:
            log.error("redis lost its data; nothing is learned until a person restarts the learner")

    async def _look(self, stop: asyncio.Event) -> None:
        """Look at what was announced, and at everything when it is time."""
        if not await self._data_is_ours():
            return
        changed, self._changed = self._changed, set()
        try:
            if changed - self._loops.keys():
                changed &= {*self._loops, *await loop_store.listed(self._redis)}
            await self._look_at(sorted(changed), stop)
            if time.monotonic() >= self._due:
                self._due = time.monotonic() + LOOK_S
                await self.follow(stop)
                await loop_store.forget_deleted(self._redis)
        except StoreUnavailable:
            self._due = 0.0
            raise

    async def _evaluate(self, stop: asyncio.Event) -> None:
        if await self._data_is_ours():
            await self._evaluator.step(stop)

    async def _erase(self, stop: asyncio.Event) -> None:
        if await self._data_is_ours():
            await self._eraser.step(stop)

    async def _data_is_ours(self) -> bool:
        """Return whether Redis holds the data that this learner began with."""
        found = await workers.read_identity(self._redis)
        self._identity = self._identity or found
        return found is not None and found == self._identity


async def run(settings: Settings) -> None:
    """Run a learner until SIGTERM or SIGINT."""
    assert settings.redis_url is not None
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    redis = connect(settings.redis_url, name="learner", timeout_s=settings.store_timeout_s + 1, connections=1024)
    try:
        await upgrade(redis, stop)
        await Learner(redis, settings).run(stop)
    finally:
        await redis.aclose()
