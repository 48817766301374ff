"""A million updates, one after the other: what rounding has added up to, against a solve in float64 at the end.

make bench ARGS=tests/benchmarks/test_numerics.py            # about 3 minutes
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from service.policies import KINDS, Batch, Policy
from service.policies._base import part
from service.policies._linalg import unpack

Array = NDArray[Any]

EVENTS, D, ITEMS = 1_000_000, 16, 20
SHAPES = {
    "plain": np.ones(D),
    "huge and tiny": np.array([1e6, 1e-6] * (D // 2)),
    "collinear and constant": None,
}


def events(shape: str) -> Batch:
    rng = np.random.default_rng(0)
    x = rng.uniform(-0.25, 0.25, (EVENTS, D))
    scale = SHAPES[shape]
    if scale is None:
        x[:, 1], x[:, 2:4] = x[:, 0], 0.25
    else:
        x *= scale
    x = x.astype(np.float32)
    item = [f"item-{i}" for i in rng.integers(0, ITEMS, EVENTS)]
    reward = (rng.random(EVENTS) < 0.3).astype(np.float64)
    return Batch(x, item, [None] * EVENTS, reward, np.full(EVENTS, 0.5))


def off(found: Array, solved: Array) -> float:
    """The largest error, relative to the largest value."""
    return float(np.abs(found - solved).max() / np.abs(solved).max())


def solve(x: Array, reward: Array, policy: Policy) -> Array:
    """The ridge regression that the policy says it does, in one solve."""
    ridge = policy.params.model_dump()["ridge"]
    theta: Array = np.linalg.solve(x.T @ x + ridge * np.eye(D), x.T @ reward)
    return theta


@pytest.mark.parametrize("shape", SHAPES)
def test_a_million_updates(shape: str) -> None:
    batch = events(shape)
    x = batch.x.astype(np.float64)
    adaptive, lin_ts, linucb = (KINDS[kind](D, KINDS[kind].Params()) for kind in ("adaptive", "lin_ts", "linucb"))
    for policy in (adaptive, lin_ts, linucb):
        for start in range(0, EVENTS, 10_000):
            policy.update(part(batch, slice(start, start + 10_000)))

    # The covariance that ran along, and the one solved from the precision (of so many events none waits).
    precision, covariance = unpack(adaptive.state()["matrices"], D)
    scale = np.sqrt(np.diag(precision))
    solved = np.linalg.inv(precision / np.outer(scale, scale))
    running = covariance * np.outer(scale, scale)
    print(f"\n{shape}: adaptive's covariance is off by {off(running, solved):.0e}")
    assert off(running, solved) <= 1e-6

    expected = solve(x, batch.reward, lin_ts)
    served = lin_ts.snapshot()["mean"]
    print(f"{shape}: lin_ts' predictions are off by {off(x[:1000] @ served, x[:1000] @ expected):.0e}")
    assert off(x[:1000] @ served, x[:1000] @ expected) <= 1e-6

    snapshot = linucb.snapshot()
    mine = np.array([item == "item-3" for item in batch.item])
    its = solve(x[mine], batch.reward[mine], linucb)
    row = list(dict.fromkeys(batch.item)).index("item-3") + 1
    found = x[mine][:1000] @ snapshot["theta"][row]
    print(f"{shape}: linucb's predictions are off by {off(found, x[mine][:1000] @ its):.0e}")
    assert off(found, x[mine][:1000] @ its) <= 1e-6
    for policy in (adaptive, lin_ts, linucb):
        assert all(np.isfinite(a).all() for a in policy.snapshot().values() if a.dtype.kind == "f")
