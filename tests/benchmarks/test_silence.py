"""What it costs when clicks are told at once and their absence by silence, and when no click is told for a while.

make bench ARGS=tests/benchmarks/test_silence.py       # 5 seeds, about 4 minutes on 4 cores
"""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace

import numpy as np

from simulator.shocks import find_shock
from simulator.world import Moment
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
OUTAGE = range(10_000, 11_000)  # of these decisions no click is told


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


class Silenced(Petshop):
    """Nobody clicks during the outage, whatever the rates are."""

    def at(self, step: int) -> Moment:
        moment = super().at(step)
        return replace(moment, luck=np.ones_like(moment.luck)) if step in OUTAGE else moment


def survive(seed: int, detect_change: bool) -> tuple[float, float, list[int]]:
    """Clicks missed during the outage, until all of it is learned; those missed after it; alarms."""
    world = Silenced(seed)
    run = run_twin(
        "adaptive",
        {"detect_change": detect_change},
        world=world,
        steps=STEPS,
        snapshot_period=100,
        reward_delay=100,
        floor=0.0,
    )
    missed = oracle(world, STEPS) - run.expected
    over = OUTAGE.stop + 100
    return float(missed[OUTAGE.start : over].sum()), float(missed[over:].sum()), run.alarms


def test_an_outage_of_feedback_is_survived() -> None:
    jobs = [(seed, detects) for detects in (False, True) for seed in range(1, SEEDS + 1)]
    with ProcessPoolExecutor() as pool:
        runs = dict(zip(jobs, pool.map(survive, *zip(*jobs, strict=True)), strict=True))
    print()
    for detects in (False, True):
        found = [runs[seed, detects] for seed in range(1, SEEDS + 1)]
        during, after = (np.array([run[part] for run in found]) for part in (0, 1))
        print(
            f"detect_change={detects!s:6} clicks missed during {during.mean():.0f} (worst {during.max():.0f}), after "
            f"{after.mean():.0f} (worst {after.max():.0f}); alarms of seed 1: {found[0][2]}"
        )
    assert all(len(runs[seed, True][2]) == 2 for seed in range(1, SEEDS + 1))  # at its beginning, and the recall
