"""The learner: reads the event log, updates every policy, publishes snapshots.

Each policy is learned by one `PolicyLearner`, at its own pace, under a lease. State and position in the log are
checkpointed in one fenced, atomic write, so whatever crashes, every event changes every policy exactly once: a restart
goes on from the checkpoint, and what was learned after it is learned again from the same entries in the same order.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress

import numpy as np
import structlog
from redis.asyncio import Redis

from service.errors import NotFound, StoreUnavailable
from service.events import Event, UndecodableEvent, decode
from service.learn.publisher import Publisher
from service.learn.sweeper import Sweeper
from service.policies import KINDS, Batch, NumericalError, Policy
from service.settings import Settings
from service.store import log as event_log
from service.store import loops, policies
from service.store.connection import connect
from service.store.policies import Lease

LEASE_MS = 5000
GATHER_S = 0.01  # after a read that did not fill a batch: let some more come, rather than a round trip for each event

log = structlog.get_logger()


class LeaseLost(Exception):
    """Another learner writes this policy now."""


def batch_of(events: Sequence[Event]) -> Batch:
    """B events as arrays, in log order."""
    return Batch(
        x=np.stack([event.x for event in events]),
        item=[event.item for event in events],
        user=[event.user for event in events],
        reward=np.array([event.reward for event in events], dtype=np.float64),
        propensity=np.array([np.nan if event.propensity is None else event.propensity for event in events]),
    )


def new_policy(record: policies.PolicyRecord, d: int) -> Policy:
    """A policy that has learned nothing, from its record."""
    kind = KINDS[record.kind]
    return kind(d, kind.Params.model_validate(record.params), seed=record.seed)


class PolicyLearner:
    """Learns one policy. `step` is one iteration; `run` loops it; `drain` runs it until the log is empty."""

    def __init__(self, redis: Redis, loop: str, name: str, settings: Settings) -> None:
        self._redis, self._loop, self._name = redis, loop, name
        self._lease = Lease(redis, loop, name, ttl_ms=LEASE_MS)
        self._settings = settings
        self._policy: Policy
        self._publisher: Publisher
        self._d = 0
        self.position, self.events = event_log.START, 0

    async def open(self) -> bool:
        """Take the lease and go on from the checkpoint; False while another learner holds it."""
        record = await policies.read_policy(self._redis, self._loop, self._name)
        self._d = (await loops.read_loop(self._redis, self._loop)).d
        if not await self._lease.acquire():
            return False
        record = await policies.read_policy(self._redis, self._loop, self._name)  # the last holder's last word
        self._policy = new_policy(record, self._d)
        self._publisher = Publisher(self._lease, self._settings, record)
        state = await self._lease.read_state()
        if state is not None:
            self._publisher.restore(self._policy, state)
        self.position, self.events = record.position, record.events
        return True

    async def step(self) -> int:
        """Learn from the next entries, publish when it is time; the number of entries read.

        Raises:
            LeaseLost: what was learned since the checkpoint is for the new holder to learn.
        """
        wait_ms = max(1, int(1000 * self._publisher.due_in()))
        entries = await event_log.wait(self._redis, self._loop, self.position, within_ms=wait_ms)
        if entries:
            await self._learn(entries)
        if self._publisher.due_in() <= 0 and not await self._publish():
            raise LeaseLost(self._name)
        return len(entries)

    async def drain(self) -> int:
        """Learn all that is in the log now, publish, and return the number of entries read."""
        total = 0
        while entries := await event_log.read(self._redis, self._loop, self.position):
            await self._learn(entries)
            total += len(entries)
        if not await self._publish():
            raise LeaseLost(self._name)
        return total

    async def _publish(self) -> bool:
        return await self._publisher.publish(self._policy, position=self.position, events=self.events)

    async def _learn(self, entries: Sequence[event_log.Entry]) -> None:
        run: list[Event] = []
        for position, fields in entries:
            try:
                entry = decode(position, fields, self._d)
            except UndecodableEvent as error:
                log.error("dead letter", loop=self._loop, position=position, why=str(error))
                await event_log.dead_letter(self._redis, self._loop, self._name, position, str(error))
                self.events += 1  # it counts as read: `events learned` stays comparable with `events in the log`
                continue
            if isinstance(entry, Event):
                run.append(entry)
            elif entry.train == self._name:
                await self._update(run)
                run = []
                await self._train(until=position)
        await self._update(run)
        self.position = entries[-1][0]
        self._publisher.touch()

    async def _update(self, events: Sequence[Event]) -> None:
        if not events:
            return
        try:
            await asyncio.to_thread(self._policy.update, batch_of(events))
        except NumericalError as error:
            if len(events) > 1:  # find the one; `update` left the state as it was
                for event in events:
                    await self._update([event])
                return
            log.error("dead letter", loop=self._loop, position=events[0].position, why=str(error))
            await event_log.dead_letter(self._redis, self._loop, self._name, events[0].position, str(error))
        self.events += len(events)

    async def _train(self, *, until: str) -> None:
        """Train on all that stands before `until`."""
        history: list[Batch] = []
        async for entries in event_log.scan(self._redis, self._loop, until=until):
            events = list(_events(entries, self._d))
            if events:
                history.append(batch_of(events))
        started = time.monotonic()
        await asyncio.to_thread(self._policy.train, history)
        self._publisher.trained()
        rows = sum(len(batch.item) for batch in history)
        log.info("trained", loop=self._loop, policy=self._name, rows=rows, seconds=round(time.monotonic() - started, 1))

    async def run(self) -> None:
        """Learn until cancelled or the policy is gone; on cancellation publish what was learned and let go."""
        while True:
            try:
                while not await self.open():
                    await asyncio.sleep(0.25)
                await self._hold()
            except NotFound:
                return
            except LeaseLost:
                log.warning("lease lost", loop=self._loop, policy=self._name)
            except StoreUnavailable:
                log.warning("redis does not answer; going on from the checkpoint later", policy=self._name)
            except Exception:
                log.exception("learning failed; going on from the checkpoint", loop=self._loop, policy=self._name)
            await asyncio.sleep(0.5)

    async def _hold(self) -> None:
        """Learn for as long as the lease is ours."""
        keeper = asyncio.create_task(self._keep_lease())
        try:
            while True:
                if 0 < await self.step() < 1000:
                    await asyncio.sleep(GATHER_S)
        except asyncio.CancelledError:
            with suppress(StoreUnavailable):
                await self._publish()
                await self._lease.release()
            raise
        finally:
            keeper.cancel()
            await asyncio.gather(keeper, return_exceptions=True)

    async def _keep_lease(self) -> None:
        """Training may take longer than a lease lasts."""
        while await self._lease.renew():
            await asyncio.sleep(LEASE_MS / 4000)


def _events(entries: Sequence[event_log.Entry], d: int) -> Iterator[Event]:
    for position, fields in entries:
        with suppress(UndecodableEvent):
            entry = decode(position, fields, d)
            if isinstance(entry, Event):
                yield entry


class Learner:
    """Every policy of every loop, and a sweeper for each loop."""

    def __init__(self, redis: Redis, settings: Settings) -> None:
        self._redis, self._settings = redis, settings
        self._tasks: dict[tuple[str, ...], asyncio.Task[None]] = {}

    async def follow(self) -> None:
        """Start a task for whatever is new; tasks of what is gone end by themselves."""
        for loop in await loops.loop_names(self._redis):
            if self._free((loop,)):
                self._tasks[(loop,)] = asyncio.create_task(Sweeper(self._redis, loop).run())
            for name in await policies.policy_names(self._redis, loop):
                if self._free((loop, name)):
                    learner = PolicyLearner(self._redis, loop, name, self._settings)
                    self._tasks[loop, name] = asyncio.create_task(learner.run())

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
                    await self.follow()
                elif identity is not None:
                    log.error("redis lost its data; nothing is learned until a person restarts the learner")
            except StoreUnavailable:
                pass
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), 0.5)
        for task in self._tasks.values():
            task.cancel()
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
