"""Compares the default policy with its rivals on real tables, of which it was told nothing.

make bench ARGS=tests/benchmarks/test_real_data.py                              # 5 seeds, about 25 minutes on 2 cores
make bench ARGS='tests/benchmarks/test_real_data.py --seeds 1-2 --world wine --arm adaptive --arm linucb'
make bench ARGS='tests/benchmarks/test_real_data.py --quick'                    # a table, some seconds

Worlds: names of tables, see `real_data.SOURCES`. Arms: policies, see `real_data.SETTINGS`. A rival shows the best of
its settings on these very seeds, of each measure for itself. Every run is also written to runs/real-data.json.
A table whose package is not installed is left out, and named.
"""

from __future__ import annotations

import csv
import gzip
import os
from collections import Counter
from itertools import product
from pathlib import Path

import orjson
import pytest
from rich.console import Console
from rich.table import Table as Shown

from simulator.progress import Stages
from tests.benchmarks.in_process import in_parallel
from tests.benchmarks.real_data import (
    DEFAULT,
    SETTINGS,
    SOURCES,
    STEPS,
    Best,
    Job,
    NoTable,
    Outcome,
    Table,
    TableWorld,
    as_json,
    best_of,
    gain_with_labels,
    play,
    table,
)
from tests.benchmarks.test_shapes_of_data import chosen_seeds

ROOT = Path(__file__).parents[2]
FILE = ROOT / "runs/real-data.json"
OPEN_BANDIT = ROOT.parent / "shared/data/obd/women/random.csv.gz"
QUICK_STEPS, QUICK_TABLE = 200, "iris"
SEEDS = "101-105"
MEASURES = {"whole": "Gain of the whole run", "last": "Gain of the last fifth"}


def test_gains(request: pytest.FixtureRequest, quick: bool) -> None:
    asked, arms = (request.config.getoption(option) for option in ("--world", "--arm"))
    tables = found_tables(asked or ([QUICK_TABLE] if quick else list(SOURCES)))
    policies = known(arms or list(SETTINGS), list(SETTINGS), "arm")
    seeds = [101] if quick else chosen_seeds(request.config.getoption("--seeds") or SEEDS)
    steps = QUICK_STEPS if quick else request.config.getoption("--steps") or STEPS
    jobs = [
        Job(of.name, policy, setting, seed, steps)
        for of, policy in product(tables, policies)
        for setting, seed in product(range(len(SETTINGS[policy])), seeds)
    ]
    outcomes: dict[Job, Outcome] = {}
    left = Counter(job.table for job in jobs)
    console = Console(width=None if Console().is_terminal else 200)
    with Stages(console) as stages, stages.stage("playing", len(jobs)) as advance:
        for job, outcome in in_parallel(play, jobs):
            outcomes[job] = outcome
            advance(1)
            left[job.table] -= 1
            if not left[job.table]:
                of_table = {one: outcomes[one] for one in jobs if one.table == job.table}
                [row] = best_of(of_table, "whole").values()
                stages.console.print(job.table, *(f"{policy}: {best}" for policy, best in row.items()), sep="  ")
    outcomes = {job: outcomes[job] for job in jobs}
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_bytes(orjson.dumps(as_json(outcomes), option=orjson.OPT_INDENT_2))
    for measure, title in MEASURES.items():
        console.print(shown(title, best_of(outcomes, measure), tables, policies, len(seeds)))


def found_tables(names: list[str]) -> list[Table]:
    """Read the tables whose packages are installed; name the others.

    Raises:
        pytest.UsageError: there is no such table.
    """
    found = []
    for name in known(names, list(SOURCES), "table"):
        try:
            found.append(table(name))
        except NoTable as missing:
            print(f"left out: {missing}")
    return found


def known(names: list[str], all_names: list[str], of: str) -> list[str]:
    """Return the names, each once.

    Raises:
        pytest.UsageError: one is not known.
    """
    if unknown := [name for name in names if name not in all_names]:
        raise pytest.UsageError(f"there is no {of} {unknown[0]!r}; there are: {', '.join(all_names)}")
    return list(dict.fromkeys(names))


def shown(title: str, best: dict[str, dict[str, Best]], tables: list[Table], policies: list[str], seeds: int) -> Shown:
    """Show one row for each table, and by how much the default policy is ahead of its best rival."""
    lines = Shown(title=title, title_justify="left", title_style="bold")
    lines.add_column("table (rows, columns, classes)")
    for policy in policies:
        lines.add_column(policy, justify="right")
    lines.add_column("ahead of the best rival by", justify="right")
    lines.add_column("labels known", justify="right")
    lines.caption = (
        f"Means of {seeds} seeds ± standard error; below a rival's gain, its best setting. "
        "Labels known: a logistic regression that was given them all."
    )
    for of in tables:
        row = best[of.name]
        cells = [str(row[policy]) + (f"\n{row[policy].setting}" if policy != DEFAULT else "") for policy in policies]
        lines.add_row(str(of), *cells, lead_of(row), f"{gain_with_labels(of):.3f}")
    return lines


def lead_of(row: dict[str, Best]) -> str:
    """Say by how much the default policy is ahead of its best rival, with the standard error."""
    rivals = [policy for policy in row if policy != DEFAULT]
    if DEFAULT not in row or not rivals:
        return ""
    rival = max(rivals, key=lambda policy: row[policy].mean)
    lead, error = row[DEFAULT].ahead_of(row[rival])
    return f"{lead:+.3f} ±{error:.3f} ({rival})"


def test_the_label_pays() -> None:
    of = Table("two", [{"a": 1}, {"a": None}], ["x", "y"])
    world = TableWorld(of, seed=1)
    moments = [world.at(step) for step in range(200)]
    assert [moment.visit.context["a"] for moment in moments].count(None) in range(60, 140)
    assert len({moment.visit.user_id for moment in moments}) == len(moments)
    for moment in moments:
        label = of.labels[of.contexts.index(moment.visit.context)]
        assert [moment.outcome(item)[1] for item in ("x", "y")] == [float(item == label) for item in ("x", "y")]
    assert [world.at(step).visit for step in range(200)] == [moment.visit for moment in moments]


def test_what_the_open_bandit_sample_can_tell() -> None:
    """Compute how far a replay of a log of uniformly random impressions tells policies apart.

    A replay keeps the impressions whose item the policy would have shown: one in so many as there are items. The
    inverse-propensity estimate of a deterministic policy's click rate has the same standard error.
    """
    file = Path(os.environ.get("OPEN_BANDIT", OPEN_BANDIT))
    if not file.exists():
        pytest.skip(f"the log of random impressions is not there: {file}")
    with gzip.open(file, "rt") as lines:
        rows = [(row["item_id"], int(row["click"])) for row in csv.DictReader(lines)]
    n, items = len(rows), len({item for item, _ in rows})
    clicks = sum(click for _, click in rows)
    rate = clicks / n
    error = (items * rate / n) ** 0.5
    needed = 4 * items * rate / (0.5 * rate) ** 2
    print(
        f"{n:,} impressions of {items} items, {clicks} clicks ({rate:.4f}). A replay of any policy matches about "
        f"{n / items:.0f} of them, with {clicks / items:.1f} clicks; the standard error of its click rate is "
        f"{error:.4f}. To see a policy half as good again at two standard errors takes {needed:,.0f} impressions."
    )
    assert error > rate / 2  # so no policy can be told from chance
