"""Applies entries of the log to a policy, in order: the one place where a policy learns.

The learner, `rebound audit`, the benchmarks and the tests all use it. It is pure: it reads no log, no clock and no
Redis. What it cannot learn it hands back, and where a policy is due to train it stops and says so, because a training
needs the whole log before it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from service.learn.change.drift import Drift
from service.policies import KINDS, Arrays, Batch, ItemIndex, NumericalError, Policy
from service.records import START, Entry, Event, LoopRecord, PolicyRecord, Training, Unreadable

ALARMS_KEPT = 100  # in a policy's record; the loop's stream of alarms holds more
OWN = "trainer."  # begins the names of the arrays that are the trainer's own
CHECKS = 10  # times in a retention's worth of events at which unseen items are looked for
LARGEST = 1e6  # of a feature and of a reward's share of the range: an encoder writes columns in [-1, 1]


@dataclass(slots=True)
class Applied:
    """What came of some entries."""

    read: int  # entries that were applied: all, or up to one after which a training is due
    training_due: bool = False  # call `train` with the log up to `position`, then apply the rest
    refused: list[Unreadable] = field(default_factory=list)  # for the dead letters
    alarms: list[Mapping[str, Any]] = field(default_factory=list)  # changes of the world that were noticed


class Trainer:
    """One policy, and its place in the log: `position`, and `events` learned up to there.

    Args:
        record: the policy, as it was made; it has learned nothing yet.
        d: columns of a row.
        reward_range: of the loop; policies see a reward as a share of it.
    """

    def __init__(self, record: PolicyRecord, *, d: int, reward_range: tuple[float, float]) -> None:
        if record.kind not in KINDS:
            raise ValueError(f"there is no kind {record.kind!r} here: install the package that brought it, and restart")
        kind = KINDS[record.kind]
        self.policy: Policy[Any] = kind(d, kind.Params.model_validate(record.params), seed=record.seed)
        self.position, self.events = START, 0
        self.alarms: list[Mapping[str, Any]] = []  # the newest ALARMS_KEPT, oldest first
        self._drift = Drift(self.policy)
        self._record, self._d, self._reward_range, self._retention = record, d, reward_range, record.retention
        self._learned = 0  # events that changed the policy: those in `events` but for the refused
        self._last_seen: dict[str, int] = {}  # item -> `_learned` when it was last named; the longest unseen first

    @classmethod
    def of(cls, loop: LoopRecord, record: PolicyRecord) -> Trainer:
        """Make the trainer of a loop's policy; it has learned nothing yet."""
        return cls(record, d=loop.d, reward_range=loop.settings.reward_range)

    def resume(self, record: PolicyRecord, state: Arrays) -> bool:
        """Go on from a checkpoint.

        Returns:
            Whether the checkpoint says which items were seen. That of version 0.1 does not: see `note_items`.

        Raises:
            ValueError: the state was written by another version of this policy's code.
        """
        try:
            self._drift.load({name: array for name, array in state.items() if not name.startswith(OWN)})
        except KeyError as error:
            raise ValueError(
                f"the checkpoint has no {error}: another version of Rebound wrote it. Make the policy again under"
                " another name; it learns the retained log, and the old one serves on meanwhile"
            ) from error
        self.position, self.events, self.alarms = record.position, record.events, list(record.alarms)
        if OWN + "items" not in state:
            return False
        items = ItemIndex.from_array(state[OWN + "items"])
        self._last_seen = dict(zip(items, state[OWN + "last_seen"].tolist(), strict=True))
        self._learned = int(state[OWN + "learned"][0])
        return True

    def note_items(self, history: Iterable[Sequence[Entry]]) -> None:
        """Note which items the log up to the position names, for a checkpoint that does not say."""
        for entries in history:
            for entry in entries:
                if isinstance(entry, Event) and self._wrong(entry) is None:
                    self._note(entry)

    def state(self) -> Arrays:
        """Return all that learning needs to go on, bit for bit."""
        return {
            **self._drift.state(),
            OWN + "items": ItemIndex(self._last_seen).to_array(),
            OWN + "last_seen": np.array(list(self._last_seen.values()), dtype=np.int64),
            OWN + "learned": np.array([self._learned], dtype=np.int64),
        }

    def apply(self, entries: Sequence[Entry]) -> Applied:
        """Learn from entries that follow the position, up to the first after which a training is due."""
        done = Applied(read=0)
        run: list[Event] = []
        for entry in entries:
            done.read += 1
            if isinstance(entry, Event) and (why := self._wrong(entry)) is not None:
                entry = Unreadable(entry.position, why)
            if isinstance(entry, Event):
                run.append(entry)
                done.training_due = self.policy.train_due(self.events + len(run))
            elif isinstance(entry, Unreadable):
                self._learn_all(run, done)  # in order, or an alarm's number of events would depend on the batches
                run = []
                self._refuse(entry, done)
            else:
                done.training_due = self._asked_to_train(entry)
            if done.training_due:
                break
        self._learn_all(run, done)
        if done.read:
            self.position = entries[done.read - 1].position
        return done

    def _wrong(self, event: Event) -> str | None:
        """Return why an event cannot be learned, None if it can."""
        if event.x.shape != (self._d,):
            return f"row of shape {event.x.shape}, expected ({self._d},)"
        # Written so that NaN is refused as well.
        if not np.abs(event.x).max(initial=0.0) <= LARGEST:
            return "a feature is not finite, or larger than an encoder writes"
        low, high = self._reward_range
        if not abs((event.reward - low) / (high - low)) <= LARGEST:
            return "the reward is not finite, or far outside the loop's range"
        return None

    def _asked_to_train(self, entry: Entry) -> bool:
        if not (isinstance(entry, Training) and self.policy.batch_trained and entry.policy == self._record.name):
            return False
        return entry.policy_id in (None, self._record.id)

    def _refuse(self, letter: Unreadable, done: Applied) -> None:
        """Hand an entry back. It counts as learned: that number stays comparable with the number in the log."""
        done.refused.append(letter)
        self.events += 1

    def _learn_all(self, events: Sequence[Event], done: Applied) -> None:
        for part in self._parts(events):
            try:
                self._learn(part, done)
            except NumericalError as error:  # nothing was changed
                if len(part) == 1:
                    self._refuse(Unreadable(part[0].position, str(error)), done)
                else:
                    for event in part:
                        self._learn_all([event], done)

    def _parts(self, events: Sequence[Event]) -> Iterator[Sequence[Event]]:
        """Cut events where something is to be done after one of them, so that batches do not matter."""
        step = self._retention // CHECKS
        for rows in self._drift.parts(len(events)):
            part = events[rows]
            while part:
                size = step - self._learned % step
                yield part[:size]
                part = part[size:]

    def _learn(self, part: Sequence[Event], done: Applied) -> None:
        last = part[-1]
        positions = [event.slate_position for event in part]
        reaction = self._drift.update(batch_of(part, self._reward_range), last.time, positions)
        self.events += len(part)
        for event in part:
            self._note(event)
        if reaction is not None:
            number = self.alarms[-1]["number"] + 1 if self.alarms else 1
            alarm = {
                "number": number,
                "at": last.time,
                "events": self.events,
                "position": last.position,
                "reaction": reaction,
            }
            self.alarms = [*self.alarms, alarm][-ALARMS_KEPT:]
            done.alarms.append(alarm)
        if self._learned % (self._retention // CHECKS) == 0:
            self._forget_unseen()

    def _note(self, event: Event) -> None:
        self._learned += 1
        self._last_seen.pop(event.item, None)
        self._last_seen[event.item] = self._learned

    def _forget_unseen(self) -> None:
        """Let the policy forget the items that no retained event names."""
        gone = []
        for item, seen in self._last_seen.items():
            if seen > self._learned - self._retention:
                break
            gone.append(item)
        for item in gone:
            del self._last_seen[item]
        if gone:
            self._drift.forget_items(gone)

    def train(self, history: Iterable[Sequence[Entry]]) -> int:
        """Train on the log up to the position, given in order and in parts; return the number of events.

        Raises:
            NumericalError: the policy is as it was.
        """
        batches = []
        for entries in history:
            events = [entry for entry in entries if isinstance(entry, Event) and self._wrong(entry) is None]
            if events:
                batches.append(batch_of(events, self._reward_range))
        self.policy.train(batches)
        return sum(len(batch.item) for batch in batches)


def batch_of(events: Sequence[Event], reward_range: tuple[float, float]) -> Batch:
    """Return B events as arrays, in log order; of each reward, the share of the loop's range that it reaches."""
    low, high = reward_range
    reward = np.array([event.reward for event in events], dtype=np.float64)
    return Batch(
        x=np.stack([event.x for event in events]),
        item=[event.item for event in events],
        user=[event.user for event in events],
        reward=(reward - low) / (high - low),
        propensity=np.array([np.nan if event.propensity is None else event.propensity for event in events]),
    )
