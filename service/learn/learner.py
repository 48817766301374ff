"""The learner: reads the event log, updates every policy, publishes snapshots.

Each policy is learned by one `PolicyLearner`, at its own pace, under a lease. State and position in the log are
checkpointed in one fenced, atomic write, so whatever crashes, every event changes every policy exactly once: a restart
goes on from the checkpoint, and what was learned after it is learned again from the same entries in the same order.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Sequence
from contextlib import suppress

import structlog
from redis.asyncio import Redis

from service.errors import NotFound, StoreUnavailable
from service.learn.publisher import Publisher
from service.learn.student import Student
from service.learn.sweeper import Sweeper
from service.settings import Settings
from service.store import log as event_log
from service.store import loops, policies
from service.store.connection import connect
from service.store.policies import Lease

LEASE_MS = 5000
RETRY_S, MOST_RETRY_S = 0.3, 30.0
GATHER_S = 0.01  # after a read that did not fill a batch: let some more come, rather than a round trip for each event

log = structlog.get_logger()


class LeaseLost(Exception):
    """Another learner writes this policy now."""


class PolicyLearner:
    """Learns one policy. `step` is one iteration; `run` loops it; `drain` runs it until the log is empty."""

    def __init__(self, redis: Redis, loop: str, name: str, settings: Settings) -> None:
        self._redis, self._loop, self._name = redis, loop, name
        self._lease = Lease(redis, loop, name, ttl_ms=LEASE_MS)
        self._settings = settings
        self._student: Student
        self._publisher: Publisher

    async def open(self) -> bool:
        """Take the lease and go on from the checkpoint; False while another learner holds it."""
        await policies.read_policy(self._redis, self._loop, self._name)  # raises NotFound where there is none
        if not await self._lease.acquire():
            return False
        record = await policies.read_policy(self._redis, self._loop, self._name)  # the last holder's last word
        self._student = Student(self._redis, await loops.read_loop(self._redis, self._loop), record)
        self._publisher = Publisher(self._lease, self._settings, record)
        state = await policies.read_state(self._redis, self._loop, self._name)
        if state is not None:
            self._student.resume(record, state)
            self._publisher.resume(self._student)
        return True

    async def step(self) -> int:
        """Learn from the next entries, publish when it is time; the number of entries read.

        Raises:
            LeaseLost: what was learned since the checkpoint is for the new holder to learn.
        """
        wait_ms = max(1, int(1000 * self._publisher.due_in()))
        entries = await event_log.wait(self._redis, self._loop, self._student.position, within_ms=wait_ms)
        if entries:
            await self._learn(entries)
        if self._publisher.due_in() <= 0 and not await self._publish():
            raise LeaseLost(self._name)
        return len(entries)

    async def drain(self) -> int:
        """Learn all that is in the log now, publish, and return the number of entries read."""
        total = 0
        while entries := await event_log.read(self._redis, self._loop, self._student.position):
            await self._learn(entries)
            total += len(entries)
        if not await self._publish():
            raise LeaseLost(self._name)
        return total

    async def _learn(self, entries: Sequence[event_log.Entry]) -> None:
        trained = await self._student.learn(entries)
        self._publisher.touch(trained=trained)

    async def _publish(self) -> bool:
        return await self._publisher.publish(self._student)

    async def run(self, stop: asyncio.Event) -> None:
        """Learn until `stop`, or until the policy is gone; at the end publish what was learned and let go."""
        pause = RETRY_S
        while not stop.is_set():
            try:
                if await self.open():
                    pause = RETRY_S
                    await self._hold(stop)
            except NotFound:
                return
            except LeaseLost:
                log.warning("lease lost", loop=self._loop, policy=self._name)
            except StoreUnavailable:
                log.warning("redis does not answer; going on from the checkpoint later", policy=self._name)
            except Exception:
                log.exception("learning failed; going on from the checkpoint", loop=self._loop, policy=self._name)
                pause = min(2 * pause, MOST_RETRY_S)  # what cannot be opened (an extra is missing) will not be soon
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), pause)

    async def _hold(self, stop: asyncio.Event) -> None:
        """Learn for as long as the lease is ours."""
        keeper = asyncio.create_task(self._keep_lease())
        try:
            while not stop.is_set():
                if 0 < await self.step() < 1000:
                    await asyncio.sleep(GATHER_S)
            if await self._publish():
                await self._lease.release()
        finally:
            keeper.cancel()

    async def _keep_lease(self) -> None:
        """Training may take longer than a lease lasts."""
        with suppress(StoreUnavailable):  # then the next step fails too
            while await self._lease.renew():
                await asyncio.sleep(LEASE_MS / 4000)


class Learner:
    """Every policy of every loop, and a sweeper for each loop."""

    def __init__(self, redis: Redis, settings: Settings) -> None:
        self._redis, self._settings = redis, settings
        self._tasks: dict[tuple[str, ...], asyncio.Task[None]] = {}

    async def follow(self, stop: asyncio.Event) -> None:
        """Start a task for whatever is new; tasks of what is gone end by themselves."""
        for loop in await loops.loop_names(self._redis):
            if self._free((loop,)):
                self._tasks[(loop,)] = asyncio.create_task(Sweeper(self._redis, loop).run(stop))
            for name in await policies.policy_names(self._redis, loop):
                if self._free((loop, name)):
                    learner = PolicyLearner(self._redis, loop, name, self._settings)
                    self._tasks[loop, name] = asyncio.create_task(learner.run(stop))

    def _free(self, key: tuple[str, ...]) -> bool:
        return key not in self._tasks or self._tasks[key].done()

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop`: then every policy is checkpointed and every lease let go."""
        identity = None
        while not stop.is_set():
            try:
                identity = identity or await loops.read_identity(self._redis)
                if identity is not None and identity == await loops.read_identity(self._redis):
                    await policies.learner_heartbeat(self._redis)
                    await self.follow(stop)
                elif identity is not None:
                    log.error("redis lost its data; nothing is learned until a person restarts the learner")
            except StoreUnavailable:
                pass
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), 0.5)
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)


async def run(settings: Settings) -> None:
    """The process `rebound learn`: until SIGTERM or SIGINT."""
    assert settings.redis_url is not None
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    redis = connect(settings.redis_url, name="learner", timeout_s=settings.store_timeout_s + 1, connections=1024)
    try:
        await Learner(redis, settings).run(stop)
    finally:
        await redis.aclose()


async def check(url: str) -> bool:
    """Whether a learner is at work on this Redis."""
    redis = connect(url, name="check", timeout_s=3)
    try:
        return await policies.learner_alive(redis)
    except StoreUnavailable:
        return False
    finally:
        await redis.aclose()
