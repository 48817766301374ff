"""Measures what the default policy learns from the shapes of data that users send.

make bench ARGS=tests/benchmarks/test_shapes_of_data.py                          # 3 seeds, about 40 minutes on 2 cores
make bench ARGS='tests/benchmarks/test_shapes_of_data.py --seeds 1-10 --world ids --world noise-15 --arm "no schema"'

Worlds: names, or `study` (the default), `neighbours`, `noise`, `levels` and `changes`, `all`; a name with + at its end
brings its neighbours. Arms: see `shapes.ARMS`. Every run is also written to runs/shapes-of-data.json.
"""

from __future__ import annotations

from collections import Counter
from itertools import product
from pathlib import Path

import numpy as np
import orjson
import pytest
from rich.console import Console
from rich.table import Table

from simulator.progress import Stages
from simulator.world.shapes import SHAPES, STUDY, neighbours
from tests.benchmarks.in_process import in_parallel
from tests.benchmarks.shapes import ARMS, USUAL, Cell, Job, Outcome, as_json, cells, play

FILE = Path(__file__).parents[2] / "runs/shapes-of-data.json"
QUICK_STEPS = 200
SEEDS = "1-3"
CLOSE = 0.05  # a gain from the study's

# Gains of the last fifth and of the whole run that the study of representations found: hashed columns without ids of
# items, and the declared reference.
STUDIED: dict[str, dict[str, tuple[float, float]]] = {
    "ids": {"hashed": (-0.01, 0.00), "declared": (0.98, 0.94)},
    "codes": {"hashed": (0.26, 0.24), "declared": (0.98, 0.93)},
    "codes-1001": {"hashed": (0.02, 0.01), "declared": (0.98, 0.93)},
    "noise-15": {"hashed": (0.21, 0.15), "declared": (0.98, 0.92)},
    "request-ids": {"hashed": (0.58, 0.49), "declared": (0.98, 0.94)},
    "type-change": {"hashed": (0.23, 0.50), "declared": (0.98, 0.93)},
    "revenue": {"hashed": (0.68, 0.47), "declared": (0.96, 0.90)},
    "negative": {"hashed": (0.92, 0.80), "declared": (0.98, 0.92)},
    "robots": {"hashed": (0.97, 0.88), "declared": (0.98, 0.89)},
    "rare-clicks": {"hashed": (0.81, 0.61), "declared": (0.85, 0.62)},
    "age-price": {"hashed": (0.03, 0.05), "declared": (0.98, 0.97)},
    "middle-price": {"hashed": (0.09, 0.07), "declared": (0.86, 0.79)},
    "users-alone": {"hashed": (0.03, 0.00), "declared": (0.53, 0.36)},
    "users-of-kinds": {"hashed": (0.05, 0.04)},
    "embeddings": {"declared": (0.94, 0.88)},
    "nested": {"hashed": (0.78, 0.62), "declared": (0.97, 0.90)},
    "born-and-dying": {"hashed": (0.87, 0.79), "declared": (0.86, 0.81)},
    "many-arms": {"hashed": (0.62, 0.48), "declared": (0.69, 0.57)},
}
SWEEPS = {
    "noise": ("kinds", "noise-5", "noise-15", "noise-50"),
    "changes": ("type-change", "field-appears", "field-vanishes", "scale-change"),
    "levels": ("users-alone-10", "users-alone-100", "users-alone-1000", "users-alone-10000"),
}


def chosen_worlds(names: list[str]) -> list[str]:
    """Return the worlds of these names, each once.

    Raises:
        pytest.UsageError: there is no such world.
    """
    groups = {
        "study": STUDY,
        "neighbours": [name for name in SHAPES if name not in STUDY],
        "all": list(SHAPES),
        **SWEEPS,
        **{f"{name}+": [name, *neighbours(name)] for name in STUDY},
    }
    unknown = [name for name in names if name not in groups and name not in SHAPES]
    if unknown:
        raise pytest.UsageError(f"there is no world {unknown[0]!r}; there are: {', '.join((*groups, *SHAPES))}")
    return list(dict.fromkeys(world for name in names for world in groups.get(name, [name])))


def chosen_seeds(text: str) -> list[int]:
    """Read `3`, `1-10` or `1,4,7-9`."""
    seeds: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        seeds += range(int(first), int(last or first) + 1)
    return seeds


