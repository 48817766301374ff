"""Checks what every policy promises about serving, learning and saving."""

from __future__ import annotations

import subprocess
import sys
import warnings
from contextlib import nullcontext
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.policies import KINDS, Arrays, Candidates, NumericalError, PolicyClass, Scorer, part
from tests.builders import Array, parts_of, scorer_of
from tests.policies.conformance import (
    ALL,
    GONE,
    answers,
    assert_same,
    check_bounds,
    check_pmf,
    crowd,
    events,
    every_feature,
    every_kind,
    fresh,
    learn,
    learns_online,
    requests,
    taught,
    through_safetensors,
)


def test_the_kinds_of_this_package_are_found() -> None:
    assert {"random", "popularity", "linucb", "embedding_mlp"} <= KINDS.keys()
    for name, kind in KINDS.items():
        assert kind.kind == name
    assert ALL.keys() == KINDS.keys() | {"greedy", "adaptive on layers"}


@every_kind
@every_feature
def test_pmf_is_a_distribution(kind: PolicyClass, shape: str) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "matrix singular to working precision", RuntimeWarning)
        scorer = scorer_of(taught(kind, shape=shape))
    for request in (*requests(shape=shape), crowd(shape=shape)):
        check_pmf(scorer, request)
        if shape == "plain":
            check_bounds(scorer, request)


@every_kind
def test_learned_on_one_scale_served_on_another(kind: PolicyClass) -> None:
    scorer = scorer_of(taught(kind, shape="tiny"))
    for request in (*requests(shape="huge"), crowd(shape="huge")):
        check_pmf(scorer, request)


@every_kind
def test_serves_before_it_has_learned(kind: PolicyClass) -> None:
    scorer = scorer_of(fresh(kind))
    for request in (*requests(), crowd()):
        check_pmf(scorer, request)
    assert isinstance(scorer.summary(), dict)


@every_kind
def test_no_events_and_one_event(kind: PolicyClass) -> None:
    for size in (0, 1):
        policy = fresh(kind)
        learn(policy, events(size))
        check_pmf(scorer_of(policy), next(requests()))


@every_kind
def test_deterministic_under_a_seed(kind: PolicyClass) -> None:
    one, other = fresh(kind), fresh(kind)
    for policy in (one, other):
        learn(policy, events(400))
    assert_same(one.state(), other.state())
    assert_same(one.snapshot(), other.snapshot())
    assert answers(scorer_of(one)) == answers(scorer_of(other))


@every_kind
def test_snapshot_round_trips_bit_for_bit(kind: PolicyClass) -> None:
    policy = taught(kind)
    snapshot = policy.snapshot()
    loaded = through_safetensors(snapshot)
    assert_same(snapshot, loaded)
    assert answers(scorer_of(policy, snapshot)) == answers(scorer_of(policy, loaded))
    assert scorer_of(policy, snapshot).summary() == scorer_of(policy, loaded).summary()


@every_kind
@pytest.mark.parametrize("size", [0, 700])
def test_learning_goes_on_identically_after_a_load(kind: PolicyClass, size: int) -> None:
    policy = fresh(kind)
    learn(policy, events(size))
    policy.snapshot()
    state = through_safetensors(policy.state())
    other = fresh(kind)
    other.load(state)
    assert_same(policy.state(), other.state())
    assert_same(policy.snapshot(), other.snapshot())
    before = {name: array.copy() for name, array in state.items()}
    for seed in (1, 2):
        for each in (policy, other):
            learn(each, events(50, seed=seed))
        assert_same(policy.state(), other.state())
        assert_same(policy.snapshot(), other.snapshot())
    assert_same(state, before)  # loaded by copy


@every_kind
def test_load_replaces_what_was_learned(kind: PolicyClass) -> None:
    policy = taught(kind)
    policy.snapshot()
    policy.load(fresh(kind).state())
    assert_same(policy.state(), fresh(kind).state())
    assert_same(policy.snapshot(), fresh(kind).snapshot())


@cache
def at_once(kind: PolicyClass) -> tuple[Arrays, Arrays]:
    """State and snapshot after 200 events in one batch."""
    policy = fresh(kind)
    policy.update(events(200))
    return policy.state(), policy.snapshot()


@every_kind
@settings(max_examples=10, deadline=None)
@given(cuts=st.lists(st.integers(0, 200), max_size=8), publish=st.booleans())
def test_batch_update_equals_update_in_parts(kind: PolicyClass, cuts: list[int], publish: bool) -> None:
    batch, policy = events(200), fresh(kind)
    for start, stop in pairwise([0, *sorted(cuts), 200]):
        policy.update(part(batch, slice(start, stop)))
        if publish:
            policy.snapshot()
    assert_same(at_once(kind)[0], policy.state())
    assert_same(at_once(kind)[1], policy.snapshot())


@every_kind
def test_batch_update_equals_one_by_one_and_expects_the_same(kind: PolicyClass) -> None:
    one_by_one, expected = fresh(kind), fresh(kind).update(events(200))
    each = [one_by_one.update(event) for event in parts_of(events(200), 1)]
    assert_same(at_once(kind)[0], one_by_one.state())
    assert_same(at_once(kind)[1], one_by_one.snapshot())
    if expected is None:
        assert set(map(type, each)) == {type(None)}
        return
    assert expected.shape == (200,)
    assert expected.dtype == np.float64
    assert np.isfinite(expected).all()
    assert expected.tobytes() == np.concatenate([one for one in each if one is not None]).tobytes()


