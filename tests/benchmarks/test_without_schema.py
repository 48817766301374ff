"""Plays the scenarios of docs/benchmarks.md with their schema and without one, side by side.

make bench ARGS='tests/benchmarks/test_without_schema.py --seeds 31-32'                 # about 12 minutes on one core
make bench ARGS='tests/benchmarks/test_without_schema.py --seeds 31 --world h-latent'

`adaptive` in one process: snapshots each 100 decisions, rewards 100 late, no floor. Without a schema, schemas are
fitted to the log, as in a loop that declares none.
"""

from __future__ import annotations

import numpy as np
import pytest
from rich.console import Console
from rich.table import Table

from service.represent.schema import FeatureSchema
from simulator.measures import gain, last_fifth
from simulator.progress import Stages
from simulator.scenario import load
from simulator.shocks import find_shock
from simulator.world import WORLDS
from tests.benchmarks.in_process import oracle, run_in_process
from tests.benchmarks.test_shapes_of_data import chosen_seeds

SCENARIOS = ("s0-stationary", "s1-taste-swap", "s5-seasonality", "digits")
STEPS, QUICK_STEPS = 20_000, 400
PERIOD = 100  # decisions from one snapshot to the next, and from a decision to its reward
SEEDS = "31-32"
MEASURES = ("share of the oracle", "in the last fifth", "gain", "gain of the last fifth")


def test_shares_with_and_without_a_schema(request: pytest.FixtureRequest, quick: bool) -> None:
    scenarios = request.config.getoption("--world") or SCENARIOS[: 1 if quick else None]
    seeds = [31] if quick else chosen_seeds(request.config.getoption("--seeds") or SEEDS)
    steps = QUICK_STEPS if quick else request.config.getoption("--steps") or STEPS
    console = Console(width=None if Console().is_terminal else 140)
    table = Table("scenario", "schema", *MEASURES, "alarms", "swaps")
    with Stages(console) as stages:
        for scenario in scenarios:
            for declared in (True, False):
                with stages.stage(f"{scenario}, {'declared' if declared else 'no schema'}"):
                    played = np.array([play(scenario, seed, steps, declared=declared) for seed in seeds])
                assert np.isfinite(played).all()
                means, sds = played.mean(0), played.std(0)
                shares = (f"{means[at]:.3f} ± {sds[at]:.3f}" for at in range(len(MEASURES)))
                counts = (f"{count:.1f}" for count in means[len(MEASURES) :])
                table.add_row(scenario, "declared" if declared else "none", *shares, *counts)
    console.print(table)


def play(scenario: str, seed: int, steps: int, *, declared: bool) -> list[float]:
    """Play one run.

    Returns:
        The MEASURES, over the run and in its last fifth; alarms; swaps of the encoder.
    """
    plan = load(scenario, {"steps": steps}).plan()
    world = WORLDS[plan.world](seed, [(at, find_shock(plan.world, name)) for name, at in plan.shock_steps])
    run = run_in_process(
        "adaptive",
        {},
        world=world,
        steps=steps,
        snapshot_period=PERIOD,
        reward_delay=PERIOD,
        floor=0.0,
        schema=None if declared else FeatureSchema(),
        fits=not declared,
    )
    best, chance = oracle(world, steps), np.array([world.at(step).random for step in range(steps)])
    shares = [float(part(run.expected).sum() / part(best).sum()) for part in (np.asarray, last_fifth)]
    gains = [gain(*map(part, (run.expected, best, chance))) for part in (np.asarray, last_fifth)]
    return [*shares, *gains, len(run.alarms), run.trainer.encoding["swaps"]]