def test_gains(request: pytest.FixtureRequest, quick: bool) -> None:
    worlds = chosen_worlds(request.config.getoption("--world") or ["study"])
    arms = request.config.getoption("--arm") or list(USUAL)
    if unknown := set(arms) - set(ARMS):
        raise pytest.UsageError(f"there is no arm {min(unknown)!r}; there are: {', '.join(ARMS)}")
    seeds = [1] if quick else chosen_seeds(request.config.getoption("--seeds") or SEEDS)
    steps = QUICK_STEPS if quick else request.config.getoption("--steps")
    jobs = [Job(world, arm, seed, steps) for world, arm, seed in product(worlds, arms, seeds)]
    outcomes: dict[Job, Outcome] = {}
    left = Counter(job.world for job in jobs)
    console = Console(width=None if Console().is_terminal else 200)
    with Stages(console) as stages, stages.stage("playing", len(jobs)) as advance:
        for job, outcome in in_parallel(play, jobs):
            outcomes[job] = outcome
            advance(1)
            left[job.world] -= 1
            if not left[job.world]:
                row = cells({one: outcomes[one] for one in jobs if one.world == job.world})[job.world]
                stages.console.print(job.world, *(f"{arm}: {cell}" for arm, cell in row.items()), sep="  ")
    outcomes = {job: outcomes[job] for job in jobs}
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_bytes(orjson.dumps(as_json(outcomes), option=orjson.OPT_INDENT_2))
    found = cells(outcomes)
    console.print(table(found, arms, len(seeds)))
    if any(world in SWEEPS["levels"] for world in worlds):
        console.print(times("Decisions until half of the gain", "half_at", found, arms))
    changing = {world: row for world, row in found.items() if SHAPES[world].changes_at}
    if changing:
        console.print(times("Decisions from the change to .9 of the gain before", "regained", changing, arms))
    for line in (*of_reference(found), *(differences(found) if steps is None else ())):
        console.print(line, highlight=False)
    for world, row in found.items():
        for arm, cell in row.items():
            if cell.error is not None:
                console.print(f"{world}, {arm}: {cell.error}", highlight=False, markup=False)


def table(found: dict[str, dict[str, Cell]], arms: list[str], seeds: int) -> Table:
    """Show one row for each world."""
    shown = Table(title="Gain", title_justify="left", title_style="bold")
    shown.add_column("world", no_wrap=True)
    for arm in arms:
        shown.add_column(arm, justify="right", no_wrap=True)
    shown.caption = (
        f"(shown - random) / (best - random): last fifth / whole run, means of {seeds} seeds (standard deviation and "
        "worst seed of the last fifth). !n: n seeds are locked in."
    )
    for world, row in found.items():
        shown.add_row(world, *(str(row[arm]) for arm in arms))
    return shown


def times(title: str, measure: str, found: dict[str, dict[str, Cell]], arms: list[str]) -> Table:
    """Show a measure of cells that counts decisions."""
    shown = Table("world", *arms, title=title, title_justify="left", title_style="bold")
    for world, row in found.items():
        values = [getattr(row[arm], measure) for arm in arms]
        shown.add_row(world, *("never" if value == np.inf else f"{value:,.0f}" for value in values))
    return shown


def of_reference(found: dict[str, dict[str, Cell]], *, last: float = 0.95, whole: float = 0.85) -> list[str]:
    """Name the worlds in which no schema reaches less than these shares of the declared reference's gains."""
    lines = []
    for world, row in found.items():
        if "no schema" not in row or "declared" not in row:
            continue
        mine, theirs = row["no schema"], row["declared"]
        if not (mine.last >= last * theirs.last and mine.whole >= whole * theirs.whole):
            lines.append(
                f"{world}: no schema reaches {mine.last / theirs.last:.2f} / {mine.whole / theirs.whole:.2f} of the "
                f"declared reference ({last:g} / {whole:g} wanted)"
            )
    return lines


def differences(found: dict[str, dict[str, Cell]]) -> list[str]:
    """Name the figures that are further than .05 from the study's."""
    lines = []
    for world, row in found.items():
        for arm, figures in STUDIED.get(world, {}).items():
            cell = row.get(arm)
            if cell is not None and not np.allclose((cell.last, cell.whole), figures, atol=CLOSE):
                lines.append(
                    f"{world}, {arm}: {cell.last:.2f} / {cell.whole:.2f}; the study has {figures[0]:.2f} / "
                    f"{figures[1]:.2f}; standard errors {cell.last_sd / cell.seeds**0.5:.2f} / "
                    f"{cell.whole_sd / cell.seeds**0.5:.2f}"
                )
    return lines
