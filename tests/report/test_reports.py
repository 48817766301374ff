"""Reports: one page that loads nothing, and a picture; both say what to do."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from service.report import evaluation as of_evaluation
from service.report import experiment as of_experiment
from service.report.content import Bar, Chart, Report
from service.report.page import page
from service.report.write import write
from tests.report.builders import answer, arm, evaluation, experiment, finding, interval

ASKED = {"estimator": "ips", "interval": "anytime"}
WHY = {"slates": "of several items"}
NAUGHTY = "<script>alert(1)</script>"


def told(*answers: dict[str, object]) -> Report:
    return of_evaluation.report_of("shop", evaluation(*answers), ASKED, WHY, "Made today")


def rails(*lifts: float) -> list[dict[str, object]]:
    return [{"metric": "reported", "drop": 0.1, "verdict": "ok", "lift": interval(lift, 0.02)} for lift in lifts]


@pytest.mark.parametrize(
    ("answers", "headline", "tone", "to_do"),
    [
        ([answer("linucb", 0.05), answer("random", -0.04)], "linucb would have been better by 0.03", "good", "Release"),
        ([answer("linucb", 0.01)], "linucb: can't tell yet", "open", "Wait for about 3,100 decisions more"),
        ([answer("linucb", -0.05)], "What serves is better than all", "bad", "Keep what serves."),
        ([answer("linucb", None, why="too few")], "The log cannot answer", "open", "linucb was refused: too few."),
    ],
)
def test_an_evaluation_says_what_to_do(answers: list[dict[str, object]], headline: str, tone: str, to_do: str) -> None:
    found = told(*answers)
    assert found.headline.startswith(headline)
    assert found.tone == tone
    assert found.to_do[0].startswith(to_do)
    assert [bar.label for chart in found.charts for bar in chart.bars] == [
        one["target"] for one in answers if one["refusal"] is None
    ]


def test_segments_and_what_was_left_out_are_told() -> None:
    parts = [{"segment": "os = a", **finding(0.05)}, {"segment": "os = b", **finding(None, why="few")}]
    found = told(answer("linucb", 0.05, segments=parts, left_out={"slates": 1200}))
    assert [bar.label for bar in found.charts[1].bars] == ["os = a"]
    assert found.tables[1].rows == [("linucb", "os = b", "few")]
    assert found.tables[2].rows == [("linucb", "of several items", "1,200")]


@pytest.mark.parametrize(
    ("changes", "arms", "tone", "to_do"),
    [
        ({}, [arm("bold", 0.08)], "good", "Give policy-of-bold the traffic"),
        ({}, [arm("bold", -0.08)], "bad", "End it and keep the control"),
        ({"code": "open"}, [arm("bold", 0.01, days=9.2)], "open", "Leave it on for about 9 days more"),
        ({"code": "open"}, [arm("bold", code="open")], "open", "Leave it on: of bold too little"),
        ({"code": "mismatch"}, [arm("bold", 0.08)], "bad", "Do not use these figures"),
        ({"code": "broken"}, [arm("bold", 0.08, guardrails=rails(-0.2))], "bad", "End it: POST /experiments/prices"),
    ],
)
def test_an_experiment_says_what_to_do(
    changes: dict[str, object], arms: list[dict[str, object]], tone: str, to_do: str
) -> None:
    found = of_experiment.report_of(experiment(arm("control"), *arms, **changes), "Made today")
    assert found.tone == tone
    assert found.to_do[0].startswith(to_do)
    assert len(found.tables[0].rows) == 1 + len(arms)


class Tags(HTMLParser):
    """Notes what a page would load or run, and whether its tags are closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loads += [tag for name, _ in attrs if name in ("src", "href") or name.startswith("on")]
        self.loads += [tag] if tag in ("script", "link", "iframe", "img") else []
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_loads_nothing_and_takes_names_as_text() -> None:
    said = page(told(answer(NAUGHTY, 0.05, segments=[{"segment": NAUGHTY, **finding(0.01)}])))
    tags = Tags()
    tags.feed(said)
    assert (tags.open, tags.loads) == ([], [])
    assert NAUGHTY not in said
    assert "url(" not in said


def test_intervals_stand_where_their_values_are() -> None:
    chart = Chart("x", "", [Bar("a", 0.05, 0.0, 0.1, "open")])
    low, high = chart.reach
    at = 100 * (0.05 - low) / (high - low)
    said = page(Report("t", "h", "open", [], [chart], [], [], ""))
    assert re.search(r'circle cx="([\d.]+)%"', said)[1] == f"{at:.2f}"  # type: ignore[index]  # it is there
    assert 0 < 100 * (0.1 - low) / (high - low) < 100


def test_a_picture_and_a_page_are_written(tmp_path: Path) -> None:
    found = of_experiment.report_of(experiment(arm("control"), arm("bold", 0.08)), "Made today")
    write(found, tmp_path / "x.png")
    write(found, tmp_path / "x.html")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    assert "bold is better by 8.1 %" in (tmp_path / "x.html").read_text()
