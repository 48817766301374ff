"""Compares `adaptive` with the batch-trained policy after both have learned a log of 200 000 random impressions.

make bench ARGS=tests/benchmarks/test_warm_start.py       # 10 seeds, about 5 minutes on 4 cores
"""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from simulator.measures import recovery
from simulator.shocks import find_shock
from simulator.world.petshop import Petshop
from tests.benchmarks.in_process import oracle, run_in_process
from tests.benchmarks.policies import BATCH


class Size(NamedTuple):
    seeds: int
    steps: int
    shock: int  # step
    history: int  # impressions


FULL, QUICK = Size(10, 20_000, 10_000, 200_000), Size(1, 2_000, 1_000, 5_000)
CHECKPOINTS = (100, 500, 1_000, 2_000, 5_000, 10_000)


def play(seed: int, size: Size) -> tuple[NDArray[np.float64], float]:
    """Return the clicks ahead of the batch-trained policy at each step (steps,), and the steps to recovery.

    Those are the steps from the shock to 95 % of the oracle, or inf.
    """
    world = Petshop(seed, [(size.shock, find_shock("petshop", "taste-swap"))])

    def expected(kind: str) -> NDArray[np.float64]:
        run = run_in_process(
            kind,
            {},
            world=world,
            steps=size.steps,
            snapshot_period=100,
            reward_delay=100,
            history=size.history,
            floor=0.0,
        )
        return run.expected

    adaptive = expected("adaptive")
    back = recovery(adaptive, oracle(world, size.steps), shock=size.shock, share=0.95)
    return np.cumsum(adaptive - expected(BATCH)), np.inf if back is None else back


def test_ahead_of_the_batch_model_and_back_after_the_shock(quick: bool) -> None:
    size = QUICK if quick else FULL
    with ProcessPoolExecutor() as pool:
        ahead, back = zip(*pool.map(partial(play, size=size), range(1, size.seeds + 1)), strict=True)
    clicks = np.stack(ahead)  # (seeds, steps)
    print()
    for step in (step for step in CHECKPOINTS if step <= size.steps):
        at = clicks[:, step - 1]
        print(f"decision {step:>6}: {at.mean():6.1f} clicks ahead, worst seed {at.min():6.1f}")
    print(f"95 % of the oracle again after {np.median(back):,.0f} decisions (median), worst {max(back):,.0f}")
    assert (clicks[:, -1] > 0).all()  # after the shock the batch-trained policy falls behind
    if not quick:
        assert (clicks[:, 999:].min(axis=1) > 0).all()
        assert np.median(back) <= 1500
