"""Applies entries of the log to a policy, in order: the one place where a policy learns.

The learner, `rebound audit`, the benchmarks and the tests all use it. It is pure: it reads no log, no clock and no
Redis. What it cannot learn it hands back. Where a policy is due to train, or to learn the log again through a
successor's encoder, it stops and says so, because that needs the log before it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from traceback import extract_tb
from typing import Any

import numpy as np

from service.learn.challenger import Challenger
from service.learn.change.drift import Drift, named, prefixed
from service.learn.rows import NO_ITEMS, Rows
from service.policies import KINDS, Arrays, Batch, ItemIndex, NumericalError, Policy, new_policy
from service.records import (
    START,
    DeadLetter,
    Entry,
    Erasure,
    Event,
    Features,
    LoopRecord,
    PolicyRecord,
    Retry,
    Successor,
    Training,
    Unreadable,
    order,
)
from service.represent.stored import AnyEncoder

ALARMS_KEPT = 100  # in a policy's record; the loop's stream of alarms holds more
MEMORY = 12_000  # the newest events that are learned again through a successor's encoder
OWN = "trainer."  # begins the names of the arrays that are the trainer's own
ENCODING, CHALLENGER = OWN + "encoding", OWN + "challenger."
MOST_LETTERS = 1000  # dead letters that are kept of a policy
CHECKS = 10  # times in a retention's worth of events at which unseen items are looked for
LARGEST = 1e6  # of a feature and of a reward's share of the range: an encoder writes columns in [-1, 1]


@dataclass(slots=True)
class Applied:
    """What came of some entries."""

    read: int  # entries that were applied: all, or up to one after which a training is due
    training_due: bool = False  # call `train` with the log up to `position`, then apply the rest
    erased: bool = False  # the policy has learned what was erased: throw it away, and learn the log from its start
    successor: Successor | None = None  # call `relearn` with the log up to `position`, then apply the rest
    refused: list[Unreadable] = field(default_factory=list)  # for the dead letters
    alarms: list[Mapping[str, Any]] = field(default_factory=list)  # changes of the world that were noticed


class Poisoned(Exception):
    """The policy raised when it learned events; it may have learned them by half, so the trainer is to be thrown away.

    Attributes:
        positions: of these events; any of them may be the cause.
        why: what it raised.
        at: the line of code.
    """

    def __init__(self, positions: Sequence[str], error: Exception) -> None:
        super().__init__(positions)
        self.positions = positions
        self.why = f"{type(error).__name__}: {error}"
        frame = extract_tb(error.__traceback__)[-1]
        self.at = f"{frame.filename}:{frame.lineno}"


class Trainer:
    """One policy, and its place in the log: `position`, and `events` learned up to there.

    `set_aside` of these events it could not learn. `letters` says which, up to MOST_LETTERS. What stands there is left
    out whenever the log is learned again, even where it could be learned by now. `apart` of them it did not learn
    because an experiment keeps them for another policy.

    Args:
        record: the policy, as it was made; it has learned nothing yet.
        d: columns of a row of the loop's first encoder.
        reward_range: of the loop; policies see a reward as a share of it.
        encoder, schema: the version of the loop's first encoder, and its schema; needed where the log has successors.
        schemas: version -> schema of other encoders: of the one that the policy began with, if that is not the first.
        letters: position -> dead letter of the policy.

    Attributes:
        clean_to: position of an erasure. What it and those before it erased was gone when this trainer began to learn.
        skipped: events that the log no longer held when it began.

    Raises:
        ValueError: there is no such kind, or no schema of the encoder that the policy began with.
    """

    def __init__(
        self,
        record: PolicyRecord,
        *,
        d: int,
        reward_range: tuple[float, float],
        encoder: str = "",
        schema: Mapping[str, Any] | None = None,
        schemas: Mapping[str, Mapping[str, Any]] | None = None,
        letters: Mapping[str, DeadLetter] | None = None,
    ) -> None:
        if record.kind not in KINDS:
            raise ValueError(f"there is no kind {record.kind!r} here: install the package that brought it, and restart")
        self._first = Rows(encoder, native=encoder, d=d, kind=record.kind, schema=schema)
        self._rows = self._first
        if record.begun is not None and record.begun["encoder"] != encoder:
            version = record.begun["encoder"]
            if version not in (schemas or {}):
                raise ValueError(f"there is no schema of encoder {version!r}, which the policy began with")
            self._rows = Rows.through(version, (schemas or {})[version], native=encoder, kind=record.kind)
        self._after = START if record.begun is None else record.begun["position"]  # of successors
        self.catalogue: int | None = None if record.begun is None else record.begun["catalogue"]
        self._swaps: int = 0
        self._since: dict[str, Any] | None = None  # at which event the policy took up its encoder
        self._challenger: Challenger | None = None
        self._successor: Successor | None = None  # that `relearn` is due for
        self.position, self.events, self.set_aside, self.skipped, self.apart = START, 0, 0, 0, 0
        # Position -> the slate positions of the events that were kept from this policy right before the one there.
        self._before: dict[str, list[int | None]] = {}
        self.clean_to = START
        self.letters = dict(letters or {})
        self.alarms: list[Mapping[str, Any]] = []  # the newest ALARMS_KEPT, oldest first
        self._record, self._reward_range, self._retention = record, reward_range, record.retention
        self._drift = Drift(self._new_policy(self._rows))
        self._learned = 0  # events that changed the policy: those in `events` but for the refused
        self._last_seen: dict[str, int] = {}  # item -> `_learned` when it was last named; the longest unseen first

    @classmethod
    def of(
        cls,
        loop: LoopRecord,
        record: PolicyRecord,
        schemas: Mapping[str, Mapping[str, Any]] | None = None,
        letters: Mapping[str, DeadLetter] | None = None,
    ) -> Trainer:
        """Make the trainer of a loop's policy; it has learned nothing yet.

        Args:
            schemas: version -> schema of the loop's encoders but the first.
            letters: position -> dead letter of the policy.

        Raises:
            ValueError: see the class.
        """
        return cls(
            record,
            d=loop.d,
            reward_range=loop.settings.reward_range,
            encoder=loop.encoder,
            schema=loop.schema,
            schemas=schemas,
            letters=letters,
        )

    def _new_policy(self, rows: Rows) -> Policy[Any]:
        kind, seed = self._record.kind, self._record.seed
        params = KINDS[kind].Params.model_validate(self._record.params)
        return new_policy(kind, rows.d, rows.layout, params, seed=seed)

    @property
    def policy(self) -> Policy[Any]:
        """The policy that serves."""
        return self._drift.policy

    @property
    def encoder(self) -> str:
        """Version of the encoder that the policy learns through."""
        return self._rows.version

    @property
    def current_encoder(self) -> AnyEncoder:
        """The encoder that the policy learns through."""
        return self._rows.encoder

    @property
    def swapped(self) -> str | None:
        """Version of that encoder, None if it is the loop's first."""
        return None if self._rows is self._first else self._rows.version

    @property
    def memory(self) -> int | None:
        """How many events `relearn` wants, the newest; None: all. One that trains in batches trains on all."""
        return None if self.policy.batch_trained else MEMORY

    @property
    def encoding(self) -> dict[str, Any]:
        """Say through which encoder the policy learns, since when, and how a trial stands; as JSON."""
        return {
            "encoder": self._rows.version,
            "d": self._rows.d,
            "swaps": self._swaps,
            "since": self._since,
            "trial": None if self._challenger is None else self._challenger.describe(),
        }

    @property
    def schemas(self) -> dict[str, Mapping[str, Any]]:
        """Version -> schema of the encoders that are in use here, but for the loop's first."""
        used = [self._rows] if self._challenger is None else [self._rows, self._challenger.rows]
        return {rows.version: rows.schema for rows in used if rows is not self._first and rows.schema is not None}

    def stand_in(self, items: Mapping[str, Features]) -> None:
        """Take the features of the catalogue at version `catalogue` for events that do not say an item's."""
        self._rows.stand_ins = items
        if self._challenger is not None:
            self._challenger.rows.stand_ins = items

    def resume(self, record: PolicyRecord, state: Arrays) -> bool:
        """Go on from a checkpoint.

        Returns:
            Whether the checkpoint says which items were seen. That of version 0.1 does not: see `note_items`.

        Raises:
            ValueError: the state was written by another version of this policy's code.
        """
        try:
            self._resume_encoding(state)
            self._drift.load({name: array for name, array in state.items() if not name.startswith(OWN)})
        except KeyError as error:
            raise ValueError(
                f"the checkpoint has no {error}: another version of Rebound wrote it. Make the policy again under"
                " another name; it learns the retained log, and the old one serves on meanwhile"
            ) from error
        self.position, self.events, self.set_aside = record.position, record.events, record.set_aside
        self.skipped, self.apart = record.skipped, record.apart
        self.alarms = list(record.alarms)
        if OWN + "items" not in state:
            return False
        items = ItemIndex.from_array(state[OWN + "items"])
        self._last_seen = dict(zip(items, state[OWN + "last_seen"].tolist(), strict=True))
        self._learned = int(state[OWN + "learned"][0])
        return True

    def _resume_encoding(self, state: Arrays) -> None:
        if ENCODING not in state:
            return
        said = json.loads(state[ENCODING].tobytes())
        self._swaps, self._since, self.catalogue = said["swaps"], said["since"], said["catalogue"]
        self._rows = self._rows_of(said["encoder"], said["schema"])
        self._drift = Drift(self._new_policy(self._rows))
        if (trial := said["trial"]) is not None:
            successor = Successor(trial["position"], trial["encoder"], said["next"], trial["fitted"], trial["why"])
            self._challenger = self._challenge(successor)
            self._challenger.load(trial, named(state, CHALLENGER))

    def _rows_of(self, version: str, schema: Mapping[str, Any]) -> Rows:
        if version == self._first.version:
            return self._first
        return Rows.through(version, schema, native=self._first.version, kind=self._record.kind)

    def _challenge(self, successor: Successor) -> Challenger:
        rows = self._rows_of(successor.encoder, successor.schema)
        return Challenger(successor, self._new_policy(rows), rows, against=self.policy, before=self._rows)

    def note_items(self, history: Iterable[Sequence[Entry]]) -> None:
        """Note which items the log up to the position names, for a checkpoint that does not say."""
        for entries in history:
            for event in self._taught(entries):
                self._note(event)

    def state(self) -> Arrays:
        """Return all that learning needs to go on, bit for bit."""
        return {
            **self._drift.state(),
            OWN + "items": ItemIndex(self._last_seen).to_array(),
            OWN + "last_seen": np.array(list(self._last_seen.values()), dtype=np.int64),
            OWN + "learned": np.array([self._learned], dtype=np.int64),
            **self._encoding_state(),
        }

    def _encoding_state(self) -> Arrays:
        """Return what there is to know of encoders; nothing where the policy has met the first alone."""
        if self._rows is self._first and self._challenger is None and not self._swaps:
            return {}
        said = {
            **self.encoding,
            "schema": self._rows.schema,
            "next": None if self._challenger is None else self._challenger.rows.schema,
            "catalogue": self.catalogue,
        }
        arrays = {ENCODING: np.frombuffer(json.dumps(said, sort_keys=True).encode(), dtype=np.uint8).copy()}
        if self._challenger is not None:
            arrays |= prefixed(CHALLENGER, self._challenger.state())
        return arrays

    def apply(self, entries: Sequence[Entry]) -> Applied:
        """Learn from entries that follow the position, up to the first after which something else is due.

        Raises:
            Poisoned: the policy raised.
        """
        done = Applied(read=0)
        run: list[Event] = []
        for entry in entries:
            done.read += 1
            if isinstance(entry, (Event, Unreadable)):
                entry = self._checked(entry)
            if isinstance(entry, Event):
                run.append(entry)
                done.training_due = self.policy.train_due(self.events + len(run))
            elif isinstance(entry, Unreadable):
                self._learn_all(run, done)  # in order, or an alarm's number of events would depend on the batches
                run = []
                self._refuse(entry, done)
            elif isinstance(entry, Retry):
                self._learn_all(run, done)
                run = []
                self._retry(entry, done)
            elif isinstance(entry, Erasure):
                self._learn_all(run, done)
                run = []
                self.skipped = entry.events - self.events
                done.erased = order(entry.position) > order(self.clean_to)
            elif isinstance(entry, Successor):
                done.successor = self._successor = entry if order(entry.position) > order(self._after) else None
            else:
                done.training_due = self._asked_to_train(entry)
            if done.training_due or done.successor is not None or done.erased:
                break
        self._learn_all(run, done)
        if done.read:
            self.position = entries[done.read - 1].position
        return done

    def _checked(self, entry: Event | Unreadable) -> Event | Unreadable:
        """Return an entry; as unreadable if it was set aside here before, or cannot be learned."""
        if (letter := self.letters.get(entry.position)) is not None:
            return Unreadable(entry.position, letter.why)
        if isinstance(entry, Event) and (why := self._wrong(entry)) is not None:
            return Unreadable(entry.position, why)
        return entry

    def _taught(self, entries: Iterable[Entry]) -> list[Event]:
        """Return the events that the policy learns from these entries."""
        found = []
        for entry in entries:
            if isinstance(entry, Retry):
                letter = self.letters.get(entry.of)
                entry = entry.event if letter is not None and letter.learned == entry.position else entry
            event = self._checked(entry) if isinstance(entry, Event) else None
            if isinstance(event, Event) and not self._is_apart(event):
                found.append(event)
        return found

    def _is_apart(self, event: Event) -> bool:
        """Return whether an experiment keeps an event from this policy: another arm's policy learns it."""
        return event.experiment is not None and self._record.id in event.experiment.apart

    def _own(self, events: Sequence[Event]) -> tuple[list[Event], list[int | None]]:
        """Leave out what is kept from this policy.

        Returns:
            The others, and the slate positions of what was left out after the last of them. `_before` has those of what
            was left out before each.
        """
        own: list[Event] = []
        apart: list[int | None] = []
        for event in events:
            if self._is_apart(event):
                apart.append(event.slate_position)
                continue
            own.append(event)
            if apart:
                self._before[event.position], apart = apart, []
        return own, apart

    def _pass(self, apart: Sequence[int | None]) -> None:
        """Count events that are kept from this policy: they are behind it, and taught it nothing."""
        self.events += len(apart)
        self.apart += len(apart)
        self._drift.pass_over(apart)
        if self._challenger is not None:
            self._challenger.drift.pass_over(apart)

    def _wrong(self, event: Event) -> str | None:
        """Return why an event cannot be learned, None if it can."""
        if self._rows.has(event):
            if event.x.shape != (self._rows.d,):
                return f"row of shape {event.x.shape}, expected ({self._rows.d},)"
            # Written so that NaN is refused as well. The sum of squares says it of nearly every row, and is quick.
            if not (event.x.dot(event.x) <= LARGEST or np.abs(event.x).max(initial=0.0) <= LARGEST):
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
        self._pass(self._before.pop(letter.position, ()))
        self.events += 1
        self.set_aside += 1
        if len(self.letters) < MOST_LETTERS:
            self.letters.setdefault(letter.position, DeadLetter(letter.position, letter.why))

    def _retry(self, entry: Retry, done: Applied) -> None:
        """Learn an event that was set aside where it stood first."""
        letter = self.letters.get(entry.of)
        if entry.policy_id != self._record.id or letter is None or letter.learned not in (None, entry.position):
            return
        self.events -= 1  # it was counted where it stood first
        self.set_aside -= 1
        aside, event = self.set_aside, self._checked(entry.event)
        if isinstance(event, Event):
            self._learn_all([event], done)
        else:
            self._refuse(event, done)
        if self.set_aside == aside:
            self.letters[entry.of] = replace(letter, learned=entry.position)
        else:
            why = done.refused[-1].why
            self.letters[entry.of] = replace(letter, why=why)
            self.letters[entry.position] = DeadLetter(entry.position, why, of=entry.of)

    def _learn_all(self, events: Sequence[Event], done: Applied) -> None:
        own, apart = self._own(events)
        for part in self._parts(own):
            try:
                self._learn(part, done)
            except NumericalError as error:  # nothing was changed
                if len(part) == 1:
                    self._refuse(Unreadable(part[0].position, str(error)), done)
                else:
                    for event in part:
                        self._learn_all([event], done)
            except MemoryError:  # not for what the events hold
                raise
            except Exception as error:
                raise Poisoned([event.position for event in part], error) from error
        self._pass(apart)

    def _parts(self, events: Sequence[Event]) -> Iterator[Sequence[Event]]:
        """Cut events where something is to be done after one of them, so that batches do not matter."""
        step = self._retention // CHECKS
        while events:
            # Asked anew for each part: a challenger may have taken over meanwhile, whose blocks end elsewhere.
            size = min(next(self._drift.parts(len(events))).stop, step - self._learned % step)
            if self._challenger is not None:
                size = min(size, self._challenger.until_look)
            if self._before:
                size = next((at for at in range(1, size) if events[at].position in self._before), size)
            yield events[:size]
            events = events[size:]

    def _learn(self, part: Sequence[Event], done: Applied) -> None:
        last = part[-1]
        self._pass(self._before.pop(part[0].position, ()))
        positions = [event.slate_position for event in part]
        batch = self._rows.batch(part, self._reward_range)
        reaction = self._drift.update(batch, last.time, positions)
        if self._challenger is not None:
            self._try(self._challenger, part, batch)
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
        if self._challenger is not None and self._challenger.look_due:
            self._look(self._challenger, last)

    def _try(self, challenger: Challenger, events: Sequence[Event], batch: Batch) -> None:
        """Let the challenger learn what the policy has just learned; what it cannot learn ends its trial."""
        try:
            challenger.learn(events, batch, self._drift.expected, self._reward_range)
        except NumericalError:
            self._challenger = None

    def _look(self, challenger: Challenger, last: Event) -> None:
        """Let the challenger take over, or go on, or give up."""
        better = challenger.look()
        if better:
            self._take_over(challenger, at=last.time, position=last.position)
        elif better is not None:
            self._challenger = None

    def _take_over(self, challenger: Challenger, *, at: float, position: str) -> None:
        """Go on with the challenger. It watches for changes by itself, and what it noticed so far is no alarm."""
        self._since = {"at": at, "position": position, "events": self.events, "why": challenger.why}
        self._since |= {"trial": challenger.describe() if challenger.events else None}
        self._rows, self._drift, self._challenger = challenger.rows, challenger.drift, None
        self._swaps += 1

    def relearn(
        self, history: Iterable[Sequence[Entry]], stand_ins: Mapping[str, Features] = NO_ITEMS
    ) -> dict[str, Any] | None:
        """Begin the trial of the successor that `apply` stopped at; a declared one takes over at once.

        Args:
            history: the log up to the position, in order and in parts: the newest `memory` events of it.
            stand_ins: the catalogue at version `successor.catalogue`.

        Returns:
            What `encoding` says now, None where the successor has nothing to offer: the policy has its encoder, or
            cannot learn through it, or could not tell items apart by what was fitted.
        """
        successor, self._successor = self._successor, None
        assert successor is not None, "no successor is due"
        former, self._challenger = self._challenger, None  # one at a time
        if successor.encoder == self.encoder:
            return None
        challenger = self._challenge(successor)
        if self.policy.rows_alone and not successor.declared and not challenger.rows.tells_items_apart:
            return None
        if former is not None:
            challenger.lead = max(0.0, former.ahead)
        self.catalogue = successor.catalogue
        self._rows.stand_ins = challenger.rows.stand_ins = stand_ins
        seen: set[str] = set()

        def events() -> Iterator[Sequence[Event]]:
            for entries in history:
                if found := self._taught(entries):
                    seen.update(event.item for event in found)
                    yield found

        try:
            challenger.relearn(events(), self._rows, self._reward_range)
        except NumericalError:
            return None
        if self.apart:
            challenger.drift.go_on()
        if forgotten := sorted(seen - self._last_seen.keys()):
            challenger.forget_items(forgotten)
        self._challenger = challenger
        if successor.declared:
            ms = order(successor.position)[0]
            self._take_over(challenger, at=ms / 1000, position=successor.position)
        return self.encoding

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
            if self._challenger is not None:
                self._challenger.forget_items(gone)

    def train(self, history: Iterable[Sequence[Entry]]) -> int:
        """Train on the log up to the position, given in order and in parts; return the number of events.

        Raises:
            NumericalError: the policy is as it was.
        """
        batches, challenging = [], []
        for entries in history:
            if events := self._taught(entries):
                batches.append(self._rows.batch(events, self._reward_range))
                if self._challenger is not None:
                    challenging.append(self._challenger.rows.batch(events, self._reward_range))
        self.policy.train(batches)
        if self._challenger is not None:
            try:
                self._challenger.drift.policy.train(challenging)
            except NumericalError:
                self._challenger = None
        return sum(len(batch.item) for batch in batches)
