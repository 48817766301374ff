"""The report tells what is in the runs, in figures, in words and in pictures."""

from __future__ import annotations

import io
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import orjson
import pytest
from rich.console import Console

from simulator.arena import Plan, Run, Track
from simulator.contestants import parse_contestants
from simulator.figures import Figures, rows, summarise, table
from simulator.report import new_folder, write

STEPS, SHOCK = 4000, 2000


def played(seeds: int = 1, *, shocks: tuple[tuple[str, float], ...] = (("taste-swap", 0.5),)) -> Figures:
    """Runs made by hand: the batch model is perfect, then lost; linucb is back after 900 steps."""
    contestants = parse_contestants(["random", "embedding_mlp", "linucb:alpha=1.5"], "popularity,linucb@0.25")
    plan = Plan(contestants, steps=STEPS, seeds=range(seeds), shocks=shocks)
    at = np.arange(STEPS)
    oracle = np.full(STEPS, 0.5)
    expected = {
        "random": np.full(STEPS, 0.2),
        "embedding_mlp": np.where(at < SHOCK, 0.5, 0.1),
        "linucb": np.where(at < 400, 0.2, np.where((at >= SHOCK) & (at < SHOCK + 450), 0.2, 0.5)),
        "swapped": np.where(at < 1000, 0.3, 0.45),
    }
    runs = []
    for seed in range(seeds):
        tracks = []
        for contestant in contestants:
            track = Track.empty(contestant, "loop", STEPS)
            track.expected = expected[contestant.label] - 0.01 * seed
            track.clicks = np.arange(STEPS) % 2 == 0
            track.latency_ms = np.linspace(1, 100, STEPS)
            track.version = at // 40
            track.policy = [contestant.policy.kind] * STEPS
            if contestant.successor:
                track.policy = [contestant.policy.kind] * 1000 + [contestant.successor.kind] * 3000
                track.swapped_at = track.adopted_at = 1000
            tracks.append(track)
        runs.append(Run(seed, oracle, np.full(STEPS, 0.2), tracks, seconds=10.0))
    return summarise(plan, runs, command="rebound-sim arena", started=datetime(2026, 1, 1, tzinfo=UTC))


def test_figures() -> None:
    policies = played()["policies"]
    linucb, mlp = policies["linucb"], policies["embedding_mlp"]
    assert mlp["before"]["mean"] == pytest.approx(0.5)
    assert mlp["after"]["mean"] == pytest.approx(0.1)
    assert mlp["recovery"][0]["90%"] == {"median": None, "worst": None, "seeds": [None]}
    # 450 steps at .2, then .5: the first window with 90 % holds 83 of the former
    assert linucb["recovery"][0]["90%"]["median"] == 450 - 83 + 500
    assert (
        linucb["overtakes_baseline"]["median"] == SHOCK + 450 + 187
    )  # 120 behind at first, 75 after 450 steps; then .4 less a step
    assert linucb["clicked"]["mean"] == 0.5
    assert linucb["latency_ms"]["p50"] == pytest.approx(50.5, abs=0.1)
    assert linucb["decisions_between_versions"] == {"median": 40.0, "mean": 40.0}
    assert mlp["overtakes_baseline"] is None
    assert policies["swapped"]["swapped_at"] == [1000]
    assert policies["random"]["regret"]["mean"] == pytest.approx(0.3 * STEPS)


def test_several_seeds_have_mean_and_spread() -> None:
    before = played(3)["policies"]["embedding_mlp"]["before"]
    assert before["seeds"] == pytest.approx([0.5, 0.49, 0.48])
    assert (before["mean"], before["sd"], before["min"], before["max"]) == pytest.approx((0.49, 0.01, 0.48, 0.50))


def test_the_headline_tells_the_story() -> None:
    said = played()["headline"]
    assert said.startswith("linucb wins with 87 %")
    assert "taste-swap struck at step 2,000" in said
    assert "embedding_mlp fell from 0.50 to 0.10" in said
    assert "never came back" in said


def test_the_table_ranks_and_frames() -> None:
    found = rows(played())
    assert [row[0].split(":")[0].split(" ")[0] for row in found] == [
        "linucb",
        "popularity",
        "embedding_mlp",
        "random",
        "best",
        "chance",
    ]
    assert found[1][0] == "popularity → linucb at 1,000"
    console = Console(file=io.StringIO(), width=160)
    console.print(table(played()))
    assert "never" in console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("seeds", "shocks"),
    [
        (1, (("taste-swap", 0.5),)),
        (3, (("taste-swap", 0.5),)),
        (1, ()),
        (2, (("bestseller-collapse", 0.3), ("catalogue-churn", 0.6))),
    ],
)
def test_all_files_are_written(tmp_path: Path, seeds: int, shocks: tuple[tuple[str, float], ...]) -> None:
    report = played(seeds, shocks=shocks)
    folder = new_folder(tmp_path / "runs")
    json, page, image = write(folder, report)
    assert orjson.loads(json.read_bytes()) == orjson.loads(orjson.dumps(report))
    assert image.read_bytes().startswith(b"\x89PNG")
    assert image.stat().st_size > 50_000
    text = page.read_text()
    assert report["headline"] in text
    for name, _ in shocks:
        assert f"<b>{name}<" in text.replace("\\u003c", "<").replace("\\u003e", ">")
    tags = text.replace("<script", "\n<script").splitlines()
    outside = [
        tag
        for tag in tags
        if tag.startswith(("<script", "<link", "<img")) and ("src=" in tag[:60] or "href=" in tag[:60])
    ]
    assert outside == [], "the page needs no network"


def test_folders_never_collide(tmp_path: Path) -> None:
    folders = {new_folder(tmp_path) for _ in range(5)}
    assert len(folders) == 5
