"""Checks what every policy promises, for every kind that is found and for the example package's.

A new policy file, or an installed package with one, is tested by being there.
"""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import nullcontext
from functools import cache
from itertools import pairwise
from typing import Any

import jsonschema_rs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import load, save

from service.policies import (
    KINDS,
    Arrays,
    Batch,
    Candidates,
    NumericalError,
    Policy,
    PolicyClass,
    Scorer,
    describe_kinds,
    part,
)
from service.policies.kinds import describe
from service.policies.popularity import Popularity
from tests.builders import batch_of, candidates_of, parts_of, scorer_of
from tests.policies.packages import kinds_with_example

Array = NDArray[Any]

D = 6
ITEMS = [f"item-{i}" for i in range(12)]
GONE = ["item-3", "never-seen", "item-0", "item-5"]  # no other id begins with one of these
FEATURES: dict[str, Callable[[Array], Array]] = {
    "plain": lambda x: x,
    "zero": lambda x: 0 * x,
    "constant": lambda x: 0 * x + 0.3,
    "collinear": lambda x: x[:, :1] * np.linspace(0.1, 1, D, dtype=np.float32),
    "huge": lambda x: 1e6 * x,
    "tiny": lambda x: 1e-6 * x,
    "huge and tiny": lambda x: x * np.array([1e6, 1e-6] * (D // 2), dtype=np.float32),
}

ALL = kinds_with_example()
every_kind = pytest.mark.parametrize("kind", ALL.values(), ids=ALL)
online = {name: kind for name, kind in ALL.items() if not kind.batch_trained}
learns_online = pytest.mark.parametrize("kind", online.values(), ids=online)
every_feature = pytest.mark.parametrize("shape", FEATURES)


def events(size: int, *, seed: int = 0, shape: str = "plain") -> Batch:
    """Draw events of 12 items and 20 users (some without one), with clicks and some rewards in between."""
    rng = np.random.default_rng(seed)
    return batch_of(
        x=FEATURES[shape](rng.uniform(-0.5, 0.5, (size, D)).astype(np.float32)),
        item=[ITEMS[i] for i in rng.integers(0, len(ITEMS), size)],
        user=[None if u == 0 else f"user-{u}" for u in rng.integers(0, 20, size)],
        reward=rng.choice([0.0, 1.0, 0.37], size),
        propensity=rng.uniform(0.1, 1.0, size),
    )


def requests(*, shape: str = "plain") -> Iterator[Candidates]:
    """Make requests with known and unknown items and users: one candidate, a few, 300."""
    rng = np.random.default_rng(99)
    for items in (ITEMS, ITEMS[:1], ["never-seen"], [*ITEMS[::-1], "never-seen"], [f"item-{i}" for i in range(300)]):
        for user in (None, "user-3", "nobody"):
            x = FEATURES[shape](rng.uniform(-0.5, 0.5, (len(items), D)).astype(np.float32))
            yield candidates_of(x, items, user=user)


def crowd(*, shape: str = "plain") -> Candidates:
    """Make a request with 10 000 candidates."""
    x = np.random.default_rng(98).uniform(-0.5, 0.5, (10_000, D)).astype(np.float32)
    return candidates_of(FEATURES[shape](x), user="user-3")


def fresh(kind: PolicyClass) -> Policy[Any]:
    return kind(D, kind.Params(), seed=7)


def learn(policy: Policy[Any], batch: Batch) -> None:
    """Learn in the way of the policy's kind."""
    policy.update(batch)
    if policy.batch_trained:
        policy.train(parts_of(batch, 300))


@cache
def state_after(kind: PolicyClass, size: int, shape: str) -> Arrays:
    policy = fresh(kind)
    learn(policy, events(size, shape=shape))
    return policy.state()


def taught(kind: PolicyClass, *, shape: str = "plain") -> Policy[Any]:
    """Make a policy that has learned 700 events, from a cached state."""
    policy = fresh(kind)
    policy.load({name: array.copy() for name, array in state_after(kind, 700, shape).items()})
    return policy


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
    """Collect all that can be seen of a scorer, bit for bit."""
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
    assert ALL.keys() == KINDS.keys() | {"greedy"}


@every_kind
@every_feature
def test_pmf_is_a_distribution(kind: PolicyClass, shape: str) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "matrix singular to working precision", RuntimeWarning)
        scorer = scorer_of(taught(kind, shape=shape))
    for request in (*requests(shape=shape), crowd(shape=shape)):
        check_pmf(scorer, request)


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


@learns_online
def test_a_reset_leaves_nothing_but_the_prior(kind: PolicyClass) -> None:
    """In mean and in uncertainty alike; keeping some of the one locks a policy in."""
    policy = taught(kind)
    policy.snapshot()
    policy.forget(0)
    for request in requests():
        reset, prior = scorer_of(policy).estimate(request), scorer_of(fresh(kind)).estimate(request)
        np.testing.assert_allclose(reset, prior, rtol=1e-12)


@learns_online
def test_forgotten_evidence_counts_for_less_and_less(kind: PolicyClass) -> None:
    policy = taught(kind)
    request = next(requests())
    prior = scorer_of(fresh(kind)).estimate(request)
    for _ in range(400):
        policy.forget(0.9)
    np.testing.assert_allclose(scorer_of(policy).estimate(request), prior, rtol=1e-6, atol=1e-9)


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
    """The estimates of one item in requests of its own, bit for bit."""
    scorer, x = scorer_of(policy), np.random.default_rng(97).uniform(-0.5, 0.5, (3, D))
    return b"".join(scorer.estimate(candidates_of(row[None], item)).tobytes() for row in x)


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


@every_kind
def test_a_kind_describes_itself_and_its_parameters(kind: PolicyClass) -> None:
    info = describe(kind)
    assert (info.kind, info.batch_trained, info.comparable) == (kind.kind, kind.batch_trained, kind.comparable)
    assert info.summary.endswith(".")
    assert 20 < len(info.summary) < 200
    jsonschema_rs.meta.validate(info.params)
    assert info.params["properties"].keys() == kind.Params.model_fields.keys()
    for name, schema in info.params["properties"].items():
        assert schema.get("description", "").endswith("."), name
        assert "default" in schema, name
    validator = jsonschema_rs.validator_for(info.params)
    assert validator.is_valid(kind.Params().model_dump(mode="json"))
    assert not validator.is_valid({"no_such_parameter": 1})


def test_all_kinds_are_described() -> None:
    assert [info.kind for info in describe_kinds()] == list(KINDS)


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
