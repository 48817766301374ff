"""The pet shop through a change of tastes, over HTTP and in one process: nothing is lost on the way.

make bench ARGS=tests/benchmarks/test_arena.py            # 5 seeds, about 25 minutes
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from simulator.shocks import find_shock
from simulator.world.petshop import Petshop
from tests.processes import Served
from tests.twin import run_twin

SEEDS, STEPS, SHOCK = 5, 20_000, 10_000
WINDOW = 16  # the arena's requests in flight: its reward delay, in decisions
SPANS = {"before": (0, 10_000), "last_before": (8_000, 10_000), "after": (10_000, 20_000), "last": (18_000, 20_000)}
POLICIES: Mapping[str, tuple[str, dict[str, Any], int]] = {
    "random": ("random", {}, 0),
    "popularity": ("popularity", {}, 0),
    "embedding_mlp": ("embedding_mlp", {}, 200_000),
    "linucb": ("linucb", {"alpha": 1.5, "ridge": 1.0}, 0),
}
SPECS = ("random", "popularity", "embedding_mlp", "linucb:alpha=1.5,ridge=1")


def over_http(tmp_path: Path) -> dict[str, Any]:
    """The arena's report."""
    with Served(tmp_path / "data") as served:
        command = [sys.executable, "-m", "simulator", "arena", "--url", served.url, "--out", str(tmp_path / "runs")]
        subprocess.run([*command, *SPECS, "--seeds", str(SEEDS), "--steps", str(STEPS)], check=True)
    (report,) = (tmp_path / "runs").glob("*/report.json")
    found: dict[str, Any] = orjson.loads(report.read_bytes())
    return found


def in_process(policy: str, period: int) -> NDArray[np.float64]:
    """Expected click rates, (seeds, steps)."""
    kind, params, history = POLICIES[policy]
    runs = [
        run_twin(
            kind,
            params,
            world=Petshop(seed, [(SHOCK, find_shock("petshop", "taste-swap"))]),
            steps=STEPS,
            snapshot_period=period,
            reward_delay=WINDOW,
            history=history,
        ).expected
        for seed in range(1, SEEDS + 1)
    ]
    return np.stack(runs)


def test_http_and_in_process_agree(tmp_path: Path) -> None:
    """Each span's means differ by no more than four standard errors (and .01, where nothing varies)."""
    report = over_http(tmp_path)
    print(f"\n{'policy':14} {'steps':13} {'over HTTP':>15} {'in process':>15}")
    for policy in POLICIES:
        found = report["policies"][policy]
        period = found["decisions_between_versions"]
        twin = in_process(policy, max(1, round(period["mean"])) if period else WINDOW)
        for name, (first, last) in SPANS.items():
            http = np.array(found[name]["seeds"])
            ours = twin[:, first:last].mean(axis=1)
            print(f"{policy:14} {first:6}–{last:6} {shown(http):>15} {shown(ours):>15}")
            error = np.sqrt((http.var(ddof=1) + ours.var(ddof=1)) / SEEDS)
            assert abs(http.mean() - ours.mean()) <= 4 * error + 0.01, f"{policy} in {name}"
    linucb = np.array(report["curves"]["rate"]["linucb"]["mean"])
    step = np.array(report["curves"]["rate_step"])
    back = step[(step >= SHOCK + 500) & (linucb > 0.42)][0] - SHOCK
    versions = report["policies"]["linucb"]["decisions_between_versions"]
    print(f"linucb: above .42 again {back:.0f} steps after the shock; decisions between versions: {versions}")


def shown(rates: NDArray[np.float64]) -> str:
    """Mean and standard deviation over the seeds."""
    return f"{rates.mean():.3f} ± {rates.std(ddof=1):.3f}"
