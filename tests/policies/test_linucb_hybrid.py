"""Checks hybrid LinUCB against Algorithm 2 of the paper, written out line by line, and against figures by hand."""

from __future__ import annotations

import numpy as np
import pytest

from service.policies.linucb import LinUCB, LinUCBParams
from service.policies.linucb_hybrid import LinUCBHybrid, LinUCBHybridParams
from tests.builders import Array, batch_of, candidates_of, estimates_of, scorer_of


def scores(policy: LinUCBHybrid, x: Array, items: str | list[str]) -> Array:
    return estimates_of(policy, x, items)[:, 0]


class Textbook:
    """Implements Algorithm 2, line by line, with z = x. The numbers are those of its lines. Both priors there are 1."""

    def __init__(self, d: int, params: LinUCBHybridParams) -> None:
        self.d, self.params = d, params
        self.A0, self.b0 = params.shared_ridge * np.eye(d), np.zeros(d)  # 2, 3
        self.A: dict[str, Array] = {}
        self.B: dict[str, Array] = {}
        self.b: dict[str, Array] = {}

    def arm(self, a: str) -> tuple[Array, Array, Array]:
        if a not in self.A:
            d = self.d
            self.A[a], self.B[a], self.b[a] = self.params.ridge * np.eye(d), np.zeros((d, d)), np.zeros(d)  # 8 to 10
        return self.A[a], self.B[a], self.b[a]

    def score(self, x: Array, a: str) -> float:
        z = x
        A, B, b = self.arm(a)
        beta = np.linalg.solve(self.A0, self.b0)  # 6
        theta = np.linalg.solve(A, b - B @ beta)  # 12
        Ax = np.linalg.solve(A, x)
        s = (
            z @ np.linalg.solve(self.A0, z)
            - 2 * z @ np.linalg.solve(self.A0, B.T @ Ax)
            + x @ Ax
            + x @ np.linalg.solve(A, B @ np.linalg.solve(self.A0, B.T @ Ax))
        )  # 13
        return float(z @ beta + x @ theta + self.params.alpha * np.sqrt(s))  # 14

    def update(self, x: Array, a: str, reward: float) -> None:
        z = x
        A, B, b = self.arm(a)
        self.A0 += B.T @ np.linalg.solve(A, B)  # 17
        self.b0 += B.T @ np.linalg.solve(A, b)  # 18
        A += np.outer(x, x)  # 19
        B += np.outer(x, z)  # 20
        b += reward * x  # 21
        self.A0 += np.outer(z, z) - B.T @ np.linalg.solve(A, B)  # 22
        self.b0 += reward * z - B.T @ np.linalg.solve(A, b)  # 23


@pytest.mark.parametrize(
    ("d", "alpha", "ridge", "shared_ridge"), [(1, 1.0, 1.0, 1.0), (5, 1.5, 1.0, 1.0), (12, 0.5, 30.0, 0.1)]
)
def test_scores_are_those_of_algorithm_2(d: int, alpha: float, ridge: float, shared_ridge: float) -> None:
    rng = np.random.default_rng(d)
    params = LinUCBHybridParams(alpha=alpha, ridge=ridge, shared_ridge=shared_ridge)
    policy, textbook = LinUCBHybrid(d, params), Textbook(d, params)
    items = [f"item-{i}" for i in range(7)]  # the last two are never chosen
    for size in (40, 1, 200):  # with a snapshot after each, so that later ones must keep up
        x = rng.uniform(-0.5, 0.5, (size, d)).astype(np.float32)
        chosen = [items[i] for i in rng.integers(0, 5, size)]
        reward = rng.integers(0, 2, size).astype(float).tolist()
        policy.update(batch_of(x, reward, chosen))
        for row in range(size):
            textbook.update(x[row].astype(np.float64), chosen[row], reward[row])
        served = rng.uniform(-0.5, 0.5, (7, d)).astype(np.float32)
        expected = [textbook.score(served[row].astype(np.float64), item) for row, item in enumerate(items)]
        np.testing.assert_allclose(scores(policy, served, items), expected, rtol=1e-8)


def test_by_hand() -> None:
    # One event of a at x = 1 with reward 1, both priors 1: A = 2, B = b = 1, A₀ = 1 + 1 - 1/2, b₀ = 1 - 1/2, so
    # β = 1/3 and θ_a = (1 - 1/3) / 2 = 1/3. s is 2/3 - 2/3 + 1/2 + 1/6 for a, and 2/3 + 1 for an item never seen.
    policy = LinUCBHybrid(1, LinUCBHybridParams(alpha=2.0, ridge=1.0, shared_ridge=1.0))
    policy.update(batch_of(np.ones((1, 1)), 1.0))
    np.testing.assert_allclose(policy.snapshot()["beta"], [1 / 3])
    expected = [2 / 3 + 2 * np.sqrt(2 / 3), 1 / 3 + 2 * np.sqrt(5 / 3)]
    np.testing.assert_allclose(scores(policy, np.ones((2, 1)), ["a", "new"]), expected)


