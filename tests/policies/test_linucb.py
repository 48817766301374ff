"""Checks LinUCB against Algorithm 1 of the paper, written out line by line, and against figures by hand."""

from __future__ import annotations

import numpy as np
import pytest

from service.layout import Layout
from service.policies import KINDS, new_policy, new_scorer
from service.policies.linalg import psd_cholesky
from service.policies.linucb import LinUCB, LinUCBParams
from tests.builders import Array, batch_of, candidates_of, estimates_of, pmf_of, scorer_of


class Textbook:
    """Implements Algorithm 1, line by line."""

    def __init__(self, d: int, alpha: float, ridge: float) -> None:
        self.alpha = alpha
        self.A: dict[str, Array] = {}
        self.b: dict[str, Array] = {}
        self.A0, self.b0 = ridge * np.eye(d), np.zeros(d)

    def update(self, x: Array, item: str, reward: float) -> None:
        self.A[item] = self.A.get(item, self.A0) + np.outer(x, x)
        self.b[item] = self.b.get(item, self.b0) + reward * x

    def score(self, x: Array, item: str) -> float:
        A, b = self.A.get(item, self.A0), self.b.get(item, self.b0)
        return float(x @ np.linalg.solve(A, b) + self.alpha * np.sqrt(x @ np.linalg.solve(A, x)))


@pytest.mark.parametrize(("d", "alpha", "ridge"), [(1, 1.0, 1.0), (5, 1.5, 1.0), (32, 0.5, 0.01)])
def test_scores_are_those_of_algorithm_1(d: int, alpha: float, ridge: float) -> None:
    rng = np.random.default_rng(d)
    policy, textbook = LinUCB(d, LinUCBParams(alpha=alpha, ridge=ridge)), Textbook(d, alpha, ridge)
    items = [f"item-{i}" for i in range(7)]
    for size in (40, 1, 200):  # with a snapshot after each, so that later ones must keep up
        x = rng.uniform(-0.5, 0.5, (size, d)).astype(np.float32)
        chosen = [items[i] for i in rng.integers(0, 5, size)]
        reward = rng.integers(0, 2, size).astype(float).tolist()
        policy.update(batch_of(x, reward, chosen))
        for row in range(size):
            textbook.update(x[row].astype(np.float64), chosen[row], reward[row])
        served = rng.uniform(-0.5, 0.5, (7, d)).astype(np.float32)
        expected = [textbook.score(served[row].astype(np.float64), item) for row, item in enumerate(items)]
        np.testing.assert_allclose(estimates_of(policy, served, items)[:, 0], expected, rtol=1e-9)


def test_by_hand() -> None:
    # x = (1, 0) with reward 1, then x = (1, 0) with reward 0: A = diag(3, 1), b = (1, 0), θ = (1/3, 0).
    policy = LinUCB(2, LinUCBParams(alpha=2.0, ridge=1.0))
    policy.update(batch_of([[1, 0], [1, 0]], [1.0, 0.0]))
    snapshot = policy.snapshot()
    np.testing.assert_allclose(snapshot["theta"], [[0.0, 0.0], [1 / 3, 0.0]])
    np.testing.assert_allclose(snapshot["inverse"], [[1.0, 0.0, 1.0], [1 / 3, 0.0, 1.0]], atol=1e-15)
    scores = estimates_of(policy, [[1, 0], [0, 1], [3, 4]], ["a", "a", "new"])[:, 0]
    np.testing.assert_allclose(scores, [1 / 3 + 2 * np.sqrt(1 / 3), 2.0, 10.0])


def test_it_says_its_bounds() -> None:
    policy = LinUCB(2, LinUCBParams(alpha=2.0, ridge=1.0))
    policy.update(batch_of([[1, 0], [1, 0]], [1.0, 0.0]))
    bounds = scorer_of(policy).bounds(["new", "a"])
    assert bounds is not None
    assert bounds.width == 2.0
    np.testing.assert_allclose(bounds.models[bounds.rows[1]], [[1 / 3, 0.0], [0.0, 1.0], [1 / 3, 0.0]], atol=1e-15)
    np.testing.assert_allclose(bounds.models[bounds.rows[0]], [[1, 0], [0, 1], [0, 0]])


def test_the_best_score_takes_all_and_ties_share() -> None:
    assert pmf_of(LinUCB(2, LinUCBParams()), [[0.5, 0], [0, 0.5], [0.1, 0.1]]).tolist() == [0.5, 0.5, 0.0]


