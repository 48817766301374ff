"""Successors of an encoder: they are tried on the log alone, whatever the batches, and wherever a restart falls."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import cycle
from typing import Any

import numpy as np
import orjson
import pytest

from service.learn.challenger import LOOK, MARGIN
from service.learn.trainer import MEMORY, Trainer
from service.policies import KINDS, same_arrays
from service.records import Entry, Event, LoopRecord, PolicyRecord, Successor, Training
from service.represent.encoder import Encoder
from service.represent.learned import Block, LearnedEncoder, LearnedSchema, Levels
from service.represent.schema import FeatureSchema
from service.store.codec import pack, unpack
from tests.builders import event_of, loop_of, policy_of
from tests.learn.recorder import Recorder


def schema_of(*crosses: tuple[str, str], context: Sequence[str] = ("persona",)) -> dict[str, Any]:
    levels = {"type": "categorical", "levels": ["a", "b"]}
    schema = FeatureSchema.model_validate(
        {
            "context": dict.fromkeys(context, levels),
            "item": {"kind": {"type": "categorical", "levels": ["x", "y"]}},
            "crosses": crosses,
            "hash_dims": 0,
        }
    )
    found: dict[str, Any] = orjson.loads(orjson.dumps(schema.model_dump(mode="json")))
    return found


BLIND = schema_of()  # cannot tell whom which item suits
SEEING = schema_of(("persona", "kind"))
NOISY = schema_of(context=("persona", "noise"))
SEEING_MORE = schema_of(("persona", "kind"), context=("persona", "noise"))
ENCODER_OF = {
    name: Encoder(FeatureSchema.model_validate(s)) for name, s in zip("bsn", (BLIND, SEEING, NOISY), strict=True)
}
FIRST = ENCODER_OF["b"]
LOOP: LoopRecord = replace(loop_of(), schema=BLIND, d=FIRST.d, encoder=FIRST.version)


def successor(
    number: int, schema: Mapping[str, Any] = SEEING, *, fitted: int = 100, declared: bool = False
) -> Successor:
    version = Encoder(FeatureSchema.model_validate(schema)).version
    return Successor(f"{1000 + number}-1", version, schema, fitted, "a test", declared=declared)


def event(number: int, rng: np.random.Generator, *, encoder: Encoder = FIRST, **changes: Any) -> Event:
    """Build an event of a world in which each persona likes its own kind."""
    persona, kind = "ab"[rng.integers(2)], "xy"[rng.integers(2)]
    context = {"persona": persona, "noise": "ab"[rng.integers(2)]}
    rate = 0.8 if (persona == "a") == (kind == "x") else 0.1
    features = {"kind": kind}
    [x] = encoder.encode(context, encoder.items([features], [kind]))
    made = event_of(
        number,
        item=kind,
        x=x,
        reward=float(rng.random() < rate),
        at=1e9 + number,
        slate_position=number,
        context=context,
        features=features,
        encoder=encoder.version,
    )
    return replace(made, **changes)


def log_of(n: int, *successors: Successor, seed: int = 0) -> list[Entry]:
    rng = np.random.default_rng(seed)
    entries: list[Entry] = [event(number, rng) for number in range(n)]
    return sorted([*entries, *successors], key=lambda entry: tuple(map(int, entry.position.split("-"))))


@dataclass
class Outcome:
    trainer: Trainer
    alarms: list[Mapping[str, Any]]
    refused: int = 0


def learn(
    log: Sequence[Entry], record: PolicyRecord, sizes: Sequence[int] = (10_000,), *, restart: bool = False
) -> Outcome:
    done = Outcome(Trainer.of(LOOP, record), [])
    start = 0
    for size in cycle(sizes):
        if start >= len(log):
            return done
        entries = log[start : start + size]
        start += len(entries)
        while entries:
            applied = done.trainer.apply(entries)
            done.alarms += applied.alarms
            done.refused += len(applied.refused)
            at = tuple(map(int, done.trainer.position.split("-")))
            before = [entry for entry in log if tuple(map(int, entry.position.split("-"))) <= at]
            if applied.successor is not None:
                done.trainer.relearn([before[:9], before[9:]])
            if applied.training_due:
                done.trainer.train([before])
            entries = entries[applied.read :]
        if restart:
            done.trainer = resumed(done.trainer, record)
    raise AssertionError("no sizes")


def resumed(old: Trainer, record: PolicyRecord) -> Trainer:
    again = Trainer.of(LOOP, record)
    now = replace(record, position=old.position, events=old.events, alarms=old.alarms, encoding=old.encoding)
    assert again.resume(now, unpack(pack(old.state())))
    return again


# ---- who takes over


@pytest.mark.parametrize("kind", ["adaptive", "lin_ts", "linucb", "squarecb"])
def test_a_better_encoder_takes_over_soon(kind: str) -> None:
    """`linucb` does not say what it expects: references are asked."""
    trainer = learn(log_of(400, successor(200)), policy_of(kind)).trainer
    assert trainer.encoder == ENCODER_OF["s"].version
    assert trainer.policy.d == ENCODER_OF["s"].d
    said = trainer.encoding
    assert (said["swaps"], said["trial"]) == (1, None)
    assert said["since"]["trial"]["loss"] < said["since"]["trial"]["loss_before"] - MARGIN
    assert 200 + LOOK <= said["since"]["events"] <= 300
    assert trainer.events == 400


def test_an_encoder_that_tells_nothing_more_is_given_up() -> None:
    """It wins by chance in at most a share of e^-MARGIN of the logs."""
    on_trial = learn(log_of(300, successor(200, NOISY))[:300], policy_of("adaptive")).trainer
    assert on_trial.encoding["trial"]["events"] == 98
    given_up = 0
    for seed in range(10):
        trainer = learn(log_of(1000, successor(200, NOISY), seed=seed), policy_of("adaptive")).trainer
        assert trainer.encoding["trial"] is None
        if trainer.encoding["swaps"] == 0:
            given_up += 1
            alone = learn(log_of(1000, seed=seed), policy_of("adaptive")).trainer
            assert same_arrays(trainer.policy.state(), alone.policy.state()), "the trial left something behind"
    assert given_up >= 10 * (1 - math.exp(-MARGIN))


def test_a_policy_that_sees_no_rows_moves_at_the_first_look() -> None:
    trainer = learn(log_of(300, successor(200)), policy_of("popularity")).trainer
    assert trainer.encoding["since"]["events"] == 200 + LOOK + 1  # event 200 stands before the successor


def test_a_declared_encoder_takes_over_at_once_and_knows_what_it_would_know() -> None:
    log = log_of(300, successor(299, declared=True))
    trainer = learn(log, policy_of("adaptive")).trainer
    assert trainer.encoding["since"]["events"] == 300
    assert trainer.encoding["since"]["trial"] is None
    through = replace(LOOP, schema=SEEING, d=ENCODER_OF["s"].d, encoder=ENCODER_OF["s"].version)
    fresh = Trainer.of(through, policy_of("adaptive"))
    fresh.apply(log[:300])
    assert same_arrays(trainer.policy.state(), fresh.policy.state())


def test_a_newer_successor_ends_the_trial() -> None:
    trainer = learn(log_of(230, successor(190, NOISY), successor(210)), policy_of("adaptive")).trainer
    assert trainer.encoding["trial"]["encoder"] == ENCODER_OF["s"].version
    back = learn(
        log_of(230, successor(190, NOISY), successor(210, BLIND, declared=True)), policy_of("adaptive")
    ).trainer
    assert (back.encoding["trial"], back.encoding["swaps"]) == (None, 0)


def test_a_newer_successor_goes_on_with_the_lead_of_the_one_before() -> None:
    log = log_of(400, successor(200), successor(220, SEEING_MORE))
    trial = learn(log[:222], policy_of("adaptive")).trainer.encoding["trial"]
    assert trial["events"] == 20
    lead = trial["loss_before"] - trial["loss"]
    assert lead > 0
    assert learn(log[:223], policy_of("adaptive")).trainer.encoding["trial"]["lead"] == lead
    alone = learn([*log[:201], *log[202:]], policy_of("adaptive")).trainer
    led = learn(log, policy_of("adaptive")).trainer
    assert led.encoding["since"]["events"] <= alone.encoding["since"]["events"]


def test_a_newer_successor_does_not_begin_behind() -> None:
    log = log_of(260, successor(200, NOISY), successor(240))
    trial = learn(log[:241], policy_of("adaptive")).trainer.encoding["trial"]
    assert trial["loss"] > trial["loss_before"]
    assert learn(log, policy_of("adaptive")).trainer.encoding["trial"]["lead"] == 0.0


def test_a_policy_that_trains_in_batches_trains_anew_and_is_tried() -> None:
    small: dict[str, Any] = {"epochs": 20, "embedding_dim": 2, "hidden": [8, 8]}
    record = policy_of("embedding_mlp", **small)
    log = log_of(500, successor(300))
    asked: list[Entry] = [*log[:200], Training(f"{1000 + 199}-2", record.name, record.id), *log[200:]]
    trainer = learn(asked, record).trainer
    assert trainer.memory is None
    assert trainer.encoder == ENCODER_OF["s"].version


def test_of_a_long_log_the_newest_events_are_learned_again() -> None:
    assert learn(log_of(10), policy_of("adaptive")).trainer.memory == MEMORY


# ---- one log, one outcome


@pytest.mark.parametrize(
    ("kind", "params"),
    [
        ("adaptive", {"half_life": 300.0}),
        ("linucb", {"detect_change": True}),
        ("popularity", {}),
        ("lin_ts", {"detect_change": True}),
        ("recorder", {"every": 70}),
    ],
)
def test_neither_batches_nor_restarts_matter(
    kind: str, params: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two swaps and a trial that goes on, cut in any way."""
    monkeypatch.setitem(KINDS, "recorder", Recorder)
    log = log_of(900, successor(200), successor(500, NOISY, declared=True))
    log = [*log[:880], successor(878, SEEING_MORE, fitted=800), *log[880:892], successor(890, fitted=800), *log[892:]]
    record = policy_of(kind, retention=1000, **params)
    whole = learn(log, record)
    assert whole.trainer.encoding["swaps"] == 2
    assert whole.trainer.encoding["trial"] is not None
    assert kind == "popularity" or whole.trainer.encoding["trial"]["lead"] > 0
    for sizes, restart in (([19], True), ([7, 64, 3], False)):
        other = learn(log, record, sizes, restart=restart)
        assert same_arrays(whole.trainer.state(), other.trainer.state())
        assert whole.trainer.encoding == other.trainer.encoding
        assert whole.alarms == other.alarms


