"""The values that rooms hand to each other: loops, policies, decisions, and the entries of the log.

They are plain data. `store/codec.py` says how each is written to Redis, and in which format version.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from service.loop import LoopSettings

Features: TypeAlias = Mapping[str, Any]

START = "0-0"  # the position before the first entry of a log


def order(position: str) -> tuple[int, int]:
    """Return a position as numbers, which compare as positions do: (milliseconds, sequence)."""
    ms, sequence = position.split("-")
    return int(ms), int(sequence)


# ---- what a loop has once

OUTSIDE = ""  # stands for an arm where a unit is left out of an experiment


@dataclass(frozen=True)
class Arm:
    """One of the policies that an experiment compares."""

    policy: str
    share: float  # of the units that take part, in (0, 1)


@dataclass(frozen=True)
class Experiment:
    """A comparison of policies on units that are drawn by chance."""

    name: str
    id: str  # new for every experiment that is made; units fall by it
    version: int  # from 1 on; rises when units move between arms: results begin anew
    arms: Mapping[str, Arm]  # one is called `control`
    spans: Sequence[tuple[str, int]]  # (arm or OUTSIDE, parts of `PARTS`), in order: who is where (`assignment.py`)
    unit: str  # user | session | decision
    metric: str  # a name of `METRICS` (`service/evaluate/experiment.py`), as in `guardrails`
    guardrails: Mapping[str, float]  # metric -> drop that is tolerated, as a share of the control's mean
    minimum_effect: float  # the smallest lift that matters, as such a share
    confidence: float
    holdout: float  # share of the units that is left out, in [0, 1)
    starts: float  # unix seconds
    ends: float | None  # unix seconds; None: not known yet
    session: str = "session_id"  # field of the context that names the session, where that is the unit
    learners: Mapping[str, str] = field(default_factory=dict)  # arms' policy -> its id, if each learns its own events

    def ended(self, at: float) -> bool:
        """Return whether it is over at a time."""
        return self.ends is not None and at >= self.ends

    @staticmethod
    def digest(unit: str) -> bytes:
        """Return the name under which the sums of a unit are kept."""
        return blake2b(unit.encode(), digest_size=8).digest()


@dataclass(frozen=True, slots=True)
class Assignment:
    """Where a unit of an experiment fell. Decisions and their events carry it."""

    experiment: str  # its name
    id: str  # of the experiment
    version: int
    arm: str  # OUTSIDE: the unit is left out, and served by the loop's traffic
    share: float  # the chance of every unit to fall there
    apart: tuple[str, ...] = ()  # ids of policies that do not learn its events: those of the other arms


@dataclass(frozen=True)
class LoopRecord:
    """A loop as its home holds it.

    `id` is new for every loop that is made, so a loop that was deleted and made again is another one. `epoch` rises
    with every change of the loop, its items or its set of policies.
    """

    name: str
    id: str
    settings: LoopSettings
    schema: Mapping[str, Any]
    d: int  # columns of a row of the first encoder
    encoder: str  # version of the first encoder, which `schema` makes; later ones are entries of the log (`Successor`)
    epoch: int
    catalogue: int  # version of the catalogue
    traffic: Mapping[str, float]  # policy -> share; sums to 1, or is empty: uniform choice
    pins: Mapping[str, int]  # policy -> the version that a rollback pinned
    newest: Mapping[str, Any] | None = None  # encoder, position and catalogue of the newest successor; None: no such
    declared: str | None = None  # version of the encoder that a person declared last; None: the service fits its own
    activity: bool = False  # whether activity was ever sent, or rewards counted as such
    edges: bool = False  # whether edges were ever sent
    experiments: Mapping[str, Experiment] = field(default_factory=dict)  # by name; one at most has not ended
    release: Mapping[str, Any] | None = None  # policy, id and guard's latency of the release that runs; None: none

    def experiment_at(self, at: float) -> Experiment | None:
        """Return the experiment that has not ended at a time, begun or not."""
        return next((one for one in self.experiments.values() if not one.ended(at)), None)

    @property
    def encoder_of_imports(self) -> str:
        """Version of the encoder of imported events: the newest if a person declared it, else the first."""
        if self.newest is not None and self.newest["encoder"] == self.declared:
            return str(self.newest["encoder"])
        return self.encoder


@dataclass(frozen=True)
class PolicyRecord:
    """A policy as its loop's home holds it: what it is, and how far it has learned."""

    name: str
    id: str  # new for every policy that is made
    kind: str
    params: Mapping[str, Any]
    seed: int
    retention: int = 1_000_000  # events without an item after which the policy forgets it; the loop's when it was made
    version: int = 0  # the newest; 0: no snapshot yet
    position: str = START  # the last entry of the log that it has learned from
    events: int = 0  # learned
    erased: int = 0  # the newest of the versions that were deleted because they had learned what was erased; 0: none
    set_aside: int = 0  # of `events`, those that it could not learn, and has not learned since
    skipped: int = 0  # events that the log no longer held when the policy began to learn
    apart: int = 0  # of `events`, those that an experiment kept for another policy
    bytes: int = 0  # of the learned state and the newest snapshot
    kept: int = 0  # bytes of all kept snapshots
    published: float | None = None  # unix seconds
    alarms: Sequence[Mapping[str, Any]] = ()  # the newest, each with its number, oldest first
    begun: Mapping[str, Any] | None = None  # the loop's newest successor when it was made, whose encoder it began with
    encoding: Mapping[str, Any] | None = None  # what `Trainer.encoding` says; None: the encoder that it began with

    @property
    def needs(self) -> list[str]:
        """Versions of the encoders without which the policy's log cannot be learned from its start."""
        return [] if self.begun is None else [self.begun["encoder"]]

    @property
    def encoder(self) -> str | None:
        """Version of the encoder of the newest version; None: that of the loop's first."""
        for said in (self.encoding, self.begun):
            if said is not None:
                return str(said["encoder"])
        return None