def test_an_item_never_seen_is_served_by_what_the_others_taught() -> None:
    rng = np.random.default_rng(1)
    theta = np.array([0.9, 0.1, 0.4])
    x = rng.uniform(0, 0.5, (3000, 3)).astype(np.float32)
    policy = LinUCBHybrid(3, LinUCBHybridParams(alpha=0.0, ridge=100.0, shared_ridge=1.0))
    policy.update(batch_of(x, x @ theta, [f"item-{i % 10}" for i in range(3000)]))
    np.testing.assert_allclose(scores(policy, x[:50], "new"), x[:50] @ theta, atol=0.02)


def test_nothing_is_shared_when_the_shared_part_is_nailed_to_zero() -> None:
    """The scores are then those of disjoint LinUCB."""
    rng = np.random.default_rng(2)
    x = rng.uniform(-0.5, 0.5, (200, 4)).astype(np.float32)
    items = [f"item-{i}" for i in rng.integers(0, 5, 200)]
    policy = LinUCBHybrid(4, LinUCBHybridParams(alpha=0.7, ridge=2.0, shared_ridge=1e9))
    disjoint = LinUCB(4, LinUCBParams(alpha=0.7, ridge=2.0))
    for each in (policy, disjoint):
        each.update(batch_of(x, [1.0, 0.0] * 100, items))
    expected = estimates_of(disjoint, x, items)[:, 0]
    np.testing.assert_allclose(scores(policy, x, items), expected, atol=1e-8)


def test_an_item_gets_the_same_score_in_any_company() -> None:
    rng = np.random.default_rng(3)
    policy = LinUCBHybrid(32, LinUCBHybridParams())
    items = [f"item-{i}" for i in range(300)]
    x = rng.uniform(-0.5, 0.5, (300, 32)).astype(np.float32)
    policy.update(batch_of(x[:200], 1.0, items[:200]))
    scorer = scorer_of(policy)
    together = scorer.estimate(candidates_of(x, items))
    for row in range(0, 300, 17):
        assert scorer.estimate(candidates_of(x[row : row + 1], items[row]))[0, 0] == together[row, 0]


def test_forgetting_an_item_takes_its_evidence_out_of_the_shared_part() -> None:
    """The snapshot is then that of a policy that never saw the item."""
    x = np.random.default_rng(5).uniform(-0.5, 0.5, (60, 3))
    items = np.array([f"item-{i % 4}" for i in range(60)])
    policy, other = LinUCBHybrid(3, LinUCBHybridParams()), LinUCBHybrid(3, LinUCBHybridParams())
    policy.update(batch_of(x, x[:, 0], items.tolist()))
    before = policy.snapshot()
    policy.forget_items(["item-2"])
    stay = items != "item-2"
    other.update(batch_of(x[stay], x[stay, 0], items[stay].tolist()))
    after = policy.snapshot()
    for name, array in other.snapshot().items():
        assert after[name].tobytes() == array.tobytes(), name
    assert (before["beta"] != after["beta"]).all()


def test_many_events_leave_the_figures_of_one_float64_solve() -> None:
    """Compare with one regression on the columns of β followed by those of each item."""
    rng = np.random.default_rng(4)
    d, m, B = 3, 4, 20_000
    params = LinUCBHybridParams(alpha=0.0, ridge=3.0, shared_ridge=0.5)
    policy = LinUCBHybrid(d, params)
    x = rng.uniform(-0.5, 0.5, (B, d)).astype(np.float32)
    item = rng.integers(0, m, B)
    reward = rng.integers(0, 2, B).astype(float)
    policy.update(batch_of(x, reward, [f"item-{i}" for i in item]))
    wide = np.zeros((B, d * (m + 1)))
    wide[:, :d] = x
    for i in range(m):
        wide[item == i, d * (i + 1) : d * (i + 2)] = x[item == i]
    prior = np.diag(np.repeat([params.shared_ridge] + [params.ridge] * m, d))
    weights = np.linalg.solve(wide.T @ wide + prior, wide.T @ reward)
    shown = scores(policy, x[:100], [f"item-{i}" for i in item[:100]])
    np.testing.assert_allclose(shown, wide[:100] @ weights, rtol=1e-6)
