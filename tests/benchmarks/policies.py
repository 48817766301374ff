"""Plays every policy in every scenario and writes the tables of docs/benchmarks/policies.md: `make bench-policies`.

Each run is stored in a file under runs/policies/. The file's name holds a digest of all that the outcome depends on:
parameters, scenario, staleness, seed, and the code of policy, world and all that they import. So an interrupted table
goes on where it stopped, and a change of code repeats the runs that it can change and no others.

No policy is tuned to a scenario: each plays its defaults. The exploration floor is 0, so that the tables show the
policies alone. A floor of .01, the default of a loop, costs .01 (oracle - random) per decision: .6 % of the oracle's
clicks in the pet shop.
"""

from __future__ import annotations

import ast
import inspect
import os
import shlex
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import orjson
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from scipy.stats import t

from service.policies import KINDS, PolicyClass
from simulator.contestants import PolicySpec
from simulator.measures import overtaking, recovery, regret
from simulator.scenario import Scenario, load
from simulator.shocks import find_shock
from simulator.world import WORLDS, World
from tests.benchmarks.in_process import oracle, run_in_process

Array = NDArray[Any]

TITLE = "# Policies by scenario"
ROOT = Path(__file__).parents[2]
DOCS_TABLE = ROOT / "docs/benchmarks/policies.md"
SCENARIOS = (
    "s0-stationary",
    "s1-taste-swap",
    "s2-bestseller-collapse",
    "s3-catalogue-churn",
    "s4-gradual-drift",
    "s5-seasonality",
    "digits",
    "h-latent",
)
SEEDS, STEPS = 10, 20_000  # of the published tables
STALENESS = ((1, 0), (100, 100), (1000, 1000))  # (decisions from snapshot to snapshot, delay of rewards in decisions)
USUAL = (100, 100)
FULL_STALENESS = ("s1-taste-swap",)  # where all three are run
LOCKED = 0.98  # of the oracle over the last 5 000 steps before a shock or the end: less is locked in, in the pet shop
TAIL = 5000
GRADUAL = ("s4-gradual-drift", "s5-seasonality")  # nothing to recover from, and no alarm is false
RETRAINED = {"retrain_every": 5000, "window": 20000}  # how a batch-trained policy is also played, if it can be
BATCH = next(name for name, kind in KINDS.items() if kind.batch_trained)  # the policy to overtake


def played_policies() -> list[str]:
    """List every kind with its defaults, and batch-trained kinds also as retrained while they serve."""
    found = []
    for name, kind in KINDS.items():
        found.append(name)
        if kind.batch_trained and kind.Params.model_fields.keys() >= RETRAINED.keys():
            found.append(str(PolicySpec(name, RETRAINED)))
    return found


@dataclass(frozen=True)
class Job:
    """One run."""

    policy: str
    scenario: str
    period: int
    delay: int
    seed: int
    steps: int

    @property
    def file(self) -> Path:
        spec = PolicySpec.parse(self.policy)
        params = blake2b(orjson.dumps([spec.params, self.steps, code(self.policy)]), digest_size=6).hexdigest()
        return (
            ROOT / "runs/policies" / self.scenario / f"{spec.kind}-{self.period}-{self.delay}-{self.seed}-{params}.npz"
        )

    @property
    def plan(self) -> Scenario:
        return load(self.scenario, {"steps": self.steps})

    def world(self) -> World[Any]:
        plan = self.plan.plan()
        return WORLDS[plan.world](self.seed, [(at, find_shock(plan.world, name)) for name, at in plan.shock_steps])


@cache
def code(policy: str) -> str:
    """Compute a digest of the project's files that the outcome of a policy's run depends on."""
    spec = PolicySpec.parse(policy)
    kind = KINDS[spec.kind]
    start = {ROOT / "tests/benchmarks/in_process.py", ROOT / "simulator/shocks.py", file_of(kind)}
    if kind.Params.model_validate(spec.params).detect_change:
        start.add(file_of(KINDS["adaptive"]))  # the reference of policies that expect nothing (`Drift`)
    found: set[Path] = set()
    while start:
        file = start.pop()
        found.add(file)
        start |= imports(file) - found
    return blake2b(b"".join(file.read_bytes() for file in sorted(found)), digest_size=8).hexdigest()


def file_of(kind: PolicyClass) -> Path:
    return Path(inspect.getfile(kind))


