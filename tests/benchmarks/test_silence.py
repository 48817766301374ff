"""Measures the cost of hearing of clicks before silence, and of an outage of feedback.

make bench ARGS=tests/benchmarks/test_silence.py       # 5 seeds, about 4 minutes on 4 cores
"""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace

import numpy as np

from simulator.shocks import find_shock
from simulator.world import Moment
from simulator.world.petshop import Petshop
from tests.benchmarks.in_process import oracle, run_in_process

SEEDS, STEPS = 5, 20_000  # a shock or an outage begins at the half
QUICK_SEEDS, QUICK_STEPS = 1, 3_000
DELAYS = {  # aggregation -> (delay of clicks, delay of their absence), in decisions
    "both at once": (20, 20),
    "`first`: clicks at once, silence 1000 later": (20, 1000),
    "`max`: both 1000 later": (1000, 1000),
    "`first`: clicks at once, silence 5000 later": (20, 5000),
    "`max`: both 5000 later": (5000, 5000),
}
OUTAGE = 1_000  # decisions of which no click is reported


def play(how: str, seed: int, shocked: bool, steps: int) -> tuple[float, list[int]]:
    """Return the share of the oracle that `adaptive` earns, and its alarms."""
    clicks, silence = DELAYS[how]
    world = Petshop(seed, [(steps // 2, find_shock("petshop", "taste-swap"))] if shocked else [])
    run = run_in_process(
        "adaptive",
        {},
        world=world,
        steps=steps,
        snapshot_period=100,
        reward_delay=clicks,
        silence_delay=silence,
        floor=0.0,
    )
    return float(run.expected.sum() / oracle(world, steps).sum()), run.alarms


def sizes(quick: bool) -> tuple[range, int]:
    """Return the seeds and the steps of each run."""
    return (range(1, QUICK_SEEDS + 1), QUICK_STEPS) if quick else (range(1, SEEDS + 1), STEPS)


def test_silence_is_no_change_of_the_world(quick: bool) -> None:
    seeds, steps = sizes(quick)
    shock = steps // 2
    jobs = [(how, seed, shocked, steps) for how in DELAYS for shocked in (False, True) for seed in seeds]
    with ProcessPoolExecutor() as pool:
        runs = dict(zip(jobs, pool.map(play, *zip(*jobs, strict=True)), strict=True))
    print()
    false = 0
    for how, (_, silence) in DELAYS.items():
        shares = [np.array([runs[how, seed, s, steps][0] for seed in seeds]) for s in (False, True)]
        first = [next((a for a in runs[how, seed, True, steps][1] if a >= shock), np.inf) for seed in seeds]
        false += sum(len(runs[how, seed, False, steps][1]) for seed in seeds)
        print(
            f"{how:45} s0 {shares[0].mean():.3f} (worst {shares[0].min():.3f})   "
            f"s1 {shares[1].mean():.3f} (worst {shares[1].min():.3f}), "
            f"alarm {np.median(first) - shock:,.0f} after the shock"
        )
        assert quick or np.median(first) - shock <= silence + 1000
    assert false == 0


class Silenced(Petshop):
    """A pet shop in which nobody clicks during the outage."""

    outage: range

    def at(self, step: int) -> Moment:
        moment = super().at(step)
        return replace(moment, click_draws=np.ones_like(moment.click_draws)) if step in self.outage else moment


def survive(seed: int, detect_change: bool, steps: int) -> tuple[float, float, list[int]]:
    """Return the clicks missed from the outage until all of it is learned, those missed after it, and the alarms."""
    world = Silenced(seed)
    world.outage = range(steps // 2, steps // 2 + OUTAGE)
    run = run_in_process(
        "adaptive",
        {"detect_change": detect_change},
        world=world,
        steps=steps,
        snapshot_period=100,
        reward_delay=100,
        floor=0.0,
    )
    missed = oracle(world, steps) - run.expected
    over = world.outage.stop + 100
    return float(missed[world.outage.start : over].sum()), float(missed[over:].sum()), run.alarms


def test_an_outage_of_feedback_is_survived(quick: bool) -> None:
    seeds, steps = sizes(quick)
    jobs = [(seed, detects, steps) for detects in (False, True) for seed in seeds]
    with ProcessPoolExecutor() as pool:
        runs = dict(zip(jobs, pool.map(survive, *zip(*jobs, strict=True)), strict=True))
    print()
    for detects in (False, True):
        found = [runs[seed, detects, steps] for seed in seeds]
        during, after = (np.array([run[part] for run in found]) for part in (0, 1))
        print(
            f"detect_change={detects!s:6} clicks missed during {during.mean():.0f} (worst {during.max():.0f}), after "
            f"{after.mean():.0f} (worst {after.max():.0f}); alarms of seed 1: {found[0][2]}"
        )
    assert quick or all(len(runs[seed, True, steps][2]) == 2 for seed in seeds)  # at the beginning, and the recall
