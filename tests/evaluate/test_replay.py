"""Replays: the same decision bit for bit from its record, and arrays that are the same to the byte."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from service.decide.active import UNIFORM, ActiveLoop, ServedPolicy
from service.decide.catalogue import Catalogue
from service.decide.decision import Request, decide
from service.evaluate.replay import same_decision
from service.learn.trainer import Trainer
from service.policies import KINDS, Array, same_arrays
from service.records import Decision, LoopRecord
from service.represent.encoder import Encoder
from service.represent.schema import FeatureSchema
from service.store.codec import decision_bytes, read_decision
from tests.builders import event_of, loop_of, policy_of

ENCODER = Encoder(FeatureSchema())
ITEMS = {f"p{i}": {"category": "ab"[i % 2], "price": i} for i in range(12)}
CATALOGUE = Catalogue.of(3, ITEMS, ENCODER)
LOOP = loop_of("shop", d=ENCODER.d, exploration_floor=0.1, reward_range=(-1, 4), default_reward=0)


def served(kind: str, events: int = 40) -> ServedPolicy:
    """Serve what a policy has learned from so many events."""
    record = policy_of(kind)
    trainer = Trainer.of(LOOP, record)
    rng = np.random.default_rng(1)
    trainer.apply([event_of(n, item=f"p{n % 12}", x=rng.normal(size=ENCODER.d) / 5) for n in range(events)])
    scorer = KINDS[kind].scorer(trainer.policy.snapshot(), d=ENCODER.d, params=trainer.policy.params)
    return ServedPolicy(kind, record.id, 7, scorer)


LINUCB = served("linucb")


def decided(by: ServedPolicy, request: Request, loop: LoopRecord = LOOP) -> Decision:
    active = ActiveLoop(loop.name, loop.id, loop.settings, ENCODER, CATALOGUE, {}, {}, loop.epoch)
    decision, _ = decide(request, active, at=1_700_000_000.25, served=by)
    return read_decision(decision_bytes(decision))  # as it comes from the ledger


def request_of(decision_id: str = "d", **changes: Any) -> Request:
    parts = {"user_id": "u", "context": {"hour": 3}, "candidates": None, "exclude": (), "k": 2, **changes}
    return Request(decision_id=decision_id, **parts)


REQUESTS = [
    request_of(),
    request_of(user_id=None, k=1),
    request_of(exclude=["p0", "p1", "nobody"], k=5),
    request_of(candidates=[("p3", None), ("guest", {"category": "a"}), ("unknown", None)], k=3),
    request_of(context={}),
]


@pytest.mark.parametrize("request_", REQUESTS)
@pytest.mark.parametrize("kind", ["adaptive", "linucb", "lin_ts", "popularity"])
def test_a_decision_comes_out_the_same_from_its_record(kind: str, request_: Request) -> None:
    by = LINUCB if kind == "linucb" else served(kind)
    decision = decided(by, request_)
    assert same_decision(decision, LOOP, ENCODER, CATALOGUE, by)


def test_a_decision_of_no_policy_comes_out_the_same() -> None:
    assert same_decision(decided(UNIFORM, request_of()), LOOP, ENCODER, CATALOGUE, UNIFORM)


def test_the_exploration_floor_is_that_of_then() -> None:
    decision = decided(LINUCB, request_of())
    now = replace(LOOP, settings=LOOP.settings.model_copy(update={"exploration_floor": 0.9}))
    assert same_decision(decision, now, ENCODER, CATALOGUE, LINUCB)


def tampered(decision: Decision) -> dict[str, Decision]:
    """Change one thing in a record, each time another."""
    first, second = decision.items
    return {
        "score": replace(decision, items=(replace(first, score=math.nextafter(first.score, 9)), second)),
        "propensity": replace(decision, items=(replace(first, propensity=math.nextafter(first.propensity, 0)), second)),
        "order": replace(decision, items=(second, first)),
        "shorter slate": replace(decision, items=(first,)),
        "n": replace(decision, n=decision.n + 1),
        "seed": replace(decision, seed="0" * 16),
        "policy": replace(decision, policy="another"),
        "version": replace(decision, version=8),
        "context": replace(decision, context={"hour": 4}),
        "exclude": replace(decision, exclude=[first.id]),
        "decision_id": replace(decision, decision_id="another"),
        "floor": replace(decision, exploration_floor=0.2),
        "catalogue": replace(decision, catalogue=4),
    }


@pytest.mark.parametrize("what", tampered(decided(LINUCB, request_of())))
def test_a_record_that_was_tampered_with_is_found_out(what: str) -> None:
    decision = decided(LINUCB, request_of())
    assert same_decision(decision, LOOP, ENCODER, CATALOGUE, LINUCB)
    assert not same_decision(tampered(decision)[what], LOOP, ENCODER, CATALOGUE, LINUCB)


def test_another_version_of_the_policy_is_found_out() -> None:
    decision = decided(LINUCB, request_of())
    assert not same_decision(decision, LOOP, ENCODER, CATALOGUE, served("linucb", events=52))


A = np.array([1.0, -0.0, np.nan])


@pytest.mark.parametrize(
    ("other", "same"),
    [
        ({"a": A.copy()}, True),
        ({"a": np.array([1.0, 0.0, np.nan])}, False),  # -0.0 == 0.0, but they are not the same bytes
        ({"a": np.nextafter(A, 2)}, False),
        ({"a": A.astype(np.float32)}, False),
        ({"a": A.reshape(3, 1)}, False),
        ({"a": A, "b": A}, False),
        ({"b": A}, False),
        ({}, False),
    ],
)
def test_arrays_are_the_same_to_the_byte_or_not(other: dict[str, Array], same: bool) -> None:
    assert same_arrays({"a": A}, other) is same
    assert same_arrays(other, {"a": A}) is same
