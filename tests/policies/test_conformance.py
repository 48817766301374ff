"""What every policy promises, checked for every kind that is discovered: a new policy file is tested by being there."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load, save

from service.policies import KINDS, Arrays, Batch, Candidates, NumericalError, Policy, Scorer
from service.policies._base import greedy

D = 6
ITEMS = [f"item-{i}" for i in range(12)]
FEATURES = {
    "plain": lambda x: x,
    "zero": lambda x: 0 * x,
    "constant": lambda x: 0 * x + 0.3,
    "collinear": lambda x: x[:, :1] * np.linspace(0.1, 1, D, dtype=np.float32),
    "huge": lambda x: 1e6 * x,
    "tiny": lambda x: 1e-6 * x,
    "huge and tiny": lambda x: x * np.float32([1e6, 1e-6] * (D // 2)),
}

every_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
learns_online = pytest.mark.parametrize("kind", [kind for kind in KINDS.values() if not kind.batch_trained])
every_feature = pytest.mark.parametrize("shape", FEATURES)


def events(size: int, *, seed: int = 0, shape: str = "plain") -> Batch:
    """`size` events of 12 items and 20 users (some without one), with clicks and some rewards in between."""
    rng = np.random.default_rng(seed)
    return Batch(
        x=FEATURES[shape](rng.uniform(-0.5, 0.5, (size, D)).astype(np.float32)).astype(np.float32),
        item=[ITEMS[i] for i in rng.integers(0, len(ITEMS), size)],
        user=[None if u == 0 else f"user-{u}" for u in rng.integers(0, 20, size)],
        reward=rng.choice([0.0, 1.0, 0.37], size),
        propensity=rng.uniform(0.1, 1.0, size),
    )


def requests(*, shape: str = "plain") -> Iterator[Candidates]:
    """Known and unknown items and users; one candidate, a few, 10 000."""
    rng = np.random.default_rng(99)
    for items in (ITEMS, ITEMS[:1], ["never-seen"], [*ITEMS[::-1], "never-seen"], [f"item-{i}" for i in range(10_000)]):
        for user in (None, "user-3", "nobody"):
            x = FEATURES[shape](rng.uniform(-0.5, 0.5, (len(items), D)).astype(np.float32))
            yield Candidates(x.astype(np.float32), items, user)


def part(batch: Batch, rows: slice) -> Batch:
    return Batch(*(column[rows] for column in batch))


def fresh(kind: type[Policy]) -> Policy:
    return kind(D, kind.Params(), seed=7)


def learn(policy: Policy, batch: Batch) -> None:
    """By the way that its kind learns."""
    policy.update(batch)
    if policy.batch_trained:
        policy.train([part(batch, slice(start, start + 300)) for start in range(0, len(batch.item), 300)])


def taught(kind: type[Policy], *, shape: str = "plain") -> Policy:
    policy = fresh(kind)
    learn(policy, events(700, shape=shape))
    return policy


def scorer_of(policy: Policy, snapshot: Arrays | None = None) -> Scorer:
    return type(policy).scorer(policy.snapshot() if snapshot is None else snapshot, d=D, params=policy.params)


def check_pmf(scorer: Scorer, candidates: Candidates) -> None:
    n = len(candidates.item)
    estimates = scorer.estimate(candidates)
    assert estimates.shape[0] == n
    assert estimates.ndim == 2
    assert estimates.dtype == np.float64
    assert np.isfinite(estimates).all()
    rows = np.arange(n)
    for left in (rows, rows[1:], rows[n // 2 :]):  # a slate is drawn from what is left
        if len(left):
            pmf = scorer.pmf(estimates[left])
            assert pmf.shape == (len(left),)
            assert pmf.dtype == np.float64
            assert np.isfinite(pmf).all()
            assert (pmf >= 0).all()
            assert abs(pmf.sum() - 1) <= 1e-12


def answers(scorer: Scorer, *, shape: str = "plain") -> list[bytes]:
    """All that can be seen of a scorer, bit for bit."""
    return [scorer.estimate(request).tobytes() for request in requests(shape=shape)]


def assert_same(a: Arrays, b: Arrays) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype, name
        assert a[name].shape == b[name].shape, name
        assert a[name].tobytes() == b[name].tobytes(), name


def through_safetensors(arrays: Arrays) -> Arrays:
    loaded: Arrays = load(save(arrays))
    return loaded


def test_the_kinds_of_this_package_are_found() -> None:
    assert {"random", "popularity", "linucb", "embedding_mlp"} <= KINDS.keys()
    for name, kind in KINDS.items():
        assert kind.kind == name


@every_kind
@every_feature
def test_pmf_is_a_distribution(kind: type[Policy], shape: str) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "matrix singular to working precision", RuntimeWarning)
        scorer = scorer_of(taught(kind, shape=shape))
    for request in requests(shape=shape):
        check_pmf(scorer, request)


@every_kind
def test_learned_on_one_scale_served_on_another(kind: type[Policy]) -> None:
    scorer = scorer_of(taught(kind, shape="tiny"))
    for request in requests(shape="huge"):
        check_pmf(scorer, request)


@every_kind
def test_serves_before_it_has_learned(kind: type[Policy]) -> None:
    scorer = scorer_of(fresh(kind))
    for request in requests():
        check_pmf(scorer, request)
    assert isinstance(scorer.summary(), dict)


@every_kind
def test_no_events_and_one_event(kind: type[Policy]) -> None:
    for size in (0, 1):
        policy = fresh(kind)
        learn(policy, events(size))
        check_pmf(scorer_of(policy), next(requests()))


@every_kind
def test_deterministic_under_a_seed(kind: type[Policy]) -> None:
    one, other = taught(kind), taught(kind)
    assert_same(one.state(), other.state())
    assert_same(one.snapshot(), other.snapshot())
    assert answers(scorer_of(one)) == answers(scorer_of(other))


@every_kind
def test_snapshot_round_trips_bit_for_bit(kind: type[Policy]) -> None:
    policy = taught(kind)
    snapshot = policy.snapshot()
    loaded = through_safetensors(snapshot)
    assert_same(snapshot, loaded)
    assert answers(scorer_of(policy, snapshot)) == answers(scorer_of(policy, loaded))
    assert scorer_of(policy, snapshot).summary() == scorer_of(policy, loaded).summary()


@every_kind
@pytest.mark.parametrize("size", [0, 700])
def test_learning_goes_on_identically_after_a_load(kind: type[Policy], size: int) -> None:
    policy = fresh(kind)
    learn(policy, events(size))
    policy.snapshot()
    other = fresh(kind)
    other.load(through_safetensors(policy.state()))
    assert_same(policy.state(), other.state())
    assert_same(policy.snapshot(), other.snapshot())
    for seed in (1, 2):
        for each in (policy, other):
            learn(each, events(50, seed=seed))
        assert_same(policy.state(), other.state())
        assert_same(policy.snapshot(), other.snapshot())


@every_kind
def test_load_replaces_what_was_learned(kind: type[Policy]) -> None:
    policy = taught(kind)
    policy.snapshot()
    policy.load(fresh(kind).state())
    assert_same(policy.state(), fresh(kind).state())
    assert_same(policy.snapshot(), fresh(kind).snapshot())


@every_kind
@settings(max_examples=20, deadline=None)
@given(cuts=st.lists(st.integers(0, 200), max_size=8), publish=st.booleans())
def test_batch_update_equals_one_by_one(kind: type[Policy], cuts: list[int], publish: bool) -> None:
    batch = events(200)
    at_once, in_parts, one_by_one = fresh(kind), fresh(kind), fresh(kind)
    at_once.update(batch)
    bounds = [0, *sorted(cuts), 200]
    for start, stop in pairwise(bounds):
        in_parts.update(part(batch, slice(start, stop)))
        if publish:
            in_parts.snapshot()
    for row in range(200):
        one_by_one.update(part(batch, slice(row, row + 1)))
    for other in (in_parts, one_by_one):
        assert_same(at_once.state(), other.state())
        assert_same(at_once.snapshot(), other.snapshot())


@every_kind
def test_what_is_expected_is_a_number_for_each_event_whatever_the_batches(kind: type[Policy]) -> None:
    at_once, one_by_one = fresh(kind), fresh(kind)
    expected = at_once.update(events(200))
    each = [one_by_one.update(part(events(200), slice(row, row + 1))) for row in range(200)]
    if expected is None:
        assert set(map(type, each)) == {type(None)}
        return
    assert expected.shape == (200,)
    assert expected.dtype == np.float64
    assert np.isfinite(expected).all()
    assert expected.tobytes() == np.concatenate([one for one in each if one is not None]).tobytes()


@learns_online
def test_a_reset_leaves_nothing_but_the_prior(kind: type[Policy]) -> None:
    """In mean and in uncertainty alike; keeping some of the one locks a policy in."""
    policy = taught(kind)
    policy.snapshot()
    policy.forget(0)
    for request in requests():
        reset, prior = scorer_of(policy).estimate(request), scorer_of(fresh(kind)).estimate(request)
        np.testing.assert_allclose(reset, prior, rtol=1e-12)


@learns_online
def test_what_is_forgotten_counts_for_less_and_less(kind: type[Policy]) -> None:
    policy = taught(kind)
    request = next(requests())
    prior = scorer_of(fresh(kind)).estimate(request)
    for _ in range(400):
        policy.forget(0.9)
    np.testing.assert_allclose(scorer_of(policy).estimate(request), prior, rtol=1e-6, atol=1e-9)


@every_kind
def test_forgetting_goes_on_identically_after_a_load(kind: type[Policy]) -> None:
    policy, other = taught(kind), fresh(kind)
    policy.forget(0.7)
    other.load(through_safetensors(policy.state()))
    assert_same(policy.snapshot(), other.snapshot())
    for each in (policy, other):
        each.forget(0.5)
        learn(each, events(50, seed=1))
    assert_same(policy.state(), other.state())
    assert_same(policy.snapshot(), other.snapshot())


@every_kind
def test_updates_change_neither_a_scorer_nor_what_was_handed_out(kind: type[Policy]) -> None:
    policy = taught(kind)
    state, snapshot = policy.state(), policy.snapshot()
    before = {name: array.copy() for name, array in state.items()}, {name: a.copy() for name, a in snapshot.items()}
    scorer = scorer_of(policy, snapshot)
    said = answers(scorer)
    for seed in (1, 2):
        learn(policy, events(100, seed=seed))
        policy.snapshot()
    assert_same(state, before[0])
    assert_same(snapshot, before[1])
    assert answers(scorer) == said


@every_kind
def test_scorer_keeps_its_own_arrays(kind: type[Policy]) -> None:
    policy = taught(kind)
    snapshot = policy.snapshot()
    scorer = scorer_of(policy, snapshot)
    said = answers(scorer)
    for array in snapshot.values():
        array.fill(1)
    assert answers(scorer) == said


@every_kind
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_scorer_refuses_arrays_that_are_not_finite(kind: type[Policy], poison: float) -> None:
    policy = taught(kind)
    for name, array in policy.snapshot().items():
        if array.dtype.kind == "f":
            for at in (0, -1):
                bad = array.copy()
                bad.flat[at] = poison
                with pytest.raises(ValueError, match=name):
                    scorer_of(policy, {**policy.snapshot(), name: bad})


@every_kind
def test_scorer_refuses_arrays_that_are_missing_or_misshapen(kind: type[Policy]) -> None:
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
def test_a_poisoned_update_is_refused_and_changes_nothing(kind: type[Policy], where: str, poison: float) -> None:
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
def test_only_batch_trained_kinds_train(kind: type[Policy]) -> None:
    with pytest.raises(NotImplementedError):
        fresh(kind).train([events(10)])


@every_kind
def test_unknown_parameters_and_bad_ones_are_refused(kind: type[Policy]) -> None:
    with pytest.raises(ValueError, match="no_such_knob"):
        kind.Params.model_validate({"no_such_knob": 1})
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

    def estimate(self, candidates: Candidates) -> Any:
        return np.zeros((len(candidates.item), 1))

    def pmf(self, estimates: Any) -> Any:
        return (estimates[:, 0] == estimates[:, 0].max()).astype(np.float64)


def test_the_check_of_the_pmf_can_fail() -> None:
    request = next(requests())
    assert len(request.item) > 1
    with pytest.raises(AssertionError):
        check_pmf(Broken(), request)


def test_greedy_shares_ties() -> None:
    assert greedy(np.array([0.1, 0.5, 0.5, 0.2])).tolist() == [0, 0.5, 0.5, 0]