def test_the_encoder_that_served_does_not_matter() -> None:
    """Before a swap is published, and with a version pinned after it, events come in the other encoder's rows."""
    log = log_of(600, successor(200))
    rng = np.random.default_rng(0)
    other = [event(n, rng, encoder=ENCODER_OF["s"] if n % 3 else FIRST) for n in range(600)]
    mixed = [
        replace(entry, x=other[n].x, encoder=other[n].encoder) if isinstance(entry, Event) else entry
        for n, entry in zip([*range(201), 0, *range(201, 600)], log, strict=True)
    ]
    one, two = learn(log, policy_of("adaptive")).trainer, learn(mixed, policy_of("adaptive")).trainer
    assert same_arrays(one.state(), two.state())


@pytest.mark.parametrize(("kind", "moves"), [("lin_ts", False), ("squarecb", False), ("linucb", True)])
@pytest.mark.parametrize("declared", [False, True])
def test_a_policy_that_knows_items_by_their_rows_moves_to_no_fit_without_items(
    kind: str, moves: bool, declared: bool
) -> None:
    """It would expect the next events better, and show any item: its rows say who came, and not what is shown."""
    fitted = LearnedSchema(
        context={"noise": Levels(path="noise", levels=["a", "b"])},
        blocks=[Block(context=None, item=None, variance=4.0), Block(context="noise", item=None, variance=1.0)],
        own_of_items=[Block(context=None, item=None, variance=1.0)],
    )
    version, schema = LearnedEncoder(fitted).version, fitted.model_dump(mode="json")
    rng = np.random.default_rng(0)
    log: list[Entry] = [
        replace(one, reward=float(one.context["noise"] == "a")) for one in (event(number, rng) for number in range(300))
    ]
    log.insert(101, Successor("1100-1", version, schema, 100, "a test", declared=declared))
    trainer = learn(log, policy_of(kind)).trainer
    assert (trainer.encoder == version) == (moves or declared)


