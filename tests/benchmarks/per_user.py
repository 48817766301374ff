"""A model of each user by himself: Thompson sampling (Thompson 1933) on a Beta(1, 1) for each user and item.

It shares nothing between users, so it is what a loop that learns from all of them must beat where users are many.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator.world import World

Array = NDArray[Any]


def run_per_user(world: World[Any], *, steps: int, batch: int, floor: float = 0.01) -> Array:
    """Run it through `steps` decisions of a world with clicks and a fixed catalogue.

    Args:
        batch: decisions that are learned at once, this many decisions late.
        floor: share of the decisions that are drawn uniformly.

    Returns:
        (steps,): the expected rewards of what was shown.
    """
    rng = np.random.default_rng([world.seed, 99])
    items = world.catalogue(0).items
    seen: dict[str, Array] = {}  # user → (2, n): rewards, and their absence
    waiting: list[tuple[str, int, float]] = []  # (user, row, reward) of the last two batches
    expected = np.zeros(steps)
    for step in range(steps):
        if step % batch == 0:
            due, waiting = waiting[: max(0, len(waiting) - batch)], waiting[max(0, len(waiting) - batch) :]
            for user, row, reward in due:
                counts = seen.setdefault(user, np.zeros((2, len(items))))
                counts[:, row] += reward, 1 - reward
        moment = world.at(step)
        user = moment.visit.user_id
        alpha, beta = 1 + seen.get(user, np.zeros((2, len(items))))
        row = int(rng.integers(len(items))) if rng.random() < floor else int(rng.beta(alpha, beta).argmax())
        expected[step], reward = moment.outcome(items[row].id)
        waiting.append((user, row, reward))
    return expected