def test_an_item_gets_the_same_score_in_any_company() -> None:
    rng = np.random.default_rng(3)
    policy = LinUCB(32, LinUCBParams())
    items = [f"item-{i}" for i in range(300)]
    x = rng.uniform(-0.5, 0.5, (300, 32)).astype(np.float32)
    policy.update(batch_of(x, 1.0, items))
    scorer = scorer_of(policy)
    together = scorer.estimate(candidates_of(x, items))
    for row in range(0, 300, 17):
        assert scorer.estimate(candidates_of(x[row : row + 1], items[row]))[0, 0] == together[row, 0]
    backwards = scorer.estimate(candidates_of(x[::-1], items[::-1]))
    assert backwards[::-1].tobytes() == together.tobytes()


def test_only_items_seen_since_the_last_snapshot_are_solved_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    solved = []

    def counted(A: Array) -> Array:
        solved.append(len(A))
        return psd_cholesky(A)

    monkeypatch.setattr("service.policies.item_ridge.psd_cholesky", counted)
    policy = LinUCB(2, LinUCBParams())
    x = np.array([[0.5, 0.1], [0.5, 0.2]])
    policy.update(batch_of(x, 1.0, ["a", "b"]))
    before = policy.snapshot()
    policy.update(batch_of(x[:1], 0.0, "b"))
    after = policy.snapshot()
    policy.snapshot()
    assert solved == [2, 1]
    for name in ("theta", "inverse"):
        assert (before[name][:2] == after[name][:2]).all()  # the unknown item and a
        assert (before[name][2] != after[name][2]).any()


def test_forgetting_an_item_leaves_what_a_policy_has_that_never_saw_it() -> None:
    """Snapshots before do not matter."""
    x = np.random.default_rng(5).uniform(-0.5, 0.5, (40, 3))
    items = [f"item-{i % 5}" for i in range(40)]
    policy, other = LinUCB(3, LinUCBParams()), LinUCB(3, LinUCBParams())
    policy.update(batch_of(x[:20], 0.3, items[:20]))
    policy.snapshot()
    policy.update(batch_of(x[20:], 1.0, [*items[20:-1], "new"]))
    policy.forget_items(["item-1", "new"])
    stay = [row for row in range(39) if items[row] != "item-1"]
    other.update(batch_of(x[stay], np.where(np.array(stay) < 20, 0.3, 1.0), [items[row] for row in stay]))
    for mine, theirs in ((policy.state(), other.state()), (policy.snapshot(), other.snapshot())):
        for name, array in theirs.items():
            assert mine[name].tobytes() == array.tobytes(), name


def test_summary_counts_pulls() -> None:
    policy = LinUCB(1, LinUCBParams())
    names = [f"item-{i:02d}" for i in range(30)]
    policy.update(batch_of(np.ones((33, 1)), 0.0, ["item-29"] * 3 + names))
    summary = scorer_of(policy).summary()
    assert (summary["items"], summary["pulls"]) == (30, 33)
    assert list(summary["most_pulled"].items())[:2] == [("item-29", 4), ("item-00", 1)]
    assert len(summary["most_pulled"]) == 20


@pytest.mark.parametrize(("kind", "times"), [("linucb", 7.0), ("linucb_hybrid", 1.0)])
def test_a_ridge_means_the_same_on_rows_that_a_fitted_schema_makes(kind: str, times: float) -> None:
    """Columns that are √7 times shorter, with a seventh of the ridge, give the same scores."""
    rng = np.random.default_rng(7)
    x, items = rng.uniform(-0.5, 0.5, (60, 4)), [f"item-{i}" for i in range(5)]
    chosen, reward = [items[i] for i in rng.integers(0, 4, 60)], rng.integers(0, 2, 60).astype(float).tolist()
    layout = Layout(shared=4, of_item=0, of_user=0)
    scores = []
    for length, of_rows in ((1.0, None), (times**-0.5, layout)):
        params = KINDS[kind].Params()
        policy = new_policy(kind, 4, of_rows, params, seed=1)
        policy.update(batch_of((x * length).astype(np.float32), reward, chosen))
        scorer = new_scorer(kind, policy.snapshot(), 4, of_rows, params)
        scores.append(scorer.estimate(candidates_of((x[:5] * length).astype(np.float32), items))[:, 0])
    np.testing.assert_allclose(scores[0], scores[1], rtol=1e-5)