@dataclass(frozen=True)
class Change:
    """An administrative change, as it is written down."""

    by: str  # name of the key, or of the command
    what: str  # such as `change settings`
    before: Any  # JSON; None: there was nothing, or nobody knows
    after: Any
    at: float = 0.0  # unix seconds; 0: not written down yet


class ItemChange(NamedTuple):
    """One change of a catalogue."""

    version: int  # that it made
    item: str
    was: bool  # there before
    now: bool  # there after it


# ---- decisions


@dataclass(frozen=True, slots=True)
class SlateItem:
    """One item of a slate, as it was drawn."""

    id: str
    score: float  # the policy's estimate, in units of the reward
    propensity: float  # in (0, 1]: of being drawn for its place, given the places before it


class Removed(NamedTuple):
    """Items that limits allowed no more, by the sort of limit."""

    taken: tuple[str, ...] = ()  # the user took them
    shown: tuple[str, ...] = ()  # the user was shown them as often as may be
    spent: tuple[str, ...] = ()  # they have no budget left

    @property
    def items(self) -> tuple[str, ...]:
        """All of them."""
        return self.taken + self.shown + self.spent


class Retrieved(NamedTuple):
    """The candidates that a funnel found."""

    version: int  # of the counts that its sources were made from
    rows: tuple[int, ...]  # of the catalogue at the decision's version, by the ids in order, ascending
    embedding: int = 0  # version of the learned embeddings; 0: there were none


class Seen(NamedTuple):
    """What was read of a user's activity before a decision."""

    position: str  # of the newest entry of the log of activity: all of the user's up to there was seen
    items: tuple[str, ...] = ()  # his last, the newest first; () where no source of the funnel asks for them


@dataclass(frozen=True, slots=True)
class Decision:
    """One answered request, with all that it takes to make it again."""

    decision_id: str
    loop: str
    at: float  # unix seconds
    user_id: str | None
    context: Features
    candidates: Sequence[tuple[str, Features | None]] | None  # as the request named them; None: the catalogue
    exclude: Sequence[str]
    catalogue: int  # version
    n: int  # eligible candidates
    k: int
    policy: str
    version: int
    encoder: str
    exploration_floor: float
    seed: str
    items: tuple[SlateItem, ...]
    rules: Mapping[str, Any] | None = None  # of the loop and of the request; None: there were none
    left: tuple[int, ...] | None = None  # under rules: candidates for each place; None: one less for each
    folded: bool = False  # whether the policy's bounds were folded over the catalogue beforehand
    rung: str = field(default="ok", compare=False)  # store_down: answered from memory, and stored afterwards
    experiment: Assignment | None = None  # None: it took part in none
    retrieved: Retrieved | None = None  # None: no funnel narrowed the candidates
    seen: Seen | None = None  # None: the user's state was not read
    removed: Removed | None = None  # None: limits removed no candidate
    attempt: int = 0  # decisions before it, under this id, that met a limit when they were to be stored

    @property
    def left_out(self) -> Sequence[str]:
        """Items that were no candidates, though the request or the catalogue may name them."""
        return self.exclude if self.removed is None else (*self.exclude, *self.removed.items)

    def candidates_for(self, place: int) -> int:
        """Return from how many candidates the item at a place, from 0 on, was drawn."""
        return self.n - place if self.left is None else self.left[place]