def test_events_of_the_version_before_are_learned_through_a_successor() -> None:
    """They have a row of the first encoder, and no features: the catalogue stands in."""
    log = log_of(300, successor(250, declared=True))
    old = [replace(e, encoder=None, features=None) if isinstance(e, Event) else e for e in log]
    catalogue = {"x": {"kind": "x"}, "y": {"kind": "y"}}
    trainer = Trainer.of(LOOP, policy_of("adaptive"))
    done = trainer.apply(old)
    assert done.successor is not None
    trainer.relearn([old[: done.read]], catalogue)
    trainer.apply(old[done.read :])
    assert same_arrays(trainer.policy.state(), learn(log, policy_of("adaptive")).trainer.policy.state())


def test_a_policy_made_later_begins_with_the_newest_encoder() -> None:
    log = log_of(400, successor(200), successor(300, NOISY))
    begun: dict[str, Any] = {"encoder": ENCODER_OF["s"].version, "position": "1200-1", "catalogue": 0}
    record = replace(policy_of("adaptive"), begun=begun)
    with pytest.raises(ValueError, match="began with"):
        Trainer.of(LOOP, record)
    trainer = Trainer.of(LOOP, record, {begun["encoder"]: SEEING})
    done = trainer.apply(log)
    assert done.successor is not None
    assert done.successor.position == "1300-1", "the one that it began with is passed over"
    assert trainer.encoder == begun["encoder"]
    assert trainer.events == 301


def test_blocks_end_where_they_would_after_a_takeover_within_a_batch() -> None:
    """The policy forgets at the end of each block of its own."""
    record = policy_of("popularity", half_life=100.0)
    for at in (190, 201, 207):
        log = log_of(400, successor(at))
        one, two = learn(log, record), learn(log, record, [1])
        assert one.trainer.encoding["swaps"] == 1
        assert same_arrays(one.trainer.state(), two.trainer.state())


# ---- alarms


def test_a_takeover_is_no_alarm_and_alarms_go_on() -> None:
    rng = np.random.default_rng(1)
    log: list[Entry] = [event(n, rng) for n in range(3000)]
    for number in range(2000, 3000):  # the world turns round
        found = log[number]
        assert isinstance(found, Event)
        log[number] = replace(found, reward=1.0 - found.reward if rng.random() < 0.9 else 0.0)
    log.insert(1501, successor(1500))
    calm = learn(log[:1900], policy_of("adaptive"))
    assert calm.trainer.encoding["swaps"] == 1
    assert calm.alarms == []
    after = learn(log, policy_of("adaptive"))
    assert after.alarms
    assert after.alarms[0]["events"] > 2000
