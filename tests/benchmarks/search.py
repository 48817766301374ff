"""Searches the defaults of all policies with the same budget: `make bench-search`.

Each policy has SETTINGS settings. The first is the present default, the others are drawn at random from its space
(search_spaces.toml). All play on two seeds, and the FINALISTS best on four more. The setting with the highest share of
the oracle's clicks over all six seeds wins. The scenario is a taste-swap in the pet shop, half way through 12 000
decisions on stale snapshots. No figure is reported from its seeds. Runs are kept: an interrupted search goes on where
it stopped.
"""

from __future__ import annotations

import math
import os
import tomllib
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import numpy as np
import typer
from pydantic import ValidationError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from service.policies import KINDS, Params
from simulator.contestants import PolicySpec
from tests.benchmarks.policies import ROOT, USUAL, Job, measure, play

# Parameter → (from, to), drawn evenly on the logarithmic scale and whole if the two are, or a list of values.
Space: TypeAlias = Mapping[str, tuple[float, float] | Sequence[Any]]

SETTINGS, FINALISTS = 32, 6
SEEDS, MORE_SEEDS = (101, 102), (103, 104, 105, 106)
SCENARIO, STEPS = "s1-taste-swap", 12_000

WIDTH = 10.0  # a derived space reaches from a WIDTH-th of the default to WIDTH times the default
COMMON = Params.model_fields.keys()  # of all policies; they are no settings of a policy's own


def space_of(kind: str) -> Space:
    """Read the space of a kind's parameters, or derive it from their defaults, bounds and choices.

    Numbers whose default is 0, and parameters that are no numbers and no choices, are not searched.
    """
    given = tomllib.loads((ROOT / "tests/benchmarks/search_spaces.toml").read_text()).get(kind)
    if given is not None:
        return {
            name: space if isinstance(space, list) else (space["from"], space["to"]) for name, space in given.items()
        }
    derived: dict[str, tuple[float, float] | Sequence[Any]] = {}
    for name, param in KINDS[kind].Params.model_json_schema()["properties"].items():
        default = param.get("default")
        if name in COMMON:
            continue
        if "enum" in param:
            derived[name] = param["enum"]
        elif param.get("type") in ("number", "integer") and default:
            low = max(default / WIDTH, param.get("minimum", 0), param.get("exclusiveMinimum", 0))
            high = min(default * WIDTH, param.get("maximum", np.inf), param.get("exclusiveMaximum", np.inf))
            derived[name] = (float(low), float(high)) if param["type"] == "number" else (math.ceil(low), int(high))
    return derived


def searched_kinds() -> list[str]:
    """List the kinds that learn from every event and have a parameter to search."""
    return [name for name, kind in KINDS.items() if not kind.batch_trained and space_of(name)]


def settings(kind: str, number: int = SETTINGS) -> list[str]:
    """Draw the settings to try, as `kind:param=value,…`. The present default comes first."""
    rng = np.random.default_rng(list(kind.encode()))
    params, spaces = KINDS[kind].Params, space_of(kind)
    default = params.model_validate({})
    tried = [{name: getattr(default, name) for name in spaces}]
    while len(tried) < number:
        drawn = {name: draw(space, rng) for name, space in spaces.items()}
        with suppress(ValidationError):  # values that do not fit together are drawn again
            tried.append({name: getattr(params.model_validate(drawn), name) for name in drawn})
    return [str(PolicySpec(kind, setting)) for setting in tried]


def draw(space: tuple[float, float] | Sequence[Any], rng: np.random.Generator) -> Any:
    """Draw one value of a parameter."""
    if isinstance(space, tuple):
        value = float(f"{np.exp(rng.uniform(*np.log(space))):.2g}")
        return round(value) if isinstance(space[0], int) else value
    return space[int(rng.integers(len(space)))]


@dataclass(frozen=True)
class Search:
    """One search: so many settings of each kind, in runs of so many steps."""

    settings: int
    steps: int
    processes: int

    def jobs_of(self, policies: Sequence[str], seeds: Sequence[int]) -> list[Job]:
        return [Job(policy, SCENARIO, *USUAL, seed, self.steps) for seed in seeds for policy in policies]

    def mean_share(self, policy: str, seeds: Sequence[int]) -> float:
        return float(np.mean([measure(job).share for job in self.jobs_of([policy], seeds)]))

    def finalists(self, kind: str) -> list[str]:
        tried = settings(kind, self.settings)
        return sorted(tried, key=lambda policy: -self.mean_share(policy, SEEDS))[:FINALISTS]

    def play(self, policies: Sequence[str], seeds: Sequence[int], console: Console, description: str) -> None:
        """Play the runs that were not played before."""
        missing = [job for job in self.jobs_of(policies, seeds) if not job.file.exists()]
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        with (
            ProcessPoolExecutor(self.processes) as pool,
            Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console) as progress,
        ):
            for _ in progress.track(pool.map(play, missing), total=len(missing), description=description):
                pass

    def row(self, kind: str) -> tuple[str, ...]:
        """Write a kind's row of the table."""
        seeds = (*SEEDS, *MORE_SEEDS)
        default, finalists = settings(kind, 1)[0], self.finalists(kind)
        best = max(finalists, key=lambda policy: self.mean_share(policy, seeds))
        if default in finalists:
            now = f"{self.mean_share(default, seeds):.4f}"
        else:  # it has played on the first seeds only
            now = f"{self.mean_share(default, SEEDS):.4f} (2 seeds)"
        its_settings = ", ".join(f"{name} {value}" for name, value in PolicySpec.parse(best).params.items())
        return kind, now, f"{self.mean_share(best, seeds):.4f}", its_settings


def main(
    kinds: Annotated[list[str] | None, typer.Option("--policy", help="only this kind; may be given again")] = None,
    number: Annotated[int, typer.Option("--settings", min=1, help="of each kind that are tried")] = SETTINGS,
    steps: Annotated[int, typer.Option(min=1000, help="of each run")] = STEPS,
    jobs: Annotated[int, typer.Option(min=1, help="runs at a time")] = os.cpu_count() or 1,
    out: Annotated[Path, typer.Option(help="where the table goes, as Markdown")] = ROOT / "runs/policies/search.md",
) -> None:
    """Play all settings of every policy and print the best beside the present default."""
    console, searched, search = Console(), kinds or searched_kinds(), Search(number, steps, jobs)
    search.play([policy for kind in searched for policy in settings(kind, number)], SEEDS, console, "all settings")
    search.play([policy for kind in searched for policy in search.finalists(kind)], MORE_SEEDS, console, "finalists")
    titles = ("policy", "default now", "best found", "its settings")
    table = Table(*titles)
    lines = ["| " + " | ".join(titles) + " |", "|---|---|---|---|"]
    for kind in searched:
        row = search.row(kind)
        table.add_row(*row)
        lines.append("| " + " | ".join(row) + " |")
    console.print(table)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    typer.run(main)
