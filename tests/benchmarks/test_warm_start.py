"""`adaptive` that has learned a log of 200 000 random impressions, beside the batch model trained on the same.

make bench ARGS=tests/benchmarks/test_warm_start.py       # 10 seeds, about 5 minutes on 4 cores
"""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor

import numpy as np
from numpy.typing import NDArray

from simulator.measures import recovery
from simulator.shocks import find_shock
from simulator.world.petshop import Petshop
from tests.twin import oracle, run_twin

SEEDS, STEPS, SHOCK, HISTORY = 10, 20_000, 10_000, 200_000
CHECKPOINTS = (100, 500, 1_000, 2_000, 5_000, 10_000)


def play(seed: int) -> tuple[NDArray[np.float64], float]:
    """Clicks ahead of the batch model at each step (steps,); steps from the shock to 95 % of the oracle, or inf."""

    def expected(kind: str) -> NDArray[np.float64]:
        world = Petshop(seed, [(SHOCK, find_shock("petshop", "taste-swap"))])
        run = run_twin(
            kind, {}, world=world, steps=STEPS, snapshot_period=100, reward_delay=100, history=HISTORY, floor=0.0
        )
        return run.expected

    adaptive = expected("adaptive")
    best = oracle(Petshop(seed, [(SHOCK, find_shock("petshop", "taste-swap"))]), STEPS)
    back = recovery(adaptive, best, shock=SHOCK, share=0.95)
    return np.cumsum(adaptive - expected("embedding_mlp")), np.inf if back is None else back


def test_ahead_of_the_batch_model_and_back_after_the_shock() -> None:
    with ProcessPoolExecutor() as pool:
        ahead, back = zip(*pool.map(play, range(1, SEEDS + 1)), strict=True)
    clicks = np.stack(ahead)
    print()
    for step in CHECKPOINTS:
        at = clicks[:, step - 1]
        print(f"decision {step:>6}: {at.mean():6.1f} clicks ahead, worst seed {at.min():6.1f}")
    print(f"95 % of the oracle again after {np.median(back):,.0f} decisions (median), worst {max(back):,.0f}")
    assert (clicks[:, 999:].min(axis=1) > 0).all()
    assert np.median(back) <= 1500
