"""The defaults of all policies, looked for with the same budget: `make bench-search`.

Each policy has SETTINGS settings, drawn at random from its space below, the first being what is the default now. All
play on two seeds; the FINALISTS best play on four more; the one with the highest share of the oracle's clicks over all
six wins. The scenario is a taste-swap in the pet shop, half way through 12 000 decisions on stale snapshots, on seeds
that no figure is reported from. Runs are kept: a search that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Annotated, TypeAlias

import numpy as np
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from service.policies import KINDS
from simulator.contestants import PolicySpec
from tests.benchmarks.policies import ROOT, USUAL, Job, measure, play

Space: TypeAlias = Mapping[str, tuple[float, float] | Sequence[str] | Sequence[float]]

SETTINGS, FINALISTS = 32, 6
SEEDS, MORE_SEEDS = (101, 102), (103, 104, 105, 106)
SCENARIO, STEPS = "s1-taste-swap", 12_000

# A tuple: from, to; drawn evenly on the logarithmic scale. A list: one of these.
SPACES: Mapping[str, Space] = {
    "linucb": {"alpha": (0.1, 3), "ridge": (0.1, 10)},
    "linucb_hybrid": {"alpha": (0.1, 3), "ridge": (0.5, 500), "shared_ridge": (0.1, 10)},
    "lin_ts": {"v": (0.1, 1), "ridge": (0.1, 10)},
    "squarecb": {"gamma": (1, 300), "rho": [0.25, 0.5, 0.75, 1.0], "ridge": (0.1, 10)},
    "neural_linear": {
        "alpha": (0.25, 1.5),
        "ridge": (0.05, 2),
        "item_ridge": (20, 1000),
        "learning_rate": (0.003, 0.1),
        "prior": (0.3, 10),
    },
    "neural_ucb": {
        "alpha": (0.25, 1.5),
        "learning_rate": (0.003, 0.1),
        "prior": (0.3, 10),
        "buffer": [2048, 4096, 8192],
    },
    "vw": {
        "explore": ["regcb", "squarecb", "epsilon", "softmax"],
        "epsilon": (0.01, 0.2),
        "lambda_": (5, 100),
        "gamma_scale": (10, 1000),
        "mellowness": (0.001, 0.1),
        "learning_rate": (0.05, 3),
        "power_t": [0.0, 0.5],
    },
    "adaptive": {"alpha": (0.25, 1.5), "ridge": (0.03, 1), "item_ridge": (30, 1000)},
}


def settings(kind: str) -> list[str]:
    """What is tried, as `kind:knob=value,…`, the present default first."""
    rng = np.random.default_rng(list(kind.encode()))
    now = KINDS[kind].Params.model_validate({})
    tried = [{knob: getattr(now, knob) for knob in SPACES[kind]}]
    while len(tried) < SETTINGS:
        drawn = {}
        for knob, space in SPACES[kind].items():
            if isinstance(space, tuple):
                drawn[knob] = float(f"{np.exp(rng.uniform(*np.log(space))):.2g}")
            else:
                drawn[knob] = space[rng.integers(len(space))]
        tried.append(drawn)
    return [f"{kind}:" + ",".join(f"{knob}={value}" for knob, value in setting.items()) for setting in tried]


def jobs_of(policies: Sequence[str], seeds: Sequence[int]) -> list[Job]:
    return [Job(policy, SCENARIO, *USUAL, seed, STEPS) for seed in seeds for policy in policies]


def mean_share(policy: str, seeds: Sequence[int]) -> float:
    return float(np.mean([measure(job).share for job in jobs_of([policy], seeds)]))


def finalists(kind: str) -> list[str]:
    return sorted(settings(kind), key=lambda policy: -mean_share(policy, SEEDS))[:FINALISTS]


def play_all(jobs: Sequence[Job], processes: int, console: Console, description: str) -> None:
    missing = [job for job in jobs if not job.file.exists()]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with (
        ProcessPoolExecutor(processes) as pool,
        Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console) as progress,
    ):
        for _ in progress.track(pool.map(play, missing), total=len(missing), description=description):
            pass


def main(
    kinds: Annotated[list[str] | None, typer.Option("--policy", help="only this one; may be given again")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="runs at a time")] = os.cpu_count() or 1,
    out: Annotated[Path, typer.Option(help="where the table goes, as Markdown")] = ROOT / "runs/policies/search.md",
) -> None:
    """Play all settings of every policy and print the best beside the present default."""
    console, looked = Console(), kinds or list(SPACES)
    play_all([job for kind in looked for job in jobs_of(settings(kind), SEEDS)], jobs, console, "all settings")
    play_all([job for kind in looked for job in jobs_of(finalists(kind), MORE_SEEDS)], jobs, console, "finalists")
    seeds = (*SEEDS, *MORE_SEEDS)
    lines = ["| policy | default now | best found | its settings |", "|---|---|---|---|"]
    table = Table("policy", "default now", "best found", "its settings")
    for kind in looked:
        default = settings(kind)[0]
        best = max(finalists(kind), key=lambda policy: mean_share(policy, seeds))
        # A default that is no finalist has played on the first seeds only.
        now = (
            f"{mean_share(default, seeds):.4f}"
            if default in finalists(kind)
            else f"{mean_share(default, SEEDS):.4f} (2 seeds)"
        )
        found = (
            kind,
            now,
            f"{mean_share(best, seeds):.4f}",
            ", ".join(f"{k} {v}" for k, v in PolicySpec.parse(best).params.items()),
        )
        table.add_row(*found)
        lines.append("| " + " | ".join(found) + " |")
    console.print(table)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    typer.run(main)
