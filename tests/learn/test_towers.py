"""The two towers: what they find, how they are trained, and that NumPy serves what PyTorch trained."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from service.learn import towers as module
from service.learn.towers import Examples, examples_of, forward, train
from service.retrieve.towers import Tower, Towers, bags_of, hashes_of, recall

CLUSTERS, ITEMS, USERS = 12, 1800, 120


class World:
    """Items in clusters with a long tail; a user likes one cluster. Half of the items name theirs."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(1)
        self.cluster = self.rng.integers(CLUSTERS, size=ITEMS)
        self.taste = self.rng.integers(CLUSTERS, size=USERS)
        self.popular = 1 / (1 + self.rng.permutation(ITEMS)) ** 0.7
        self.catalogue: dict[str, dict[str, Any]] = {
            f"p{n}": {"kind": f"k{self.cluster[n]}" if n % 2 else "none", "price": n % 7} for n in range(ITEMS)
        }

    def events(self, n: int) -> list[Any]:
        """Rewarded events: user, context, item, what it brought, no features of its own."""
        found = []
        for user in self.rng.integers(USERS, size=n).tolist():
            taste = self.taste[user] if self.rng.random() < 0.9 else self.rng.integers(CLUSTERS)
            own = np.flatnonzero(self.cluster == taste)
            item = self.rng.choice(own, p=self.popular[own] / self.popular[own].sum())
            found.append((f"u{user}", {"hour": int(self.rng.integers(24))}, f"p{item}", 1.0, None))
        return found


@pytest.fixture(scope="module")
def world() -> World:
    return World()


@pytest.fixture(scope="module")
def examples(world: World) -> Examples:
    return examples_of(world.events(2500), world.catalogue)


@pytest.fixture(scope="module")
def towers(examples: Examples) -> Towers:
    return train(examples, seed=1)


def test_they_find_what_will_be_rewarded_far_better_than_popularity(world: World, towers: Towers) -> None:
    later = examples_of(world.events(600), world.catalogue)
    users, _ = towers.user.vectors(later.users, later.contexts)
    items, _ = towers.item.vectors(later.ids, later.features)
    found, popular = recall(towers, users, later.items, later.ids, items)
    assert found > 1.7 * popular
    assert found > 0.5


def test_a_new_item_lies_by_its_features_with_its_like(world: World, towers: Towers) -> None:
    of_kind = hashes_of(["new"]), bags_of([{"kind": "k3", "price": 2}], "item")
    [new], [points] = towers.item.vectors(*of_kind)
    assert points
    by_taste: list[list[float]] = [[] for _ in range(CLUSTERS)]
    for user in range(USERS):
        vector = towers.user_vector(f"u{user}", {"hour": 3})
        assert vector is not None
        by_taste[world.taste[user]].append(float(vector @ new))
    assert max(range(CLUSTERS), key=lambda taste: np.mean(by_taste[taste] or [-1.0])) == 3


def test_numpy_serves_what_pytorch_trained(examples: Examples, towers: Towers) -> None:
    import torch

    ids = np.append(examples.ids[:400], hashes_of(["never seen"]))
    bags = bags_of([{"kind": f"k{n % 9}", "x": {"y": n / 7}} for n in range(400)] + [{}], "item")
    tower = towers.item
    arrays = [np.concatenate([tower.of_ids, np.ones((1, tower.of_ids.shape[1]), np.float32)]), tower.of_tokens]
    weights = [torch.from_numpy(array) for array in (*arrays, tower.W, tower.b)]
    of_torch = forward(torch.from_numpy(tower.rows(ids)), bags, *weights)
    assert np.abs(of_torch.numpy() - tower.vectors(ids, bags)[0]).max() < 1e-5


def test_the_same_log_gives_the_same_towers(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_STEPS", 3)
    few = examples_of(world.events(100), world.catalogue)
    one, other = train(few, seed=5).state(), train(few, seed=5).state()
    assert all(array.tobytes() == other[name].tobytes() for name, array in one.items())
    assert train(few, seed=6).state()["user_W"].tobytes() != one["user_W"].tobytes()


def test_odd_events_are_no_hindrance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_STEPS", 3)
    odd = [(None, {}, "gone", 5.0, {"a": [1, 2]}), ("u", {"x": None}, "here", 0.1, None), (None, {}, "gone", 1e9, None)]
    made = train(examples_of(odd, {"here": {}, "other": {"t": "ü"}}), seed=1)
    assert made.popular.tolist() == hashes_of(["gone", "here"]).tolist()
    assert made.item.ids.tolist() == hashes_of(["gone"]).tolist()  # the others were rewarded once
    assert train(examples_of(odd, {}), seed=1).user_vector(None, {}) is not None
    with pytest.raises(ValueError, match="nothing to train on"):
        train(examples_of([], {}), seed=1)


def test_a_state_comes_back_and_a_garbled_one_is_refused(towers: Towers) -> None:
    again = Towers.load(towers.state())
    for user in ("u1", None):
        one, other = towers.user_vector(user, {"hour": 2}), again.user_vector(user, {"hour": 2})
        assert one is not None
        assert other is not None
        assert one.tobytes() == other.tobytes()
    wrong: dict[str, Any] = {
        "user_W": np.zeros((3, 3), np.float32),
        "item_ids": towers.item.ids[::-1].copy(),
        "item_of_tokens": np.full_like(towers.item.of_tokens, np.nan),
        "popular": np.zeros(3),
    }
    for name, array in wrong.items():
        with pytest.raises(ValueError, match=name):
            Towers.load({**towers.state(), name: array})
        left = towers.state()
        del left[name]
        with pytest.raises(ValueError, match=name):
            Towers.load(left)


def test_bags_are_selected_and_joined() -> None:
    bags = bags_of([{"a": "x"}, {}, {"b": 2, "c": ["y", "z"]}], "item")
    assert np.diff(bags.starts).tolist() == [1, 0, 3]
    taken = bags.take(np.array([2, 1, 2]))
    assert taken.columns.tolist() == [*bags.columns[1:], *bags.columns[1:]]
    assert np.diff(taken.starts).tolist() == [3, 0, 3]
    joined = type(bags).concat(bags, taken)
    assert json.dumps(joined.take(np.arange(3, 6)).weights.tolist()) == json.dumps(taken.weights.tolist())
    zero = np.zeros((2, 4), np.float32)
    empty = Tower(np.zeros(0, np.uint64), zero[:0], zero, np.zeros((4, 4), np.float32), zero[0])
    assert empty.vectors(hashes_of(["a", "b"]), bags.take(np.array([1, 1])))[1].tolist() == [False, False]
