"""Runs one policy: takes its lease, reads the log from its checkpoint on, learns, publishes.

State and position in the log are checkpointed in one fenced, atomic write. So every event changes every policy exactly
once, whatever crashes: a restart goes on from the checkpoint, and what was learned after it is learned again from the
same entries in the same order.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import structlog
from redis.asyncio import Redis

from service.errors import NotFound, StoreUnavailable
from service.learn.bell import Bell, rest
from service.learn.publisher import Publisher
from service.learn.tail import Tail
from service.learn.trainer import MOST_LETTERS, Poisoned, Trainer
from service.policies import NumericalError
from service.records import START, DeadLetter, Entry, LoopRecord, PolicyRecord, Successor, order
from service.settings import Settings
from service.store import encoders, event_log, item_store, loop_store, policy_store
from service.store.codec import NewerFormat, unpack
from service.store.connection import end
from service.store.keys import Keys
from service.store.policy_store import Lease

LEASE_MS = 5000
RETRY_S, MOST_RETRY_S = 0.3, 30.0
LONGEST_WHY = 300  # characters of a dead letter's reason
GATHER_S = 0.01  # after a read that did not fill a batch: let some more come, rather than a round trip for each event

log = structlog.get_logger()


class LeaseLost(Exception):
    """Another learner writes this policy now, or the policy is gone."""


class Erased(Exception):
    """The policy has learned what was erased from the log since."""


class PolicyRunner:
    """Learns one policy. `step` is one iteration; `run` loops it; `drain` runs it until the log is empty."""

    def __init__(self, redis: Redis, keys: Keys, name: str, settings: Settings, tail: Tail | None = None) -> None:
        self._redis, self._keys, self._name = redis, keys, name
        self._tail = tail or Tail(redis, keys)
        self._lease = Lease(redis, keys, name, ttl_ms=LEASE_MS)
        self._settings = settings
        self._trainer: Trainer
        self._publisher: Publisher
        self._told: dict[str, Any]  # what the service's log knows of encoders
        self._alone_until: str | None = None  # entries are learned one by one up to here: one of them is poison
        self._quiet_to = START  # learning anew after an erasure: nothing is written down before the log's newest
        self._left: tuple[str, str, int] | None = None  # what was written when the lease was let go for want of work

    async def open(self) -> bool:
        """Take the lease and go on from the checkpoint; False while another learner holds it.

        Raises:
            NotFound: the policy or its loop is gone.
            NewerFormat: a newer version wrote the policy or its checkpoint.
            ValueError: the checkpoint cannot be taken up.
        """
        await self._read()
        if not await self._lease.acquire():
            return False
        loop, record = await self._read()  # the last holder's last word
        left, self._left = self._left, None
        if record.position != START and left == _mark(record):  # ours: what it wrote is still in memory
            return True
        self._alone_until = None
        letters = await self._retained(await policy_store.read_letters(self._redis, self._keys, self._name))
        state = await policy_store.read_state(self._redis, self._keys, self._name)
        await self._load(loop, record, letters, state)
        self._publisher = Publisher(self._lease, self._settings, record)
        if state is not None:
            self._publisher.resume(self._trainer)
        return True

    async def _load(
        self, loop: LoopRecord, record: PolicyRecord, letters: Mapping[str, DeadLetter], state: bytes | None
    ) -> None:
        """Make the trainer, with the checkpoint to go on from; None: from the log's start."""
        schemas = await encoders.read_schemas(self._redis, self._keys, record.needs)
        self._trainer = Trainer.of(loop, record, schemas, letters)
        self._quiet_to = START
        if state is None:
            self._trainer.clean_to = await event_log.newest_erasure(self._redis, self._keys)
            stats = await event_log.read_stats(self._redis, self._keys)
            self._trainer.skipped = stats.get("trimmed", 0) + stats.get("erased", 0)
        elif not self._trainer.resume(record, unpack(state)):
            await asyncio.to_thread(self._trainer.note_items, self._log_until(record.position))
        if (catalogue := self._trainer.catalogue) is not None:
            self._trainer.stand_in(await item_store.read_stand_ins(self._redis, self._keys, catalogue))
        self._told = self._trainer.encoding

    async def _read(self) -> tuple[LoopRecord, PolicyRecord]:
        loop = await loop_store.read_loop(self._redis, self._keys.loop)
        if loop.id != self._keys.id:
            raise NotFound(f"the loop {loop.name!r} of then is gone", code="unknown_loop")
        return loop, await policy_store.read_policy(self._redis, self._keys, self._name)

    async def _behind(self) -> bool:
        """Return whether the log holds what the policy has not learned.

        Raises:
            NotFound, NewerFormat: as `open`.
        """
        _, record = await self._read()
        (end,) = await event_log.ends(self._redis, [self._keys])
        return order(end) > order(record.position)

    async def step(self) -> int:
        """Learn from the next entries, publish when it is time; return the number of entries read.

        Raises:
            LeaseLost: what was learned since the checkpoint is for the new holder to learn.
            NewerFormat: a newer version wrote the next entry; all before it was learned.
        """
        wait_ms = max(1, int(1000 * self._publisher.due_in()))
        try:
            entries = await self._tail.wait(self._trainer.position, within_ms=wait_ms)
        except NewerFormat:
            await self._publish()
            raise
        if entries:
            await self._learn(entries)
        if self._publisher.due_in() <= 0:
            await self._publish()
        return len(entries)

    async def drain(self) -> int:
        """Learn all that is in the log now, publish, and return the number of entries read.

        Raises:
            LeaseLost, NewerFormat: as `step`.
        """
        total = 0
        while entries := await self._tail.read(self._trainer.position):
            await self._learn(entries)
            total += len(entries)
        await self._publish()
        return total

    async def _learn(self, entries: Sequence[Entry]) -> None:
        """Learn from the next entries; where the policy raises, all before, and the next time one by one."""
        trained = False
        try:
            for part in self._parts(entries):
                trained |= await self._apply(part)
        except Poisoned as poisoned:
            await self._go_around(poisoned)
        except Erased:
            await self._begin_anew()
        self._publisher.touch(trained=trained)

    def _parts(self, entries: Sequence[Entry]) -> Iterator[Sequence[Entry]]:
        alone = 0
        if self._alone_until is not None:
            alone = sum(order(entry.position) <= order(self._alone_until) for entry in entries)
            if alone < len(entries):
                self._alone_until = None
        yield from ([entry] for entry in entries[:alone])
        yield entries[alone:]

    async def _go_around(self, poisoned: Poisoned) -> None:
        """Set an event aside that made the policy raise. Of several: find out which, from the next step on.

        What the policy holds may be half-changed. So all since the checkpoint is learned once more, without them.

        Raises:
            RuntimeError: too many were set aside: it is not for what they hold that the policy raises.
        """
        first, last = poisoned.positions[0], poisoned.positions[-1]
        letters = await self._retained(self._trainer.letters)
        until = f"({first}"
        if first == last:
            if len(letters) >= MOST_LETTERS:
                raise RuntimeError(f"{MOST_LETTERS} events were set aside; no more are, until the policy is mended")
            until = first
            letters[first] = DeadLetter(first, poisoned.why[:LONGEST_WHY])
            where = {"loop": self._keys.loop, "policy": self._name, "position": first}
            log.error("the policy raised; the event is set aside", why=poisoned.why, at=poisoned.at, **where)
        else:
            self._alone_until = last
        loop, _ = await self._read()
        state = await policy_store.read_state(self._redis, self._keys, self._name)
        await self._load(loop, self._publisher.record, letters, state)
        try:
            while entries := await self._tail.read(self._trainer.position, until=until):
                await self._apply(entries)
        except Erased:
            await self._begin_anew()
        await self._publish()

    async def _begin_anew(self) -> None:
        """Throw away what was learned, and learn the log from its start.

        The checkpoint of before stays until all erasures that the log holds are behind; a crash begins this again.
        """
        letters = await self._retained(self._trainer.letters)
        loop, record = await self._read()
        await self._load(loop, record, letters, None)
        self._quiet_to = self._trainer.clean_to
        log.info("learning the log anew: a user was erased from it", loop=self._keys.loop, policy=self._name)

    async def _retained(self, letters: Mapping[str, DeadLetter]) -> dict[str, DeadLetter]:
        """Return those whose entries the log still holds."""
        held = await event_log.held(self._redis, self._keys, list(letters))
        return {position: letter for position, letter in letters.items() if position in held}

    async def _apply(self, entries: Sequence[Entry]) -> bool:
        """Learn from entries, and do what is due after each; return whether the policy was trained.

        Raises:
            Poisoned: the policy raised; the trainer is of no use any more.
            Erased: nor is it here.
        """
        trained = False
        while entries:
            done = await asyncio.to_thread(self._trainer.apply, entries)
            for letter in done.refused:
                log.error("dead letter", loop=self._keys.loop, position=letter.position, why=letter.why)
            if done.refused:
                await event_log.set_aside(self._redis, self._keys, done.refused)
            if done.erased:
                raise Erased
            for alarm in done.alarms:
                log.warning("the world has changed", loop=self._keys.loop, policy=self._name, **alarm)
            if done.training_due:
                await self._train()
                trained = True
            if done.successor is not None:
                await self._relearn(done.successor)
            self._tell_trial()
            entries = entries[done.read :]
        return trained

    async def _train(self) -> None:
        """Train on all that the log holds up to the trainer's position."""
        history = self._log_until(self._trainer.position)
        started = time.monotonic()
        try:
            rows = await asyncio.to_thread(self._trainer.train, history)
        except NumericalError as error:  # `train` left the weights as they were
            log.error("training failed", loop=self._keys.loop, policy=self._name, why=str(error))
            return
        seconds = round(time.monotonic() - started, 1)
        log.info("trained", loop=self._keys.loop, policy=self._name, rows=rows, seconds=seconds)

    async def _relearn(self, successor: Successor) -> None:
        """Learn the log up to the trainer's position through a successor's encoder."""
        history = self._log_until(self._trainer.position, newest=self._trainer.memory)
        started = time.monotonic()
        stand_ins = await item_store.read_stand_ins(self._redis, self._keys, successor.catalogue)
        tried = await asyncio.to_thread(self._trainer.relearn, history, stand_ins)
        log.info(
            "a successor's encoder is on trial" if tried and tried["trial"] else "a successor's encoder was read",
            loop=self._keys.loop,
            policy=self._name,
            encoder=successor.encoder,
            fitted=successor.events,
            why=successor.why,
            seconds=round(time.monotonic() - started, 1),
        )

    def _tell_trial(self) -> None:
        """Log how a trial ended, once."""
        now, before = self._trainer.encoding, self._told
        self._told = now
        where = {"loop": self._keys.loop, "policy": self._name}
        if now["swaps"] > before["swaps"]:
            log.info(
                "the encoder was swapped", **where, before=before["encoder"], encoder=now["encoder"], **now["since"]
            )
        elif before["trial"] and (not now["trial"] or now["trial"]["position"] != before["trial"]["position"]):
            log.info("a trial was given up", **where, **before["trial"])

    def _log_until(self, position: str, *, newest: int | None = None) -> Iterator[Sequence[Entry]]:
        """Return the log up to a position, or its newest events, for a thread to read."""
        loop = asyncio.get_running_loop()
        return event_log.scan_in_thread(self._redis, self._keys, until=position, loop=loop, newest=newest)

    async def _publish(self) -> None:
        if order(self._trainer.position) < order(self._quiet_to):
            return
        if not await self._publisher.publish(self._trainer, anew=self._quiet_to != START):
            raise LeaseLost(self._name)
        self._quiet_to = START

    async def run(self, stop: asyncio.Event, bell: Bell) -> None:
        """Learn until `stop`, or until the policy is gone; at the end publish what was learned and let go.

        While its loop is not used and there is nothing to learn it holds no lease, and sleeps until the bell rings.
        """
        pause = RETRY_S
        where = {"loop": self._keys.loop, "policy": self._name}
        while not stop.is_set():
            rung = bell.next
            try:
                if not bell.awake and not await self._behind():
                    await rest(stop, rung)
                    continue
                if await self.open():
                    pause = RETRY_S
                    await self._hold(stop, bell)
                    continue
            except NotFound:
                return
            except LeaseLost:
                if await self._gone():
                    return
                log.warning("lease lost", **where)
            except StoreUnavailable:
                log.warning("redis does not answer; going on from the checkpoint later", **where)
            except NewerFormat as error:
                log.error("this policy is not learned any further", why=str(error), **where)
                pause = MOST_RETRY_S
            except Exception:
                log.exception("learning failed; going on from the checkpoint", **where)
                pause = min(2 * pause, MOST_RETRY_S)  # what cannot be opened (an extra is missing) will not be soon
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), pause)

    async def _gone(self) -> bool:
        """Return whether the policy was deleted: then nobody needs to know that its lease is lost."""
        try:
            await self._read()
        except NotFound:
            return True
        except Exception:
            return False
        return False

    async def _hold(self, stop: asyncio.Event, bell: Bell) -> None:
        """Learn for as long as the lease is ours and the loop is used."""
        keeper = asyncio.create_task(self._lease.keep())  # training may take longer than a lease lasts
        read = 1
        try:
            while not stop.is_set() and (read or bell.awake or self._publisher.dirty):
                if keeper.done():  # an idle policy writes nothing, and would not learn that its lease, or it, is gone
                    raise LeaseLost(self._name)
                read = await self.step()
                if 0 < read < 1000:
                    await asyncio.sleep(GATHER_S)
            if self._publisher.dirty:
                await self._publish()
            await self._lease.release()
            self._left = _mark(self._publisher.record)
        finally:
            await end(keeper)  # one that went on would hold the lease against its own policy


def _mark(record: PolicyRecord) -> tuple[str, str, int]:
    """Return what tells one checkpoint of a policy from another."""
    return record.id, record.position, record.version
