"""Holds what the conformance suite is made of: the kinds, their events and requests, and the checks.

The kinds are all that are found, and the example package's. A new policy file, or an installed package with one, is
tested by being there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load, save

from service.layout import Layout
from service.policies import Arrays, Batch, Candidates, Policy, PolicyClass, Scorer
from service.policies.adaptive_layers import AdaptiveOnLayers, AdaptiveParams
from tests.builders import Array, batch_of, candidates_of, parts_of
from tests.policies.packages import kinds_with_example

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


class OnLayers(AdaptiveOnLayers):
    """The default policy on rows of three layers of two columns, made as the other kinds are."""

    kind = "adaptive on layers"

    def __init__(self, d: int, params: AdaptiveParams, *, seed: int = 0) -> None:
        super().__init__(Layout(d // 3, d // 3, d - 2 * (d // 3)), params, seed=seed)

    def fresh(self) -> OnLayers:
        return OnLayers(self.d, self.params, seed=self.seed)


ALL: dict[str, PolicyClass] = {**kinds_with_example(), OnLayers.kind: OnLayers}
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


def check_bounds(scorer: Scorer, candidates: Candidates) -> None:
    """Check that the bounds of a scorer that says any are what it computes."""
    bounds = scorer.bounds(candidates.item)
    if bounds is not None:
        x, models = candidates.x.astype(np.float64), bounds.models[bounds.rows]
        variance = np.einsum("ni,nij,nj->n", x, models[:, :-1], x)
        expected = np.einsum("ni,ni->n", x, models[:, -1]) + bounds.width * np.sqrt(variance)
        np.testing.assert_allclose(scorer.estimate(candidates)[:, 0], expected, rtol=1e-9)


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
