"""Checks what every policy promises about forgetting: evidence by its age, and items by their ids."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import pytest

from service.policies import KINDS, Policy, PolicyClass
from service.policies.popularity import Popularity
from tests.builders import Array, batch_of, candidates_of, scorer_of
from tests.policies.conformance import (
    ALL,
    GONE,
    ITEMS,
    D,
    assert_same,
    check_pmf,
    events,
    every_kind,
    fresh,
    learn,
    learns_online,
    requests,
    taught,
    through_safetensors,
)


def known(estimates: Array) -> Array:
    """Return what is known of candidates: score, value and uncertainty. Further columns say how they vary together."""
    return estimates[:, :3]


@learns_online
def test_a_reset_leaves_nothing_but_the_prior(kind: PolicyClass) -> None:
    """In mean and in uncertainty alike; keeping some of the one locks a policy in."""
    policy = taught(kind)
    policy.snapshot()
    policy.forget(0)
    for request in requests():
        reset, prior = (known(scorer_of(each).estimate(request)) for each in (policy, fresh(kind)))
        np.testing.assert_allclose(reset, prior, rtol=1e-6, atol=1e-12)  # some scorers compute in float32


@learns_online
def test_forgotten_evidence_counts_for_less_and_less(kind: PolicyClass) -> None:
    policy = taught(kind)
    request = next(requests())
    prior = known(scorer_of(fresh(kind)).estimate(request))
    for _ in range(400):
        policy.forget(0.9)
    np.testing.assert_allclose(known(scorer_of(policy).estimate(request)), prior, rtol=1e-6, atol=1e-9)


@every_kind
def test_forgetting_goes_on_identically_after_a_load(kind: PolicyClass) -> None:
    policy, other = taught(kind), fresh(kind)
    policy.forget(0.7)
    other.load(through_safetensors(policy.state()))
    assert_same(policy.snapshot(), other.snapshot())
    for each in (policy, other):
        each.forget(0.5)
        learn(each, events(50, seed=1))
    assert_same(policy.state(), other.state())
    assert_same(policy.snapshot(), other.snapshot())


def alone(policy: Policy[Any], item: str) -> bytes:
    """What is known of one item in requests of its own, bit for bit."""
    scorer, x = scorer_of(policy), np.random.default_rng(97).uniform(-0.5, 0.5, (3, D))
    return b"".join(known(scorer.estimate(candidates_of(row[None], item))).tobytes() for row in x)


def check_forgotten(policy: Policy[Any], gone: Collection[str]) -> None:
    for arrays in (policy.state(), policy.snapshot()):
        for name, array in arrays.items():
            assert not [item for item in gone if item.encode() in array.tobytes()], name
    assert {alone(policy, item) for item in gone} == {alone(policy, "not-seen-either")}


@every_kind
def test_a_forgotten_item_leaves_no_trace_and_is_as_never_seen(kind: PolicyClass) -> None:
    policy = taught(kind)
    policy.snapshot()
    policy.forget_items(GONE)
    check_forgotten(policy, GONE)
    check_pmf(scorer_of(policy), candidates_of(np.full((12, D), 0.1), ITEMS))


@every_kind
@pytest.mark.parametrize("published", [True, False])
def test_forgetting_items_leaves_the_others_where_nothing_is_shared(kind: PolicyClass, published: bool) -> None:
    """A kind keeps items apart if an event of one item changes the estimates of no other."""
    policy, others = taught(kind), [item for item in [*ITEMS, "not-seen-either"] if item not in GONE]
    before = [alone(policy, item) for item in others]
    learn(policy, batch_of(np.full((1, D), 0.4), 1.0, GONE[0]))
    apart = [alone(policy, item) for item in others] == before
    assert apart >= (kind in (KINDS["linucb"], KINDS["popularity"], ALL["greedy"]))
    policy = taught(kind)
    if published:
        policy.snapshot()
    policy.forget_items(GONE)
    assert ([alone(policy, item) for item in others] == before) >= apart


@every_kind
@pytest.mark.parametrize("gone", [GONE, ITEMS], ids=["some", "all"])
def test_learning_goes_on_identically_after_items_were_forgotten(kind: PolicyClass, gone: list[str]) -> None:
    policy, other = taught(kind), fresh(kind)
    learn(policy, events(5, seed=3))  # in the middle of a block, with items that no snapshot has had
    policy.forget_items(gone)
    other.load(through_safetensors(policy.state()))
    assert_same(policy.state(), other.state())
    assert_same(policy.snapshot(), other.snapshot())
    for each in (policy, other):
        learn(each, events(150, seed=1))  # in which forgotten items return
        assert_same(each.snapshot(), each.snapshot())
    assert_same(policy.state(), other.state())
    assert_same(policy.snapshot(), other.snapshot())
    check_pmf(scorer_of(policy), next(requests()))


@every_kind
def test_forgetting_unknown_items_changes_nothing(kind: PolicyClass) -> None:
    policy = taught(kind)
    state, snapshot = policy.state(), policy.snapshot()
    for gone in ([], ["never-seen"], {"neither-this": 1}):
        policy.forget_items(gone)
    assert_same(policy.state(), state)
    assert_same(policy.snapshot(), snapshot)
    fresh(kind).forget_items(ITEMS)


def test_the_check_of_forgotten_items_can_fail() -> None:
    class Remembers(Popularity):
        def forget_items(self, gone: Collection[str]) -> None:
            pass

    policy = Remembers(D, Remembers.Params())
    policy.update(events(50))
    policy.forget_items(GONE)
    with pytest.raises(AssertionError):
        check_forgotten(policy, GONE)
