"""Popularity against a recomputation from the whole history, and its raw counts against plain counting."""

from __future__ import annotations

import numpy as np
import pytest

from service.policies import Batch, Candidates
from service.policies.popularity import Popularity, PopularityParams, PopularityScorer

ITEMS = ["a", "b", "c", "d"]


def batch_of(item: list[str], reward: list[float]) -> Batch:
    B = len(item)
    return Batch(np.zeros((B, 1), dtype=np.float32), item, [None] * B, np.array(reward, dtype=np.float64), np.ones(B))


def scorer_of(policy: Popularity) -> PopularityScorer:
    return Popularity.scorer(policy.snapshot(), d=1, params=policy.params)


def scores(policy: Popularity, items: list[str]) -> list[float]:
    x = np.zeros((len(items), 1), dtype=np.float32)
    return scorer_of(policy).estimate(Candidates(x, items, None))[:, 0].tolist()


def test_rates_equal_a_recomputation_from_the_history() -> None:
    """With some evidence forgotten now and then, up to beyond the largest float."""
    rng = np.random.default_rng(5)
    policy = Popularity(1, PopularityParams(prior_clicks=2, prior_impressions=5))
    item, reward, weight = [], np.zeros(0), np.zeros(0)
    for keep in (0.5, 0.0, 0.9, 1e-70, 1e-60, 0.3, 1.0 - 1e-9):
        new = [ITEMS[i] for i in rng.choice(3, 100, p=[0.6, 0.39, 0.01])]
        r = rng.uniform(0, 1, 100)
        policy.update(batch_of(new, r.tolist()))
        policy.forget(keep)
        item, reward, weight = item + new, np.append(reward, r), keep * np.append(weight, np.ones(100))
        for name in ITEMS:
            mine = np.array([i == name for i in item])
            expected = (2 + weight[mine] @ reward[mine]) / (5 + weight[mine].sum())
            assert scores(policy, [name]) == pytest.approx([expected], rel=1e-12)


def test_expects_the_rate_before_each_event() -> None:
    policy = Popularity(1, PopularityParams(prior_clicks=1, prior_impressions=4))
    assert policy.update(batch_of(["a", "a", "b"], [1.0, 0.0, 1.0])).tolist() == [0.25, 2 / 5, 0.25]


def test_raw_rates_equal_those_counted_exactly() -> None:
    rng = np.random.default_rng(6)
    item = [ITEMS[i] for i in rng.integers(0, 3, 5000)]
    click = rng.integers(0, 2, 5000)
    policy = Popularity(1, PopularityParams())
    for start in range(0, 5000, 1000):
        policy.update(batch_of(item[start : start + 1000], click[start : start + 1000].tolist()))
        policy.forget(0.5)
    shown = scorer_of(policy).summary()["items"]
    assert shown.keys() == set(item)
    for name in shown:
        mine = [int(c) for i, c in zip(item, click, strict=True) if i == name]
        counts = {key: shown[name][key] for key in ("impressions", "clicks", "rate")}
        assert counts == {"impressions": len(mine), "clicks": sum(mine), "rate": sum(mine) / len(mine)}


def test_epsilon_is_spread_evenly_and_the_best_share_the_rest() -> None:
    policy = Popularity(1, PopularityParams(epsilon=0.2))
    policy.update(batch_of(["a", "b", "c"], [1.0, 0.0, 0.0]))
    scorer = scorer_of(policy)
    assert scorer.pmf(np.array([[0.3], [0.1], [0.3], [0.2]])) == pytest.approx([0.45, 0.05, 0.45, 0.05])
    assert scorer.pmf(scorer.estimate(Candidates(np.zeros((1, 1)), ["b"], None))) == pytest.approx([1.0])


def test_an_unknown_item_stands_at_the_prior() -> None:
    policy = Popularity(1, PopularityParams(prior_clicks=3, prior_impressions=12))
    assert scores(policy, ["new"]) == [0.25]
    policy.update(batch_of(["a"], [1.0]))
    assert scores(policy, ["new", "a"]) == pytest.approx([0.25, 4 / 13])
