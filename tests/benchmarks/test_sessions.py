"""Measures what the state of a user is worth in the world `sessions`, with a change of habits at the half.

make bench ARGS=tests/benchmarks/test_sessions.py     # 5 seeds, 5 arms, about 6 minutes on 2 cores

Batches of 25 decisions; snapshots and rewards are 25 decisions late; exploration floor .01; no schema is declared.
"""

from __future__ import annotations

from collections.abc import Collection
from itertools import product
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from simulator.shocks import find_shock
from simulator.world.sessions import Sessions
from tests.benchmarks.in_process import in_parallel, oracle, run_in_process, shares_of_halves

STEPS, SEEDS, BATCH = 4000, (1, 2, 3, 4, 5), 25
QUICK_STEPS = 400
LAST = ("last", "last_item", "last_type", "seconds_since", "recent")
OFTEN = ("often",)
ALL = (*LAST, *OFTEN, "count", "kept")  # what the service serves
ARMS: dict[str, Collection[str]] = {"no state": (), "long-term": OFTEN, "short-term": LAST, "both": ALL}
WITH_REWARDS = "both, rewards as activity"
ARMS[WITH_REWARDS] = ALL


class Job(NamedTuple):
    """One run of `adaptive`."""

    arm: str
    seed: int
    steps: int


def play(job: Job) -> list[float]:
    """Return the shares of the oracle: of the half before the shock, its last fifth, and those of the half after."""
    shock = job.steps // 2
    world = Sessions(job.seed, [(shock, find_shock("sessions", "habits-change"))])
    run = run_in_process(
        "adaptive",
        {},
        world=world,
        steps=job.steps,
        snapshot_period=BATCH,
        reward_delay=BATCH,
        fits=True,
        states=ARMS[job.arm],
        reward_activity=job.arm == WITH_REWARDS,
    )
    return shares_of_halves(run.expected, oracle(world, job.steps))


def test_share_of_the_oracle(quick: bool) -> None:
    steps = QUICK_STEPS if quick else STEPS
    seeds = SEEDS[:1] if quick else SEEDS
    jobs = [Job(arm, seed, steps) for seed, arm in product(seeds, ARMS)]
    found = dict(in_parallel(play, jobs))
    table = Table("state", "before", "its last fifth", "after", "its last fifth")
    means = {}
    for arm in ARMS:
        shares = np.array([found[Job(arm, seed, steps)] for seed in seeds])  # (seeds, 4)
        means[arm] = shares.mean(axis=0)
        table.add_row(arm, *(f"{mean:.3f} ± {sd:.3f}" for mean, sd in zip(means[arm], shares.std(axis=0), strict=True)))
    Console(width=120).print(table)
    if not quick:
        assert means["both"][0] > 2 * means["no state"][0]
