"""The trainer: pure, and indifferent to how the log is cut into batches."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import cycle
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.learn.rows import Rows
from service.learn.trainer import CHECKS, LARGEST, Trainer
from service.policies import KINDS, NumericalError, same_arrays
from service.records import Assignment, Entry, Event, Note, PolicyRecord, Training, Unreadable
from service.store.codec import pack, read_entry, unpack
from tests.builders import D, event_of, fields_of, loop_of, policy_of
from tests.learn.recorder import Recorder

RETENTION = 1000
STEP = RETENTION // CHECKS  # events between two looks for unseen items


@pytest.fixture(autouse=True, scope="module")
def _known() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(KINDS, "recorder", Recorder)
        yield


@dataclass
class Outcome:
    """What came of a whole log."""

    trainer: Trainer
    refused: list[str] = field(default_factory=list)
    alarms: list[Mapping[str, Any]] = field(default_factory=list)
    trained_on: list[int] = field(default_factory=list)

    @property
    def said(self) -> list[str]:
        """What a `Recorder` was asked to do."""
        policy = self.trainer.policy
        assert isinstance(policy, Recorder)
        return policy.said


def trainer_of(record: PolicyRecord, **settings: Any) -> Trainer:
    return Trainer.of(loop_of(**settings), record)


def learn(log: Sequence[Entry], record: PolicyRecord, sizes: Sequence[int], *, restart: bool = False) -> Outcome:
    """Learn a log in batches of these sizes, over and over; train whenever it is due.

    Args:
        restart: go on from a checkpoint after every batch.
    """
    done = Outcome(trainer_of(record))
    start = 0
    for size in cycle(sizes):
        if start >= len(log):
            return done
        entries = log[start : start + size]
        start += len(entries)
        while entries:
            applied = done.trainer.apply(entries)
            done.refused += [letter.position for letter in applied.refused]
            done.alarms += applied.alarms
            if applied.training_due:
                before = [entry for entry in log if entry.position <= done.trainer.position]
                try:
                    done.trained_on.append(done.trainer.train([before[:7], before[7:]]))
                except NumericalError:
                    done.trained_on.append(-1)
            entries = entries[applied.read :]
        if restart:
            done.trainer = resumed(done.trainer, record)
    raise AssertionError("no sizes")


def resumed(old: Trainer, record: PolicyRecord) -> Trainer:
    """Write a trainer down as a checkpoint, and take it up."""
    again = trainer_of(record)
    said = {name: getattr(old, name) for name in ("position", "events", "alarms", "apart")}
    now = PolicyRecord(**{**as_dict(record), **said})
    assert again.resume(now, unpack(pack(old.state())))
    return again


def as_dict(record: PolicyRecord) -> dict[str, Any]:
    return {name: getattr(record, name) for name in record.__dataclass_fields__}


def same(one: Outcome, other: Outcome) -> None:
    """Assert that two outcomes are the same, bit for bit."""
    assert same_arrays(one.trainer.state(), other.trainer.state())
    for name in ("position", "events", "apart"):
        assert getattr(one.trainer, name) == getattr(other.trainer, name), name
    assert one.refused == other.refused
    assert one.alarms == other.alarms
    assert one.trainer.alarms == other.trainer.alarms
    assert one.trained_on == other.trained_on


def training(number: int, record: PolicyRecord, *, policy_id: str | None = "") -> Training:
    """Build a request to train; left out, `policy_id` is the record's."""
    return Training(f"{1000 + number}-0", record.name, record.id if policy_id == "" else policy_id)


def apart(event: Event, *kept_from: PolicyRecord) -> Event:
    """Let an event be of an arm whose experiment keeps it from these policies."""
    ids = tuple(policy.id for policy in kept_from)
    return replace(event, experiment=Assignment("prices", "1f2e", 1, "bold", 0.5, ids))


# ---- batches do not matter

RECORDER = policy_of("recorder", retention=RETENTION, every=50, half_life=100.0)


