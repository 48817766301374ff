"""Compares the pet shop through a change of tastes over HTTP with the same in one process.

make bench ARGS=tests/benchmarks/test_arena.py            # every kind, 5 seeds: more than an hour
make bench ARGS='tests/benchmarks/test_arena.py --policy random --policy linucb:alpha=1.5'
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orjson
import pytest
from numpy.typing import NDArray

from service.policies import KINDS
from simulator.contestants import Contestant, parse_contestants
from simulator.shocks import find_shock
from simulator.world.petshop import Petshop
from tests.benchmarks.in_process import run_in_process
from tests.processes import Served

WINDOW = 16  # the arena's requests in flight: its reward delay, in decisions
BACK = 0.42  # expected clicks per recommendation that count as recovered


class Size(NamedTuple):
    seeds: int
    steps: int
    history: int  # impressions for batch-trained policies

    @property
    def shock(self) -> int:
        """The step at which tastes change."""
        return self.steps // 2

    @property
    def spans(self) -> dict[str, tuple[int, int]]:
        """First and last step of each span of the arena's report."""
        last = 2000
        return {
            "before": (0, self.shock),
            "last_before": (max(0, self.shock - last), self.shock),
            "after": (self.shock, self.steps),
            "last": (max(0, self.steps - last), self.steps),
        }


FULL, QUICK = Size(5, 20_000, 200_000), Size(2, 400, 1_000)


def over_http(policies: list[str], size: Size, tmp_path: Path) -> dict[str, Any]:
    """Run the arena against a service of its own; return its report."""
    with Served(tmp_path / "data") as served:
        command = [sys.executable, "-m", "simulator", "arena", *policies, "--shock", "taste-swap@0.5"]
        command += ["--url", served.url, "--out", str(tmp_path / "runs"), "--window", str(WINDOW)]
        command += ["--seeds", str(size.seeds), "--steps", str(size.steps), "--history", str(size.history)]
        subprocess.run(command, check=True)
    (report,) = (tmp_path / "runs").glob("*/report.json")
    found: dict[str, Any] = orjson.loads(report.read_bytes())
    return found


def in_process(contestant: Contestant, period: int, size: Size) -> NDArray[np.float64]:
    """Return the expected click rates (seeds, steps)."""
    spec = contestant.policy
    runs = [
        run_in_process(
            spec.kind,
            spec.params,
            world=Petshop(seed, [(size.shock, find_shock("petshop", "taste-swap"))]),
            steps=size.steps,
            snapshot_period=period,
            reward_delay=WINDOW,
            history=size.history if KINDS[spec.kind].batch_trained else 0,
        ).expected
        for seed in range(1, size.seeds + 1)
    ]
    return np.stack(runs)


def test_http_and_in_process_agree(tmp_path: Path, quick: bool, request: pytest.FixtureRequest) -> None:
    """Each span's means differ by no more than four standard errors (and .01, where nothing varies)."""
    size = QUICK if quick else FULL
    policies = request.config.getoption("--policy") or list(KINDS)
    report = over_http(policies, size, tmp_path)
    print(f"\n{'policy':14} {'steps':13} {'over HTTP':>15} {'in process':>15}")
    apart = []
    for contestant in parse_contestants(policies, None):
        found = report["policies"][contestant.label]
        period = found["decisions_between_versions"]
        expected = in_process(contestant, max(1, round(period["mean"])) if period else WINDOW, size)
        for name, (first, last) in size.spans.items():
            http = np.array(found[name]["seeds"])
            ours = expected[:, first:last].mean(axis=1)
            print(f"{contestant.label:14} {first:6}–{last:6} {shown(http):>15} {shown(ours):>15}")
            error = np.sqrt((http.var(ddof=1) + ours.var(ddof=1)) / size.seeds)
            if abs(http.mean() - ours.mean()) > 4 * error + 0.01:
                apart.append(f"{contestant.label} in {name}")
        print(f"{contestant.label:14} {back(report, contestant.label, size)}; decisions between versions: {period}")
    assert quick or not apart


def back(report: dict[str, Any], label: str, size: Size) -> str:
    """Tell when the mean rate over HTTP was above `BACK` again after the shock."""
    rate = np.array(report["curves"]["rate"][label]["mean"])
    step = np.array(report["curves"]["rate_step"])
    found = step[(step >= size.shock + report["curves"]["window"]) & (rate > BACK)]
    return f"above {BACK} again {found[0] - size.shock} steps after the shock" if len(found) else f"never above {BACK}"


def shown(rates: NDArray[np.float64]) -> str:
    """Write the mean and standard deviation over the seeds."""
    return f"{rates.mean():.3f} ± {rates.std(ddof=1):.3f}"
