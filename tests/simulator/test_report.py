"""The report tells what is in the runs: in figures, in words, and in a folder of three files."""

from __future__ import annotations

import io
from itertools import pairwise
from pathlib import Path

import numpy as np
import orjson
import pytest
from rich.console import Console

from simulator.chart_data import lines
from simulator.report import new_folder, write
from simulator.report_image import image
from simulator.summary import rows, table
from tests.simulator.builders import SHOCK, SHOCKS, STEPS, report_of, wide_report


def test_figures() -> None:
    policies = report_of()["policies"]
    linucb, offline = policies["linucb"], policies["offline"]
    assert offline["before"]["mean"] == pytest.approx(0.5)
    assert offline["after"]["mean"] == pytest.approx(0.1)
    assert offline["recovery"][0]["90%"] == {"median": None, "worst": None, "seeds": [None]}
    # 450 steps at .2, then .5: the first window with 90 % holds 83 of the former
    assert linucb["recovery"][0]["90%"]["median"] == 450 - 83 + 500
    # 120 clicks behind at first, 75 after 450 steps; then .4 less in each step
    assert linucb["overtakes_baseline"]["median"] == SHOCK + 450 + 187
    assert linucb["clicked"]["mean"] == 0.5
    assert linucb["latency_ms"]["p50"] == pytest.approx(50.5, abs=0.1)
    assert linucb["decisions_between_versions"] == {"median": 40.0, "mean": 40.0}
    assert offline["overtakes_baseline"] is None, "it is the baseline"
    assert policies["swapped"]["swapped_at"] == [1000]
    assert policies["random"]["regret"]["mean"] == pytest.approx(0.3 * STEPS)
    assert {label for label, policy in policies.items() if not policy["beats_random"]} == {"random"}


def test_several_seeds_have_mean_and_spread() -> None:
    before = report_of(3)["policies"]["offline"]["before"]
    assert before["seeds"] == pytest.approx([0.5, 0.49, 0.48])
    assert (before["mean"], before["sd"], before["min"], before["max"]) == pytest.approx((0.49, 0.01, 0.48, 0.50))


def test_the_headline_tells_the_story() -> None:
    headline = report_of()["headline"]
    assert headline.startswith("linucb wins with 87 %")
    assert "taste-swap struck at step 2,000" in headline
    assert "offline fell from 0.50 to 0.10" in headline
    assert "never came back" in headline


def test_a_winning_swap_is_named_by_its_policies() -> None:
    report = wide_report()
    assert report["headline"].startswith("popularity:epsilon=0.1 → linucb:alpha=1.5,ridge=2 at 1,000 wins")


def test_the_table_ranks_and_frames() -> None:
    found = rows(report_of())
    assert [row[0] for row in found] == [
        "linucb:alpha=1.5",
        "popularity → linucb at 1,000",
        "offline",
        "random",
        "best possible",
        "chance",
    ]
    console = Console(file=io.StringIO(), width=160)
    console.print(table(report_of()))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "never" in shown
    assert "ahead of offline" in " ".join(shown.split())


def test_without_a_batch_trained_policy_there_is_no_baseline() -> None:
    report = report_of()
    report["settings"]["baseline"] = None
    console = Console(file=io.StringIO(), width=160)
    console.print(table(report))
    assert "ahead of" not in console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("seeds", "shocks"), [(1, SHOCKS), (3, ()), (2, (("bestseller-collapse", 0.3), ("catalogue-churn", 0.6)))]
)
def test_all_files_are_written(tmp_path: Path, seeds: int, shocks: tuple[tuple[str, float], ...]) -> None:
    report = report_of(seeds, shocks=shocks)
    json, page, picture = write(new_folder(tmp_path / "runs"), report)
    assert orjson.loads(json.read_bytes()) == orjson.loads(orjson.dumps(report))
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert picture.stat().st_size > 50_000
    text = page.read_text()
    assert report["headline"] in text
    for name, _ in shocks:
        assert f"<b>{name}</b>" in text


def test_curves_are_told_apart() -> None:
    looks = lines(wide_report())
    assert len(looks) == 12
    assert len(set(looks.values())) == 12
    assert [label for label, look in looks.items() if look.dash == "dash"] == ["swapped"]


def test_folders_never_collide(tmp_path: Path) -> None:
    folders = {new_folder(tmp_path) for _ in range(5)}
    assert len(folders) == 5


def test_labels_of_the_image_are_whole_and_apart() -> None:
    """Every text lies within the image, and no two labels at the ends of curves overlap."""
    report = wide_report()
    colours = {look.colour for look in lines(report).values()}
    figure = image(report)
    figure.draw_without_rendering()
    box = figure.bbox
    for axes in figure.axes:
        ends = [text.get_window_extent() for text in axes.texts if text.get_color() in colours]
        assert len(ends) == 12
        texts = [*axes.texts, *axes.get_xticklabels(), *axes.get_yticklabels(), axes.title, axes.yaxis.label]
        for text in texts:
            found = text.get_window_extent()
            assert box.x0 <= found.x0 <= found.x1 <= box.x1, text
            assert box.y0 <= found.y0 <= found.y1 <= box.y1, text
        ends.sort(key=lambda found: found.y0)
        gaps = np.array([high.y0 - low.y1 for low, high in pairwise(ends)])
        assert (gaps > -1).all(), gaps
