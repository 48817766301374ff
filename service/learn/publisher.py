"""When a policy's checkpoint and its next version are written, and the check before they are."""

from __future__ import annotations

import asyncio
import time

import structlog

from service.learn.student import Student
from service.settings import Settings
from service.store.codec import pack
from service.store.policies import Lease, PolicyRecord

CHECKPOINT_S = 1.0  # a policy that only reads along is checkpointed so often
SHARE = 0.05  # of the learner's time that publishing may take

log = structlog.get_logger()


class Publisher:
    """Paces and writes the checkpoints of one policy."""

    def __init__(self, lease: Lease, settings: Settings, record: PolicyRecord) -> None:
        self._lease, self._settings = lease, settings
        self._version = record.version
        self._alarm = record.alarms[-1]["number"] if record.alarms else 0  # the newest that is in the log
        self._published: bytes | None = None  # the newest snapshot, to see whether the next one differs
        self._cost_s, self._last = 0.0, 0.0
        self._dirty = self._servable = False

    def resume(self, student: Student) -> None:
        """The student was loaded from its checkpoint."""
        if self._version:
            self._published = pack(student.policy.snapshot())
            self._servable = True

    def touch(self, *, trained: bool) -> None:
        """Something was read since the last checkpoint; a batch-trained policy that trained has something to serve."""
        self._dirty = True
        if trained:
            self._servable, self._last = True, 0.0

    def due_in(self) -> float:
        """Seconds until the next write; 1 when there is nothing to write."""
        if not self._dirty:
            return 1.0
        period = max(self._settings.publish_period_ms / 1000, self._cost_s / SHARE)
        return self._last + period - time.monotonic()

    async def publish(self, student: Student) -> bool:
        """Write state, position and alarms, and a new version if what is served would change; False: lease lost."""
        started = time.monotonic()
        state, snapshot = await asyncio.to_thread(self._serialise, student)
        new = snapshot != self._published and (self._servable or not student.policy.batch_trained)
        version = self._version + new
        done = await self._lease.publish(
            position=student.position,
            events=student.events,
            state=state,
            version=version,
            snapshot=snapshot if new else b"",
            budget=self._settings.snapshot_budget_mb * 2**20,
            alarms=student.alarms,
            alarms_logged=self._alarm,
        )
        if done:
            self._alarm = student.alarms[-1]["number"] if student.alarms else 0
            self._version = version
            self._published = snapshot if new else self._published
            self._dirty = False
            self._last = time.monotonic()
            cost = self._last - started
            self._cost_s = cost if new else max(cost, CHECKPOINT_S * SHARE)
        return done

    def _serialise(self, student: Student) -> tuple[bytes, bytes]:
        """State and snapshot as bytes; a snapshot that its own scorer refuses is never published."""
        policy = student.policy
        arrays = policy.snapshot()
        type(policy).scorer(arrays, d=policy.d, params=policy.params)
        return pack(student.state()), pack(arrays)
