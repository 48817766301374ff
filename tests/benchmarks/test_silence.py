"""What it costs when clicks are told at once and their absence by silence, at the end of the wait.

make bench ARGS=tests/benchmarks/test_silence.py       # 5 seeds, about 5 minutes on 4 cores
"""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor

import numpy as np

from simulator.shocks import find_shock
from simulator.world.petshop import Petshop
from tests.twin import oracle, run_twin

SEEDS, STEPS, SHOCK = 5, 20_000, 10_000
TOLD = {  # how -> (delay of clicks, delay of their absence), in decisions
    "both at once": (20, 20),
    "`first`: clicks at once, silence 1000 later": (20, 1000),
    "`max`: both 1000 later": (1000, 1000),
    "`first`: clicks at once, silence 5000 later": (20, 5000),
    "`max`: both 5000 later": (5000, 5000),
}


def play(how: str, seed: int, shocked: bool) -> tuple[float, list[int]]:
    """`adaptive`'s share of the oracle, and its alarms."""
    clicks, silence = TOLD[how]
    world = Petshop(seed, [(SHOCK, find_shock("petshop", "taste-swap"))] if shocked else [])
    run = run_twin(
        "adaptive",
        {},
        world=world,
        steps=STEPS,
        snapshot_period=100,
        reward_delay=clicks,
        silence_delay=silence,
        floor=0.0,
    )
    return float(run.expected.sum() / oracle(world, STEPS).sum()), run.alarms


def test_silence_is_no_change_of_the_world() -> None:
    jobs = [(how, seed, shocked) for how in TOLD for shocked in (False, True) for seed in range(1, SEEDS + 1)]
    with ProcessPoolExecutor() as pool:
        runs = dict(zip(jobs, pool.map(play, *zip(*jobs, strict=True)), strict=True))
    print()
    false = 0
    for how, (_, silence) in TOLD.items():
        shares = [np.array([runs[how, seed, s][0] for seed in range(1, SEEDS + 1)]) for s in (False, True)]
        first = [next((a for a in runs[how, seed, True][1] if a >= SHOCK), np.inf) for seed in range(1, SEEDS + 1)]
        false += sum(len(runs[how, seed, False][1]) for seed in range(1, SEEDS + 1))
        print(
            f"{how:45} s0 {shares[0].mean():.3f} (worst {shares[0].min():.3f})   "
            f"s1 {shares[1].mean():.3f} (worst {shares[1].min():.3f}), "
            f"alarm {np.median(first) - SHOCK:,.0f} after the shock"
        )
        assert np.median(first) - SHOCK <= silence + 1000
    assert false == 0