@st.composite
def logs(draw: st.DrawFn) -> list[Entry]:
    """Draw a log of every sort of entry, at most a few hundred of them."""
    sorts = st.sampled_from(
        ["event"] * 8 + ["apart"] * 3 + ["poison", "unreadable", "train", "train another", "note", "narrow"]
    )
    log: list[Entry] = []
    for number, sort in enumerate(draw(st.lists(sorts, max_size=200)) * 2):
        position = f"{1000 + number}-0"
        if sort == "unreadable":
            log.append(Unreadable(position, "garbled"))
        elif sort == "note":
            log.append(Note(position))
        elif sort.startswith("train"):
            log.append(training(number, RECORDER, policy_id="" if sort == "train" else "another"))
        elif sort == "narrow":
            log.append(event_of(number, x=[1.0]))
        elif sort == "apart":
            log.append(apart(event_of(number), RECORDER))
        else:
            log.append(event_of(number, item="poison" if sort == "poison" else f"p{number % 40}"))
    return log


@given(log=logs(), sizes=st.lists(st.integers(1, 60), min_size=1, max_size=5), restart=st.booleans())
@settings(deadline=None)
def test_batches_do_not_matter(log: list[Entry], sizes: list[int], restart: bool) -> None:
    same(learn(log, RECORDER, [10_000]), learn(log, RECORDER, sizes, restart=restart))


@pytest.mark.parametrize(
    ("kind", "params", "alarms"),
    [
        ("adaptive", {"half_life": 400.0}, 2),
        ("linucb", {"detect_change": True}, 2),
        ("popularity", {"detect_change": True, "half_life_s": 300.0}, 1),
        ("recorder", {"detect_change": True}, 2),
    ],
)
def test_batches_do_not_matter_where_the_world_changes(kind: str, params: dict[str, Any], alarms: int) -> None:
    """Alarms, forgetting by events and by time, unreadable entries and unseen items, all in one log."""
    record = policy_of(kind, retention=RETENTION, **params)
    rng = np.random.default_rng(0)
    log: list[Entry] = []
    for number in range(2400):
        rate = (0.6, 0.1, 0.7)[number // 800]
        item = f"p{number % 3}" if number % 100 else f"rare{number}"
        reward = float(rng.random() < rate)
        event = event_of(number, item=item, x=np.full(D, 0.5), reward=reward, at=1e9 + number, slate_position=number)
        log.append(apart(event, record) if number % 11 == 0 else event)
        if number % 7 == 0:
            log.append(Unreadable(f"{1000 + number}-1", "garbled"))
    whole = learn(log, record, [10_000])
    assert len(whole.alarms) >= alarms
    assert len(whole.refused) == len(log) - 2400
    for sizes, restart in (([1], False), ([7, 64, 3], True)):
        same(whole, learn(log, record, sizes, restart=restart))


# ---- what an experiment keeps for another policy


@pytest.mark.parametrize("kind", ["adaptive", "linucb", "popularity"])
def test_what_is_kept_for_another_policy_changes_nothing_and_is_counted(kind: str) -> None:
    mine, other = policy_of(kind), policy_of(kind, name="other")
    events = [event_of(number, slate_position=number) for number in range(120)]
    log = [apart(event, other if number % 3 else mine) for number, event in enumerate(events)]
    found = learn(log, mine, [50]).trainer
    assert (found.events, found.apart, found.position) == (120, 40, events[-1].position)
    alone = learn([event for number, event in enumerate(events) if number % 3], mine, [50]).trainer
    assert same_arrays(found.policy.snapshot(), alone.policy.snapshot())
    both = learn(log, mine, [7]).trainer
    assert same_arrays(found.state(), both.state())
    beside = learn(log, policy_of(kind, name="beside"), [50]).trainer
    assert (beside.events, beside.apart) == (120, 0), "a policy beside the experiment learns all"


def test_a_change_is_noticed_though_half_of_the_events_are_kept_for_another_policy() -> None:
    mine, other = policy_of("adaptive"), policy_of("adaptive", name="other")
    rng = np.random.default_rng(0)
    log: list[Entry] = []
    for number in range(4000):
        reward = float(rng.random() < (0.7 if number < 2000 else 0.1))
        event = event_of(number, item="p", x=np.full(D, 0.5), reward=reward, slate_position=number)
        log.append(apart(event, other if rng.random() < 0.5 else mine))
    [alarm] = learn(log, mine, [500]).alarms
    assert 2000 < alarm["events"] < 2600
    assert learn(log, mine, [33], restart=True).alarms == [alarm]


def test_a_training_passes_over_what_is_kept_for_another_policy() -> None:
    record = policy_of("recorder", retention=RETENTION)
    log: list[Entry] = [apart(event_of(number), record) if number % 2 else event_of(number) for number in range(10)]
    assert learn([*log, training(10, record)], record, [100]).trained_on == [5]


# ---- what goes to the dead letters


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"x": np.zeros(D - 1)}, r"row of shape \(3,\), expected \(4,\)"),
        ({"x": np.full(D, np.nan)}, "feature"),
        ({"x": np.full(D, np.inf)}, "feature"),
        ({"x": np.full(D, 2 * LARGEST)}, "feature"),
        ({"reward": np.nan}, "reward"),
        ({"reward": np.inf}, "reward"),
        ({"reward": -1e300}, "reward"),
    ],
)
@pytest.mark.parametrize("kind", ["adaptive", "embedding_mlp"])
def test_what_no_encoder_wrote_is_refused_by_every_kind(changes: dict[str, Any], why: str, kind: str) -> None:
    trainer = trainer_of(policy_of(kind))
    done = trainer.apply([event_of(0), event_of(1, **changes), event_of(2)])
    [letter] = done.refused
    assert letter.position == "1001-0"
    assert re.search(why, letter.why)
    assert (done.read, trainer.events, trainer.position) == (3, 3, "1002-0")


