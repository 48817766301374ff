"""Checks the rates against a recomputation from the whole history, and the raw counts against plain counting."""

from __future__ import annotations

import numpy as np
import pytest

from service.policies.popularity import Popularity, PopularityParams
from tests.builders import batch_of, candidates_of, estimates_of, scorer_of

ITEMS = ["a", "b", "c", "d"]


def scores(policy: Popularity, items: list[str]) -> list[float]:
    shown: list[float] = estimates_of(policy, np.zeros((len(items), 1)), items)[:, 0].tolist()
    return shown


def test_rates_equal_a_recomputation_from_the_history() -> None:
    """Evidence is forgotten several times, by more than the largest float in all."""
    rng = np.random.default_rng(5)
    policy = Popularity(1, PopularityParams(prior_clicks=2, prior_impressions=5))
    item: list[str] = []
    reward, weight = np.zeros(0), np.zeros(0)
    for keep in (0.5, 0.0, 0.9, 1e-70, 1e-60, 0.3, 1.0 - 1e-9):
        new = [ITEMS[i] for i in rng.choice(3, 100, p=[0.6, 0.39, 0.01])]
        r = rng.uniform(0, 1, 100)
        policy.update(batch_of(item=new, reward=r))
        policy.forget(keep)
        item, reward, weight = item + new, np.append(reward, r), keep * np.append(weight, np.ones(100))
        for name in ITEMS:
            mine = np.array([i == name for i in item])
            expected = (2 + weight[mine] @ reward[mine]) / (5 + weight[mine].sum())
            assert scores(policy, [name]) == pytest.approx([expected], rel=1e-12)


def test_expects_the_rate_before_each_event() -> None:
    policy = Popularity(1, PopularityParams(prior_clicks=1, prior_impressions=4))
    assert policy.update(batch_of(item=["a", "a", "b"], reward=[1.0, 0.0, 1.0])).tolist() == [0.25, 2 / 5, 0.25]


def test_raw_rates_equal_those_counted_exactly() -> None:
    rng = np.random.default_rng(6)
    item = [ITEMS[i] for i in rng.integers(0, 3, 5000)]
    click = rng.integers(0, 2, 5000)
    policy = Popularity(1, PopularityParams())
    for start in range(0, 5000, 1000):
        policy.update(batch_of(item=item[start : start + 1000], reward=click[start : start + 1000]))
        policy.forget(0.5)
    shown = scorer_of(policy).summary()["items"]
    assert shown.keys() == set(item)
    for name in shown:
        mine = [int(c) for i, c in zip(item, click, strict=True) if i == name]
        counts = {key: shown[name][key] for key in ("impressions", "clicks", "rate")}
        assert counts == {"impressions": len(mine), "clicks": sum(mine), "rate": sum(mine) / len(mine)}


def test_epsilon_is_spread_evenly_and_the_best_share_the_rest() -> None:
    policy = Popularity(1, PopularityParams(epsilon=0.2))
    policy.update(batch_of(item=["a", "b", "c"], reward=[1.0, 0.0, 0.0]))
    scorer = scorer_of(policy)
    assert scorer.pmf(np.array([[0.3], [0.1], [0.3], [0.2]])) == pytest.approx([0.45, 0.05, 0.45, 0.05])
    assert scorer.pmf(scorer.estimate(candidates_of(np.zeros((1, 1)), "b"))) == pytest.approx([1.0])


def test_an_unknown_item_stands_at_the_prior() -> None:
    policy = Popularity(1, PopularityParams(prior_clicks=3, prior_impressions=12))
    assert scores(policy, ["new"]) == [0.25]
    policy.update(batch_of(item="a", reward=1.0))
    assert scores(policy, ["new", "a"]) == pytest.approx([0.25, 4 / 13])