# ---- entries of the log


@dataclass(frozen=True, slots=True)
class Event:
    """A decision's item joined with its final reward."""

    position: str
    decision_id: str
    item: str
    user: str | None
    context: Features
    x: NDArray[np.float32]  # (d,): the item's row as it was served
    n: int | None  # candidates that were eligible; None for imported events
    propensity: float | None  # in (0, 1]; None where an imported event did not say
    policy: str | None
    version: int
    reward: float
    source: str  # feedback | default | import
    slate_position: int | None = None  # among all items shown in the loop, from 0 on; None for imported events
    features: Features | None = None  # of the item, as it was shown; {}: it has none; None: they are not written here
    encoder: str | None = None  # version of the encoder that wrote `x`; None: the one that the loop was made with
    at: float | None = None  # unix seconds: when an imported event happened; None: when it entered the log
    decided: float | None = None  # unix seconds: of its decision; None: imported, or written by an older version
    rung: str = "ok"  # of its decision
    place: int = 0  # in the slate of its decision
    experiment: Assignment | None = None  # of its decision
    # Of its decision: what the user's state was made from, the position of `Seen` and the version of the catalogue.
    seen: tuple[str, int] | None = None  # None: it was not read

    @property
    def time(self) -> float:
        """When it happened, in unix seconds: an imported event says so, any other is as old as its entry."""
        return order(self.position)[0] / 1000 if self.at is None else self.at


@dataclass(frozen=True, slots=True)
class PastEvent:
    """An event of a historical log, which is to be imported."""

    event_id: str  # an import of an id that came before changes nothing
    user_id: str | None
    context: Features
    item_id: str
    features: Features | None  # None: those of the catalogue
    reward: float
    propensity: float | None = None
    at: float | None = None  # unix seconds
    decision_id: str | None = None  # None: the event id. The items of a slate share it
    n: int | None = None  # candidates that were eligible
    policy: str | None = None
    version: int = 0
    origin: str | None = None  # id of the loop of Rebound that it was exported from


@dataclass(frozen=True, slots=True)
class Training:
    """A request that a batch-trained policy trains on all that stands before this entry."""

    position: str
    policy: str
    policy_id: str | None  # None: asked for by version 0.1, which knew names alone


@dataclass(frozen=True, slots=True)
class Successor:
    """A new encoder for the policies of a loop. Each learns the log through it, and moves when that is better."""

    position: str
    encoder: str  # version of the encoder that `schema` makes
    schema: Mapping[str, Any]
    events: int  # that it was fitted on; 0: none
    why: str  # for people
    declared: bool = False  # by a person, whose word is not tested
    catalogue: int = 0  # version of the catalogue that stands in where an event does not say an item's features


@dataclass(frozen=True, slots=True)
class Erasure:
    """The events of a user were erased from the log before this entry. Who has learned them begins anew.

    It names neither the user nor the events: a replay meets the log without them.
    """

    position: str
    events: int  # appended to the log before this entry, whatever of them it still holds


@dataclass(frozen=True, slots=True)
class Note:
    """An entry that teaches nothing, such as an alarm that version 0.1 wrote down."""

    position: str


@dataclass(frozen=True, slots=True)
class Unreadable:
    """An entry that is garbled: it goes to the dead letters and stops nothing."""

    position: str
    why: str


@dataclass(frozen=True, slots=True)
class Retry:
    """An event once more, for one policy that could not learn it where it stood first."""

    position: str
    policy: str
    policy_id: str
    of: str  # where it stood first
    event: Event | Unreadable  # at this position


Entry: TypeAlias = Event | Training | Successor | Erasure | Note | Unreadable | Retry


@dataclass(frozen=True, slots=True)
class LoggedActivity:
    """An entry of the log of activity: what a user did with an item."""

    position: str  # entries stand in the order in which they were accepted
    user: str
    number: int  # among what was accepted of him, from 1; who was forgotten for want of activity begins anew
    at: int  # unix milliseconds
    item: str
    type: str
    kept_ms: int  # after which he is forgotten, if nothing follows


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A place in the log at which a policy did not learn. Whoever learns the log again leaves it out there, too."""

    position: str
    why: str
    of: str | None = None  # a retry failed here, of the event that stood first at `of`
    learned: str | None = None  # position of the retry that the policy learned it from
