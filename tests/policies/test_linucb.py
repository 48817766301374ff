"""LinUCB against Algorithm 1 of the paper written out plainly, and against figures worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from service.policies import Batch, Candidates
from service.policies._linalg import psd_cholesky
from service.policies.linucb import LinUCB, LinUCBParams, LinUCBScorer


def batch_of(x: np.ndarray, item: list[str], reward: list[float]) -> Batch:
    return Batch(x.astype(np.float32), item, [None] * len(item), np.array(reward), np.ones(len(item)))


def scorer_of(policy: LinUCB) -> LinUCBScorer:
    return LinUCB.scorer(policy.snapshot(), d=policy.d, params=policy.params)


class Textbook:
    """Algorithm 1, line by line."""

    def __init__(self, d: int, alpha: float, ridge: float) -> None:
        self.alpha, self.A, self.b = alpha, {}, {}
        self.A0, self.b0 = ridge * np.eye(d), np.zeros(d)

    def update(self, x: np.ndarray, item: str, reward: float) -> None:
        self.A[item] = self.A.get(item, self.A0) + np.outer(x, x)
        self.b[item] = self.b.get(item, self.b0) + reward * x

    def score(self, x: np.ndarray, item: str) -> float:
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
        policy.update(batch_of(x, chosen, reward))
        for row in range(size):
            textbook.update(x[row].astype(np.float64), chosen[row], reward[row])
        served = rng.uniform(-0.5, 0.5, (7, d)).astype(np.float32)
        expected = [textbook.score(served[row].astype(np.float64), item) for row, item in enumerate(items)]
        estimates = scorer_of(policy).estimate(Candidates(served, items, None))
        np.testing.assert_allclose(estimates[:, 0], expected, rtol=1e-9)


def test_by_hand() -> None:
    # x = (1, 0) with reward 1, then x = (1, 0) with reward 0: A = diag(3, 1), b = (1, 0), θ = (1/3, 0).
    policy = LinUCB(2, LinUCBParams(alpha=2.0, ridge=1.0))
    policy.update(batch_of(np.array([[1, 0], [1, 0]]), ["a", "a"], [1.0, 0.0]))
    snapshot = policy.snapshot()
    np.testing.assert_allclose(snapshot["theta"], [[0, 0], [1 / 3, 0]])
    np.testing.assert_allclose(snapshot["inverse"], [[1, 0, 1], [1 / 3, 0, 1]], atol=1e-15)
    served = np.array([[1, 0], [0, 1], [3, 4]], dtype=np.float32)
    scores = scorer_of(policy).estimate(Candidates(served, ["a", "a", "new"], None))[:, 0]
    np.testing.assert_allclose(scores, [1 / 3 + 2 * np.sqrt(1 / 3), 2.0, 10.0])


def test_the_best_score_takes_all_and_ties_share() -> None:
    scorer = scorer_of(LinUCB(2, LinUCBParams()))
    x = np.array([[0.5, 0], [0, 0.5], [0.1, 0.1]], dtype=np.float32)
    estimates = scorer.estimate(Candidates(x, ["a", "b", "c"], None))
    assert scorer.pmf(estimates).tolist() == [0.5, 0.5, 0.0]


def test_an_item_gets_the_same_score_in_any_company() -> None:
    rng = np.random.default_rng(3)
    policy = LinUCB(32, LinUCBParams())
    items = [f"item-{i}" for i in range(300)]
    x = rng.uniform(-0.5, 0.5, (300, 32)).astype(np.float32)
    policy.update(batch_of(x, items, [1.0] * 300))
    scorer = scorer_of(policy)
    together = scorer.estimate(Candidates(x, items, None))
    for row in range(0, 300, 17):
        assert scorer.estimate(Candidates(x[row : row + 1], [items[row]], None))[0, 0] == together[row, 0]
    backwards = scorer.estimate(Candidates(x[::-1], items[::-1], None))
    assert backwards[::-1].tobytes() == together.tobytes()


def test_only_items_seen_since_the_last_snapshot_are_solved_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    solved = []
    monkeypatch.setattr("service.policies.linucb.psd_cholesky", lambda A: solved.append(len(A)) or psd_cholesky(A))
    policy = LinUCB(2, LinUCBParams())
    x = np.array([[0.5, 0.1], [0.5, 0.2]])
    policy.update(batch_of(x, ["a", "b"], [1.0, 1.0]))
    before = policy.snapshot()
    policy.update(batch_of(x[:1], ["b"], [0.0]))
    after = policy.snapshot()
    policy.snapshot()
    assert solved == [2, 1]
    for name in ("theta", "inverse"):
        assert (before[name][:2] == after[name][:2]).all()  # the unknown item and a
        assert (before[name][2] != after[name][2]).any()


def test_summary_counts_pulls() -> None:
    policy = LinUCB(1, LinUCBParams())
    names = [f"item-{i:02d}" for i in range(30)]
    policy.update(batch_of(np.ones((33, 1)), ["item-29"] * 3 + names, [0.0] * 33))
    summary = scorer_of(policy).summary()
    assert (summary["items"], summary["pulls"]) == (30, 33)
    assert list(summary["most_pulled"].items())[:2] == [("item-29", 4), ("item-00", 1)]
    assert len(summary["most_pulled"]) == 20


def test_finds_the_better_item_of_each_context() -> None:
    # Two contexts, two items, each good (.9) in one of them: greedy choices must end up right, nine in ten and more.
    rng = np.random.default_rng(0)
    policy = LinUCB(2, LinUCBParams(alpha=1.0))
    right = 0
    for step in range(400):
        context = int(rng.integers(2))
        x = np.tile(np.eye(2, dtype=np.float32)[context], (2, 1))
        scorer = scorer_of(policy)
        pick = int(scorer.pmf(scorer.estimate(Candidates(x, ["a", "b"], None))).argmax())
        click = float(rng.random() < (0.9 if pick == context else 0.1))
        policy.update(batch_of(x[:1], [("a", "b")[pick]], [click]))
        right += step >= 200 and pick == context
    assert right > 180