def test_an_event_that_the_policy_cannot_learn_is_refused_alone() -> None:
    items = ["a", "poison", "b", "poison", "c"]
    outcome = learn([event_of(n, item=item, reward=0.0) for n, item in enumerate(items)], policy_of("recorder"), [5])
    assert outcome.said == ["a 0", "b 0", "c 0"]
    assert outcome.refused == ["1001-0", "1003-0"]
    assert outcome.trainer.events == 5


def test_rewards_are_learned_as_shares_of_the_loops_range() -> None:
    trainer = trainer_of(policy_of("popularity"), reward_range=(-10, 30))
    trainer.apply([event_of(n, reward=reward) for n, reward in enumerate([10.0, -10.0, 30.0])])
    assert trainer.state()["clicks"].tolist() == [0.5, 0.0, 1.0]


def test_an_imported_event_without_a_propensity_has_none() -> None:
    event = read_entry("1-0", {**fields_of(event_of()), b"e": fields_of(event_of())[b"e"].replace(b"0.5", b"null")})
    assert isinstance(event, Event)
    assert np.isnan(Rows("", native="", d=D, kind="linucb", schema=None).batch([event], (0, 1)).propensity).all()


# ---- trainings


def test_a_training_that_is_asked_for_happens_at_its_place() -> None:
    record = policy_of("recorder")
    log: list[Entry] = [
        event_of(0),
        event_of(1),
        training(2, record),
        event_of(3),
        training(4, record),
        training(5, record),
    ]
    for sizes in ([1], [2], [6]):
        outcome = learn(log, record, sizes)
        assert outcome.said == ["p0 0", "p1 1", "train on 2", "p0 1", "train on 3", "train on 3"]
        assert outcome.trained_on == [2, 3, 3]


def test_a_training_that_somebody_else_was_asked_for_is_passed_over() -> None:
    record = policy_of("recorder")
    others = [training(1, policy_of("recorder", name="another")), training(2, record, policy_id="of then")]
    assert learn([event_of(0), *others], record, [3]).said == ["p0 0"]
    # Version 0.1 named no id.
    assert learn([event_of(0), training(1, record, policy_id=None)], record, [2]).said == ["p0 0", "train on 1"]


def test_a_training_that_fails_leaves_the_policy_as_it_was_and_the_log_goes_on() -> None:
    record = policy_of("recorder")
    log: list[Entry] = [event_of(0, item="impossible"), training(1, record), event_of(2)]
    outcome = learn(log, record, [3])
    assert outcome.trained_on == [-1]
    assert outcome.said == ["impossible 0", "p2 0"]


def test_a_policy_that_retrains_does_so_at_the_same_events_in_any_batches() -> None:
    record = policy_of("embedding_mlp", retrain_every=150, epochs=1)
    log = [event_of(number) for number in range(400)]
    whole = learn(log, record, [400])
    assert whole.trained_on == [150, 300]
    same(whole, learn(log, record, [80]))


# ---- items that no retained event names


def forgotten(outcome: Outcome) -> list[tuple[int, list[str]]]:
    """Return (events learned by then, ids) of each call of `forget_items`."""
    found, events = [], 0
    for line in outcome.said:
        if line.startswith("forget "):
            found.append((events, line.split()[1:]))
        else:
            events += 1
    return found


