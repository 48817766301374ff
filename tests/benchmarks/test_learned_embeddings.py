"""Learned embeddings: what a training costs and finds, and what serving it costs, by the size of the catalogue.

    make bench ARGS=tests/benchmarks/test_learned_embeddings.py

A world without a service: items in clusters, with popularity that falls as 1 / rank^.7. An item's field of 40 levels
says its cluster, or which of several it is; its price means nothing. A user is rewarded in one cluster, or (15 %) in
any; the context is an hour that means nothing. `recall`: of 1000 rewarded events that come after the training, the
share whose item is among the 100 nearest of the catalogue; `popular` by the 100 items that brought most. `knowing` is
the 100 most popular of the right cluster, by the world's own constants: no one can do much better. Times are processor
time; a user's vector and the search are medians.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import numpy as np

from service.learn.towers import examples_of, train
from service.retrieve.nearest import Nearest
from service.retrieve.towers import bags_of, hashes_of, recall

LEVELS = 40


def world(
    items: int, clusters: int, users: int, n: int
) -> tuple[dict[str, dict[str, Any]], list[Any], list[Any], float]:
    """Return the catalogue, n rewarded events to learn from, 1000 that come after, and what knowing the world finds."""
    rng = np.random.default_rng(1)
    of_item, taste = rng.integers(clusters, size=items), rng.integers(clusters, size=users)
    popular = 1 / (1 + rng.permutation(items)) ** 0.7
    own = [np.flatnonzero(of_item == cluster) for cluster in range(clusters)]
    shares = [popular[rows] / popular[rows].sum() for rows in own]
    best = [set(rows[np.argsort(-popular[rows])[:100]].tolist()) for rows in own]
    catalogue = {
        f"p{row}": {"kind": f"k{of_item[row] % LEVELS}", "price": round(float(rng.random()), 2)} for row in range(items)
    }
    names, hits = list(catalogue), 0
    events: list[Any] = []
    for user in rng.integers(users, size=n + 1000).tolist():
        cluster = taste[user] if rng.random() < 0.85 else rng.integers(clusters)
        row = int(rng.choice(own[cluster], p=shares[cluster]))
        hits += len(events) >= n and row in best[taste[user]]
        events.append((f"u{user}", {"hour": int(rng.integers(24))}, names[row], 1.0, None))
    return catalogue, events[:n], events[n:], hits / 1000


def test_learned_embeddings(quick: bool) -> None:
    print(
        "\n| items | rewarded events | recall | popular | knowing | to read, s | to train, s | items' vectors, s |",
        end="",
    )
    print(" index, s | user's vector, µs | search, µs |\n" + "|---" * 11 + "|")
    sizes = [(2000, 20, 300, 4000), (20_000, 100, 2000, 20_000), (100_000, 200, 5000, 50_000)]
    for items, clusters, users, n in sizes[:1] if quick else sizes:
        catalogue, events, later, knowing = world(items, clusters, users, n)
        marks = [time.process_time()]
        examples = examples_of(events, catalogue)
        marks.append(time.process_time())
        towers = train(examples, seed=1)
        marks.append(time.process_time())
        ids, bags = hashes_of(catalogue), bags_of(catalogue.values(), "item")
        vectors, _ = towers.item.vectors(ids, bags)
        marks.append(time.process_time())
        nearest = Nearest.of(items, np.arange(items), vectors)
        marks.append(time.process_time())
        asked = examples_of(later, catalogue)
        found, popular = recall(towers, towers.user.vectors(asked.users, asked.contexts)[0], asked.items, ids, vectors)
        of_user, searched = [], []
        for user, context, *_ in later[:300]:
            started = time.thread_time()
            vector = towers.user_vector(user, context)
            between = time.thread_time()
            assert vector is not None
            nearest.search(vector, 100)
            of_user.append(between - started)
            searched.append(time.thread_time() - between)
        costs = " | ".join(f"{one:.2f}" for one in np.diff(marks))
        print(f"| {items} | {n} | {found:.3f} | {popular:.3f} | {knowing:.3f} | {costs} |", end="")
        print(f" {1e6 * statistics.median(of_user):.0f} | {1e6 * statistics.median(searched):.0f} |", flush=True)
