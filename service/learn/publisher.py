"""When a policy's checkpoint and its next version are written, and the check before they are."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import Any

from service.learn.trainer import Trainer
from service.records import DeadLetter, PolicyRecord
from service.settings import Settings
from service.store.codec import pack
from service.store.encoders import MOST_OF_A_POLICY
from service.store.policy_store import Lease

CHECKPOINT_S = 1.0  # a policy that only reads along is checkpointed so often
SHARE = 0.05  # of the learner's time that publishing may take


class Publisher:
    """Paces and writes the checkpoints of one policy.

    Attributes:
        record: the policy as it was last written.
        dirty: whether something was read since.
    """

    def __init__(self, lease: Lease, settings: Settings, record: PolicyRecord) -> None:
        self._lease, self._settings, self.record = lease, settings, record
        self._alarm = record.alarms[-1]["number"] if record.alarms else 0  # the newest that is in the loop's stream
        self._letters: dict[str, DeadLetter] = {}  # as they were last written
        self._known: dict[str, Any] = {}  # version -> schema of the encoders that were written down
        self._published: bytes | None = None  # the newest snapshot, to see whether the next one differs
        self._encoder: str | None = None  # of the newest version
        self._cost_s, self._last = 0.0, 0.0
        self.dirty = self._servable = False

    def resume(self, trainer: Trainer) -> None:
        """Take up a policy that was loaded from its checkpoint."""
        self._letters = dict(trainer.letters)
        if self.record.version:
            self._published = pack(trainer.policy.snapshot(), encoder=trainer.swapped)
            self._encoder = trainer.encoder
            self._servable = True

    def touch(self, *, trained: bool) -> None:
        """Note that something was read since the last checkpoint. A batch-trained policy serves once it has trained."""
        self.dirty = True
        if trained:
            self._servable, self._last = True, 0.0

    def due_in(self) -> float:
        """Return the seconds until the next write; 1 when there is nothing to write."""
        if not self.dirty:
            return 1.0
        period = max(self._settings.publish_period_ms / 1000, self._cost_s / SHARE)
        return self._last + period - time.monotonic()

    async def publish(self, trainer: Trainer, *, anew: bool = False) -> bool:
        """Write state, position and alarms, and a new version if what is served would change; False: lease lost.

        Args:
            anew: the log was learned anew, without what was erased from it. All versions of before are deleted.
        """
        state, snapshot, cpu_s = await asyncio.to_thread(_serialise, trainer)
        changed = snapshot != self._published and (self._servable or not trainer.policy.batch_trained)
        new = anew or changed
        record = replace(
            self.record,
            position=trainer.position,
            events=trainer.events,
            set_aside=trainer.set_aside,
            skipped=trainer.skipped,
            apart=trainer.apart,
            erased=self.record.version if anew else self.record.erased,
            alarms=trainer.alarms,
            encoding=trainer.encoding,
            version=self.record.version + new,
        )
        schemas, letters = trainer.schemas, dict(trainer.letters)
        started = time.monotonic()
        done = await self._lease.publish(
            record,
            state=state,
            snapshot=snapshot if new else b"",
            budget=self._settings.snapshot_budget_mb * 2**20,
            new_alarms=[alarm for alarm in trainer.alarms if alarm["number"] > self._alarm],
            letters=letters.values() if letters != self._letters else None,
            encoder=trainer.swapped,
            schemas={version: schema for version, schema in schemas.items() if version not in self._known},
            anew=anew,
            most_encoders=MOST_OF_A_POLICY if trainer.encoder != self._encoder else None,
        )
        if done:
            self.record, self._known, self._letters = record, schemas, letters
            self._encoder = trainer.encoder if new else self._encoder
            self._alarm = trainer.alarms[-1]["number"] if trainer.alarms else 0
            self._published = snapshot if new else self._published
            self._servable = self._servable or anew
            self.dirty = False
            self._last = time.monotonic()
            cost = cpu_s + self._last - started
            self._cost_s = cost if new else max(cost, CHECKPOINT_S * SHARE)
        return done


def _serialise(trainer: Trainer) -> tuple[bytes, bytes, float]:
    """Return state and snapshot as bytes, and the seconds of CPU that this took.

    A snapshot that its own scorer refuses is never published.
    """
    started = time.thread_time()  # a clock on the wall would count what a fit beside it takes
    policy = trainer.policy
    arrays = policy.snapshot()
    type(policy).scorer(arrays, d=policy.d, params=policy.params)
    state, served = pack(trainer.state()), pack(arrays, encoder=trainer.swapped)
    return state, served, time.thread_time() - started