@every_kind
def test_expected_is_what_update_returns_and_learns_nothing_if_comparable(kind: PolicyClass) -> None:
    policy, batch = taught(kind), events(30, seed=1)
    if not kind.comparable:
        with pytest.raises(NotImplementedError):
            policy.expected(batch)
        return
    state = policy.state()
    together = policy.expected(batch)
    assert together.tobytes() == np.concatenate([policy.expected(event) for event in parts_of(batch, 1)]).tobytes()
    assert_same(policy.state(), state)
    first = policy.update(part(batch, slice(0, 1)))
    assert first is not None
    np.testing.assert_allclose(together[:1], first, rtol=1e-12)


@every_kind
def test_updates_change_neither_a_scorer_nor_what_was_handed_out(kind: PolicyClass) -> None:
    policy = taught(kind)
    state, snapshot = policy.state(), policy.snapshot()
    before = {name: array.copy() for name, array in state.items()}, {name: a.copy() for name, a in snapshot.items()}
    scorer = scorer_of(policy, snapshot)
    said = answers(scorer)
    for seed in (1, 2):
        learn(policy, events(100, seed=seed))
        policy.snapshot()
    policy.forget_items(GONE)
    policy.forget(0.5)
    assert_same(state, before[0])
    assert_same(snapshot, before[1])
    assert answers(scorer) == said


@every_kind
def test_scorer_keeps_its_own_arrays(kind: PolicyClass) -> None:
    policy = taught(kind)
    snapshot = policy.snapshot()
    scorer = scorer_of(policy, snapshot)
    said = answers(scorer)
    for array in snapshot.values():
        array.fill(1)
    assert answers(scorer) == said


@every_kind
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_scorer_refuses_arrays_that_are_not_finite(kind: PolicyClass, poison: float) -> None:
    policy = taught(kind)
    snapshot = policy.snapshot()
    for name, array in snapshot.items():
        if array.dtype.kind == "f":
            for at in (0, -1):
                bad = array.copy()
                bad.flat[at] = poison
                with pytest.raises(ValueError, match=name):
                    scorer_of(policy, {**snapshot, name: bad})


@every_kind
def test_scorer_refuses_arrays_that_are_missing_or_misshapen(kind: PolicyClass) -> None:
    policy = taught(kind)
    snapshot = policy.snapshot()
    for name, array in snapshot.items():
        with pytest.raises(ValueError, match=name):
            scorer_of(policy, {other: snapshot[other] for other in snapshot if other != name})
        for bad in (array[:-1], array[None], np.concatenate([array, array])):
            with pytest.raises(ValueError, match=r"\w"):  # ids cut short are garbled JSON
                scorer_of(policy, {**snapshot, name: bad})


@every_kind
@pytest.mark.parametrize("poison", [np.nan, np.inf])
@pytest.mark.parametrize("where", ["reward", "x"])
def test_a_poisoned_update_is_refused_and_changes_nothing(kind: PolicyClass, where: str, poison: float) -> None:
    policy = taught(kind)
    state, snapshot = policy.state(), policy.snapshot()
    batch = events(30, seed=1)
    other = taught(kind)
    learn(other, batch)
    learns = any(other.state()[name].tobytes() != array.tobytes() for name, array in state.items())
    getattr(batch, where)[20] = poison  # the events before it are good
    with pytest.raises(NumericalError) if learns else nullcontext():
        learn(policy, batch)
    assert_same(policy.state(), state)
    assert_same(policy.snapshot(), snapshot)


@learns_online
def test_only_batch_trained_kinds_train(kind: PolicyClass) -> None:
    with pytest.raises(NotImplementedError):
        fresh(kind).train([events(10)])


@every_kind
def test_unknown_parameters_and_bad_ones_are_refused(kind: PolicyClass) -> None:
    with pytest.raises(ValueError, match="no_such_parameter"):
        kind.Params.model_validate({"no_such_parameter": 1})
    for name in kind.Params.model_fields:
        with pytest.raises(ValueError, match=name):
            kind.Params.model_validate({name: "many"})


def test_the_serving_half_works_without_torch() -> None:
    code = """
import sys
sys.modules["torch"] = None  # importing it fails from here on
import numpy as np
from service.policies import KINDS, Candidates
for kind in KINDS.values():
    policy = kind(3, kind.Params())
    scorer = kind.scorer(policy.snapshot(), d=3, params=policy.params)
    scorer.pmf(scorer.estimate(Candidates(np.ones((2, 3), np.float32), ["a", "b"], "u")))
print(*KINDS)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == list(KINDS)


class Broken(Scorer):
    """Greedy, but forgets to share ties: what the check of the pmf is for."""

    def estimate(self, candidates: Candidates) -> Array:
        return np.zeros((len(candidates.item), 1))

    def pmf(self, estimates: Array) -> Array:
        pmf: Array = (estimates[:, 0] == estimates[:, 0].max()).astype(np.float64)
        return pmf


def test_the_check_of_the_pmf_can_fail() -> None:
    request = next(requests())
    assert len(request.item) > 1
    with pytest.raises(AssertionError):
        check_pmf(Broken(), request)
