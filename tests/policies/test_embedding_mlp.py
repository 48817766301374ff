"""Checks that the batch-trained baseline learns and is reproducible, and that serving agrees with PyTorch."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from service.policies import Arrays, Batch, Policy
from service.policies.embedding_mlp import EmbeddingMLP, EmbeddingMLPParams
from service.policies.popularity import Popularity
from tests.builders import batch_of, estimates_of, parts_of, pmf_of, scorer_of

ITEMS = ["a", "b", "c", "d"]
USERS = [f"user-{u}" for u in range(40)]


def log(size: int = 4000, *, seed: int = 0) -> Batch:
    """Draw events in which even users click on a and b, odd ones on c and d, at .9; else at .1. x tells nothing."""
    rng = np.random.default_rng(seed)
    user, item = rng.integers(0, len(USERS), size), rng.integers(0, len(ITEMS), size)
    reward = rng.random(size) < np.where(user % 2 == item // 2, 0.9, 0.1)
    x = np.full((size, 2), 0.5)
    return batch_of(x, reward, [ITEMS[i] for i in item], user=[USERS[u] for u in user], propensity=0.25)


def trained(history: list[Batch], *, seed: int = 0, **params: Any) -> EmbeddingMLP:
    policy = EmbeddingMLP(2, EmbeddingMLPParams(**{"epochs": 12, "batch_size": 128, **params}), seed=seed)
    policy.train(history)
    return policy


@cache
def trained_state() -> Arrays:
    return trained(parts_of(log(), 500)).state()


def trained_once() -> EmbeddingMLP:
    """Make a policy trained on `log()`, from a cached state."""
    policy = EmbeddingMLP(2, EmbeddingMLPParams())
    policy.load(trained_state())
    return policy


def click_rate(policy: Policy[Any]) -> float:
    """Compute the expected click rate over all users."""
    total = 0.0
    for u, user in enumerate(USERS):
        pmf = pmf_of(policy, np.full((4, 2), 0.5), ITEMS, user=user)
        total += float(pmf @ np.where(u % 2 == np.arange(4) // 2, 0.9, 0.1))
    return total / len(USERS)


def test_learns_who_likes_what_and_beats_popularity() -> None:
    popularity = Popularity(2, Popularity.Params())
    popularity.update(log())
    assert click_rate(popularity) < 0.6  # .5 is all that can be had without looking at the user
    assert click_rate(trained_once()) > 0.85  # of .9


def test_uses_the_features_for_users_that_it_has_not_seen() -> None:
    rng = np.random.default_rng(1)
    size = 4000
    taste, item = rng.integers(0, 2, size), rng.integers(0, 4, size)
    x = np.eye(2, dtype=np.float32)[taste] * 0.5
    reward = rng.random(size) < np.where(taste == item // 2, 0.9, 0.1)
    users = [f"user-{u}" for u in rng.integers(0, 3000, size)]
    policy = trained([batch_of(x, reward, [ITEMS[i] for i in item], user=users)])
    for t in (0, 1):
        x = np.tile(np.eye(2, dtype=np.float32)[t] * 0.5, (4, 1))
        for user in (None, "nobody"):
            score = estimates_of(policy, x, ITEMS, user=user)[:, 0]
            assert score == pytest.approx(np.where(t == np.arange(4) // 2, 0.9, 0.1), abs=0.12)


@pytest.mark.parametrize("seed", [2, 3])  # without id dropout both miss .3 by more than .25, for users and for items
@pytest.mark.parametrize("side", ["item", "user"])
def test_an_unknown_id_stands_for_the_average_one(side: str, seed: int) -> None:
    # A quarter of the items, or users, is clicked on, or clicks, at .9 and the rest at .1: on average .3.
    batch = log(seed=seed)
    names = ITEMS if side == "item" else USERS
    good = np.array([names.index(name) < len(names) / 4 for name in getattr(batch, side)])
    reward = np.random.default_rng(4).random(len(good)) < np.where(good, 0.9, 0.1)
    policy = trained([batch._replace(reward=reward.astype(float))], seed=seed)

    def score(item: str, user: str | None) -> float:
        return float(estimates_of(policy, np.full((1, 2), 0.5), item, user=user)[0, 0])

    if side == "item":
        scores = [score(item, "user-0") for item in ("a", "new", "d")]
    else:
        scores = [score("a", user) for user in ("user-0", "nobody", "user-39")]
        assert score("a", None) == scores[1]
    assert scores == pytest.approx([0.9, 0.3, 0.1], abs=0.1)


def test_serving_agrees_with_torch() -> None:
    policy = trained([log(1000)], epochs=1)
    w = {name: torch.from_numpy(array) for name, array in policy.state().items()}
    rng = np.random.default_rng(2)
    x = rng.uniform(-1, 1, (4, 2)).astype(np.float32)
    users = ["nobody", *dict.fromkeys(log(1000).user)]  # rows are in order of appearance
    items = ["new", *dict.fromkeys(log(1000).item)]
    for user in ("nobody", "user-7"):
        u = w["user_embedding"][users.index(user)].expand(4, -1)
        i = w["item_embedding"][[items.index(name) for name in ("a", "new", "d", "b")]]
        h = torch.relu(torch.cat([u, i, torch.from_numpy(x)], dim=1) @ w["w1"] + w["b1"])
        expected = torch.sigmoid(torch.relu(h @ w["w2"] + w["b2"]) @ w["w3"] + w["b3"])
        score = estimates_of(policy, x, ["a", "new", "d", "b"], user=user)
        np.testing.assert_allclose(score, expected.numpy(), rtol=1e-5)


@pytest.fixture
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("three_threads")
def test_training_is_reproducible_and_leaves_no_trace_in_torch() -> None:
    history = parts_of(log(2000), 500)
    rng = torch.get_rng_state()
    first = trained(history, epochs=2)
    torch.manual_seed(12345)
    again, other = trained(history, epochs=2), trained(history, epochs=2, seed=1)
    weights = [{name: array.tobytes() for name, array in policy.state().items()} for policy in (first, again, other)]
    assert weights[0] == weights[1] != weights[2]
    torch.set_rng_state(rng)
    trained(history, epochs=1)
    assert (torch.get_num_threads(), torch.get_rng_state().tolist()) == (3, rng.tolist())


def test_frozen_until_trained_anew() -> None:
    policy = trained([log(1000)], epochs=1)
    before = policy.state()
    policy.update(log(500, seed=3))
    assert all((policy.state()[name] == before[name]).all() for name in before)
    policy.train([log(3000)])
    assert scorer_of(policy).summary()["rows"] == 3000


def test_summary_says_what_it_was_trained_on() -> None:
    summary = scorer_of(trained_once()).summary()
    assert (summary["rows"], summary["users"], summary["items"]) == (4000, 40, 4)
    best = -(0.9 * np.log(0.9) + 0.1 * np.log(0.1))  # the entropy of a click that comes at .9 or .1
    assert best - 0.05 < summary["training_loss"] < 0.5 < np.log(2)


def test_rewards_outside_0_and_1_are_clamped() -> None:
    batch = log(1000)
    wild = batch._replace(reward=np.where(batch.reward > 0, 7.0, -3.0))
    tame, clamped = trained([batch], epochs=1), trained([wild], epochs=1)
    assert all((tame.state()[name] == clamped.state()[name]).all() for name in tame.state())


def test_trains_on_the_newest_events_where_a_window_is_set() -> None:
    recent = log(2500, seed=3)
    whole = [*parts_of(log(3000, seed=2), 700), *parts_of(recent, 700)]
    windowed, expected = trained(whole, window=2500, epochs=2), trained([recent], epochs=2)
    assert windowed.snapshot()["rows"].tolist() == [2500]
    for name, array in expected.snapshot().items():
        assert (windowed.snapshot()[name] == array).all(), name


def test_a_retraining_is_due_every_so_many_events() -> None:
    policy = EmbeddingMLP(2, EmbeddingMLPParams(retrain_every=500))
    assert [events for events in range(1, 1600) if policy.train_due(events)] == [500, 1000, 1500]
    assert not any(EmbeddingMLP(2, EmbeddingMLPParams()).train_due(events) for events in range(1, 2000))


def test_a_forgotten_item_is_estimated_as_an_unknown_one_and_the_others_as_before() -> None:
    policy = trained_once()
    before = estimates_of(policy, np.full((5, 2), 0.5), [*ITEMS, "new"], user="user-0")[:, 0]
    policy.forget_items(["b"])
    after = estimates_of(policy, np.full((5, 2), 0.5), [*ITEMS, "new"], user="user-0")[:, 0]
    others = [0, 2, 3, 4]
    np.testing.assert_allclose(after[others], before[others], rtol=1e-6)  # float32 products of another size
    assert after[1] == after[4]
    assert abs(before[1] - before[4]) > 0.1
    assert scorer_of(policy).summary()["items"] == 3