def imports(file: Path) -> set[Path]:
    """Find the project's files that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.ImportFrom) and node.module:
            # `from package import module` names a module of the package, or something in the package itself.
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            paths = [ROOT / name.replace(".", "/") for name in names]
            found |= {path for stem in paths for path in (stem.with_suffix(".py"), stem / "__init__.py")}
    return {path for path in found if path.exists()}


def play(job: Job) -> Job:
    """Run a job and write its file."""
    warnings.simplefilter("ignore", RuntimeWarning)
    spec, world = PolicySpec.parse(job.policy), job.world()
    history = job.plan.history if KINDS[spec.kind].batch_trained else 0
    run = run_in_process(
        spec.kind,
        spec.params,
        world=world,
        steps=job.steps,
        snapshot_period=job.period,
        reward_delay=job.delay,
        history=history,
        floor=0.0,
    )
    job.file.parent.mkdir(parents=True, exist_ok=True)
    part = job.file.with_suffix(f".{os.getpid()}.npz")
    np.savez_compressed(
        part,
        expected=run.expected,
        oracle=oracle(world, job.steps),
        alarms=np.array(run.alarms),
        cost=np.array([run.decide_us, run.update_us, sum(a.nbytes for a in run.trainer.state().values())]),
    )
    part.rename(job.file)
    return job


@dataclass(frozen=True)
class Played:
    """Figures of one run; nan where a figure has no meaning, inf for a step that never came."""

    share: float
    before: float  # share of the oracle before the (first) shock; of the whole run where there is none
    regret: float
    regret_after: float
    overtakes: float
    recovery_90: float
    recovery_95: float
    locked: bool
    false_alarms: int
    decide_us: float
    update_us: float
    bytes: float


def measure(job: Job) -> Played:
    """Compute a run's figures from its file, and from that of the batch-trained policy on the same seed."""
    stored = np.load(job.file)
    expected, best = stored["expected"], stored["oracle"]
    shocks = [at for _, at in job.plan.plan().shock_steps if at > 1]  # what changes from the first step on is no shock
    after = shocks[0] if shocks else None
    end, abrupt = after or job.steps, job.scenario not in GRADUAL
    batch = Job(BATCH, job.scenario, job.period, job.delay, job.seed, job.steps).file
    overtakes = np.nan
    if batch.exists() and job.policy != BATCH:
        overtakes = never(overtaking(expected, np.load(batch)["expected"]))
    tails = [slice(max(0, end - TAIL), end), slice(job.steps - TAIL, job.steps)]

    def back(share: float) -> float:
        if after is None or not abrupt:
            return np.nan
        return never(recovery(expected, best, shock=after, share=share))

    return Played(
        share=expected.sum() / best.sum(),
        before=expected[:end].sum() / best[:end].sum(),
        regret=float(regret(expected, best)[-1]),
        regret_after=np.nan if after is None else float((best - expected)[after:].sum()),
        overtakes=overtakes,
        recovery_90=back(0.9),
        recovery_95=back(0.95),
        locked=abrupt and any(expected[tail].sum() < LOCKED * best[tail].sum() for tail in tails),
        false_alarms=sum(alarm < end for alarm in stored["alarms"].tolist()) if abrupt else 0,
        decide_us=stored["cost"][0],
        update_us=stored["cost"][1],
        bytes=stored["cost"][2],
    )


def values_of(runs: Sequence[Played], field: str) -> Array:
    """Collect one figure of all runs: (runs,)."""
    return np.array([getattr(run, field) for run in runs], dtype=np.float64)


def interval(values: Array) -> float:
    """Compute the half width of the 95 % interval of the mean (Student's t)."""
    n = len(values)
    return float(t.ppf(0.975, n - 1) * values.std(ddof=1) / np.sqrt(n))


def share(runs: Sequence[Played], field: str = "share") -> str:
    """Write the mean ± half its interval, and in brackets the worst."""
    values = values_of(runs, field)
    return f"{values.mean():.3f}" + (f" ± {interval(values):.3f} ({values.min():.3f})" if len(values) > 1 else "")


def mean(runs: Sequence[Played], field: str) -> str:
    values = values_of(runs, field)
    return "" if np.isnan(values).all() else f"{np.nanmean(values):,.0f}"


def median(runs: Sequence[Played], field: str) -> str:
    """Write the median, and in brackets the worst."""
    values = values_of(runs, field)
    if np.isnan(values).any():
        return ""
    shown = ["never" if np.isinf(value) else f"{value:,.0f}" for value in (np.median(values), values.max())]
    return shown[0] if shown[0] == shown[1] else f"{shown[0]} ({shown[1]})"


def never(step: int | None) -> float:
    return np.inf if step is None else step


COLUMNS: tuple[tuple[str, Callable[[Sequence[Played]], str]], ...] = (
    ("share of oracle (worst)", share),
    ("before the shock", lambda runs: share(runs, "before")),
    ("regret", lambda runs: mean(runs, "regret")),
    ("after the shock", lambda runs: mean(runs, "regret_after")),
    ("overtakes batch", lambda runs: median(runs, "overtakes")),
    ("90 % back", lambda runs: median(runs, "recovery_90")),
    ("95 % back", lambda runs: median(runs, "recovery_95")),
    ("locked in", lambda runs: f"{int(values_of(runs, 'locked').sum())}/{len(runs)}"),
    ("false alarms", lambda runs: f"{int(values_of(runs, 'false_alarms').sum())}"),
    ("µs/decision", lambda runs: mean(runs, "decide_us")),
    ("µs/update", lambda runs: mean(runs, "update_us")),
    ("state kB", lambda runs: f"{values_of(runs, 'bytes').mean() / 1000:,.0f}"),
)