@pytest.mark.parametrize("last_seen", [1, STEP - 1, STEP, STEP + 1])
def test_an_item_is_forgotten_when_a_retention_of_events_has_passed(last_seen: int) -> None:
    """Looked for at every tenth of a retention, and not before the last event of the item has left the log."""
    record = policy_of("recorder", retention=RETENTION)
    events = [event_of(n, item="once" if n + 1 == last_seen else "often") for n in range(2 * RETENTION)]
    outcome = learn(events, record, [64])
    assert forgotten(outcome) == [(-(-last_seen // STEP) * STEP + RETENTION, ["once"])]


def test_an_item_that_comes_back_is_a_new_one() -> None:
    record = policy_of("recorder", retention=RETENTION)
    back = {0, 500, 3000, 4000}
    outcome = learn([event_of(n, item="now" if n in back else "often") for n in range(6000)], record, [999])
    assert forgotten(outcome) == [(1600, ["now"]), (5100, ["now"])]


def test_the_record_of_what_was_seen_is_bounded_by_the_retention() -> None:
    record = policy_of("recorder", retention=RETENTION)
    trainer = learn([event_of(n, item=f"i{n}") for n in range(5000)], record, [500]).trainer
    assert len(trainer.state()["trainer.last_seen"]) <= RETENTION + STEP


def test_a_checkpoint_that_does_not_say_what_was_seen_is_completed_from_the_log() -> None:
    """That of version 0.1: the items of the log so far are noted, and the state is the same from there on."""
    record = policy_of("recorder", retention=RETENTION)
    log: list[Entry] = [event_of(n, item="once" if n < 10 else f"p{n % 5}") for n in range(2000)]
    log[5] = Unreadable(log[5].position, "garbled")
    first = learn(log[:700], record, [100]).trainer
    old = {name: array for name, array in first.state().items() if not name.startswith("trainer.")}
    later = trainer_of(record)
    now = PolicyRecord(**{**as_dict(record), "position": first.position, "events": first.events})
    assert not later.resume(now, old)
    later.note_items([log[:300], log[300:700]])
    assert same_arrays(later.state(), first.state())
    later.apply(log[700:])
    assert same_arrays(later.state(), learn(log, record, [64]).trainer.state())


# ---- nothing that stands in a log stops a trainer

GOOD = fields_of(event_of(1, user="u", slate_position=3, at=1e9))


@st.composite
def garbled(draw: st.DrawFn) -> dict[bytes, bytes]:
    """Draw an entry with one field replaced, cut short, with bits flipped, or gone; or one member of `e` changed."""
    fields = dict(GOOD)
    name = draw(st.sampled_from(sorted(fields)))
    how = draw(st.sampled_from(["bytes", "cut", "flip", "gone", "member", "member gone", "control"]))
    if how == "bytes":
        fields[name] = draw(st.binary(max_size=40))
    elif how == "cut":
        fields[name] = fields[name][: draw(st.integers(0, len(fields[name])))]
    elif how == "flip" and fields[name]:
        at = draw(st.integers(0, len(fields[name]) - 1))
        flipped = bytearray(fields[name])
        flipped[at] ^= 1 << draw(st.integers(0, 7))
        fields[name] = bytes(flipped)
    elif how == "gone":
        del fields[name]
    elif how == "control":
        fields[b"c"] = draw(st.sampled_from([b"", b"null", b"[]", b'"train"', b"{}", b'{"train":{}}', b'{"v":"x"}']))
    else:
        e = orjson.loads(fields[b"e"])
        member = draw(st.sampled_from(sorted(set(e) - {"v"})))
        if how == "member gone":
            del e[member]
        else:
            e[member] = draw(
                st.sampled_from([None, True, 0, -1, 2**63, 1.5, 1e300, 1e-320, "", "x", [], ["x"], {}, {"x": [{}]}])
            )
        fields[b"e"] = orjson.dumps(e)
    return fields


@given(kind=st.sampled_from(sorted(KINDS)), poison=st.lists(garbled(), min_size=1, max_size=8))
@settings(deadline=None)
def test_no_entry_of_a_log_stops_a_trainer(kind: str, poison: list[dict[bytes, bytes]]) -> None:
    trainer = trainer_of(policy_of(kind))
    entries: list[Entry] = [event_of(0)]
    entries += [read_entry(f"{1001 + number}-0", fields) for number, fields in enumerate(poison)]
    entries.append(event_of(100))
    trainer.apply(entries)
    assert trainer.position == "1100-0"
    kind_of = KINDS[kind]
    kind_of.scorer(trainer.policy.snapshot(), d=D, params=trainer.policy.params)