def rows(jobs: Iterable[Job], scenario_name: str, staleness: tuple[int, int]) -> list[tuple[str, list[Played]]]:
    """Measure the finished runs of one table, by policy."""
    found: dict[str, list[Played]] = {}
    for job in jobs:
        if job.scenario == scenario_name and (job.period, job.delay) == staleness and job.file.exists():
            found.setdefault(job.policy, []).append(measure(job))
    return list(found.items())


def markdown(jobs: Sequence[Job]) -> str:
    """Write all tables as docs/benchmarks/policies.md shows them."""
    text: list[str] = []
    for name in dict.fromkeys(job.scenario for job in jobs):
        about = load(name).about
        for staleness in STALENESS:
            if found := rows(jobs, name, staleness):
                seeds = max(len(runs) for _, runs in found)
                text += [f"## {name}: snapshots every {staleness[0]} decisions, rewards {staleness[1]} late", ""]
                text += [f"{about} {seeds} seed{'s' * (seeds > 1)}.", ""]
                columns = [column for column in COLUMNS if any(column[1](runs) for _, runs in found)]
                text += ["| policy | " + " | ".join(title for title, _ in columns) + " |"]
                text += ["|---|" + "---|" * len(columns)]
                text += [
                    f"| {policy} | " + " | ".join(tell(runs) for _, tell in columns) + " |" for policy, runs in found
                ]
                text += [""]
    return "\n".join(text)


def show(console: Console, jobs: Sequence[Job]) -> None:
    """Print all tables."""
    for name in dict.fromkeys(job.scenario for job in jobs):
        for staleness in STALENESS:
            if found := rows(jobs, name, staleness):
                table = Table(title=f"{name}, snapshots every {staleness[0]}, rewards {staleness[1]} late")
                table.add_column("policy", no_wrap=True)
                for title, _ in COLUMNS:
                    table.add_column(title, justify="right")
                for policy, runs in found:
                    table.add_row(policy, *(tell(runs) for _, tell in COLUMNS))
                console.print(table)


def main(
    scenarios: Annotated[list[str] | None, typer.Option("--scenario", help="only this one; may be given again")] = None,
    policies: Annotated[
        list[str] | None, typer.Option("--policy", help="only this one, such as linucb:alpha=1; may be given again")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="runs of each, from seed 1 on")] = SEEDS,
    steps: Annotated[int | None, typer.Option(min=1000, help="of each run; default: as the scenario says")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="runs at a time")] = os.cpu_count() or 1,
    quick: Annotated[bool, typer.Option(help="two seeds of 10 000 steps of S0 and S1: minutes")] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            help="where the tables go, as Markdown; default: docs/benchmarks/policies.md for all of them with"
            f" --steps {STEPS}, else runs/policies/table.md",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Play every policy in every scenario and print the tables. Finished runs are kept: call it again to go on."""
    whole = not (scenarios or policies or quick) and (seeds, steps) == (SEEDS, STEPS)
    out = out or (DOCS_TABLE if whole else ROOT / "runs/policies/table.md")
    if quick:
        scenarios, seeds, steps = scenarios or ["s0-stationary", "s1-taste-swap"], 2, steps or 10_000
    planned = [
        Job(policy, name, *staleness, seed, steps or load(name).steps)
        for stale in (False, True)  # first what is usual, for all
        for seed in range(1, seeds + 1)
        for name in scenarios or SCENARIOS
        for staleness in STALENESS
        if (staleness != USUAL) == stale and not (stale and (quick or name not in FULL_STALENESS))
        for policy in policies or played_policies()
    ]
    console = Console(width=max(200, Console().width))
    missing = [job for job in planned if not job.file.exists()]
    console.print(f"{len(planned)} runs, {len(planned) - len(missing)} of them done before")
    started = time.monotonic()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with ProcessPoolExecutor(jobs) as pool, Progress(*columns, console=console) as progress:
        bar = progress.add_task("playing", total=len(missing))
        for done in as_completed([pool.submit(play, job) for job in missing]):
            job = done.result()
            progress.update(bar, advance=1, description=f"{job.scenario} {job.policy} seed {job.seed}")
    show(console, planned)
    out.parent.mkdir(parents=True, exist_ok=True)
    command = shlex.join(sys.argv[1:])
    out.write_text(f"{TITLE}\n\nGenerated by `make bench-policies ARGS='{command}'`.\n\n{markdown(planned)}")
    console.print(f"{time.monotonic() - started:.0f} s; as Markdown in {out}")


if __name__ == "__main__":
    typer.run(main)
