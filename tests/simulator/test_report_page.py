"""The page of a report in a real browser: readable at 390 and at 1280 px, whole labels, nothing loaded from outside.

Whether a label is cut depends on fonts and layout, which only a browser knows.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from simulator.report_page import page
from simulator.summary import COLUMNS, full_name, rows
from tests.browser import executable
from tests.simulator.browser import Chromium, Page
from tests.simulator.builders import wide_report

# All texts of the page that a reader cannot see whole. A text counts as cut where it leaves the window, or a box that
# clips; what lies in a box that scrolls can be scrolled to, if the box itself can be seen.
CUT = """
(() => {
  const cut = [];
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const text = texts.currentNode, parent = text.parentElement;
    if (!text.data.trim() || parent.closest("script, style") || !parent.checkVisibility()) continue;
    const range = document.createRange();
    range.selectNodeContents(text);
    for (const line of range.getClientRects()) {
      let { left, right } = line;
      for (let box = parent; box; box = box.parentElement) {
        const { overflowX } = getComputedStyle(box), outer = box.getBoundingClientRect();
        if (["hidden", "clip"].includes(overflowX) && (left < outer.left - 1 || right > outer.right + 1))
          cut.push([text.data, left, right, box.tagName]);
        if (["auto", "scroll"].includes(overflowX)) ({ left, right } = outer);
      }
      if (left < 0 || right > screen.width) cut.push([text.data, left, right, screen.width]);
    }
  }
  return cut;
})()
"""
# Pairs of labels in a chart that lie on one another.
OVERLAPS = """
[...document.querySelectorAll(".plotly-graph-div")].flatMap(chart => {
  const labels = [...chart.querySelectorAll("g.xtick text, g.ytick text, g.annotation text, .xtitle")]
    .map(label => [label.textContent, label.getBoundingClientRect()]);
  return labels.flatMap(([a, p], i) => labels.slice(i + 1).flatMap(([b, q]) =>
    p.left < q.right - 2 && q.left < p.right - 2 && p.top < q.bottom - 2 && q.top < p.bottom - 2 ? [[a, b]] : []));
})
"""
CELLS = """
[...document.querySelectorAll("tbody tr")].map(row => [...row.cells].map(cell => {
  const box = cell.getBoundingClientRect(), label = getComputedStyle(cell, "::before").content;
  const seen = box.width > 0 && box.left >= 0 && box.right <= screen.width && cell.scrollWidth <= cell.clientWidth + 1;
  return { text: cell.textContent, label, seen };
}))
"""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Chromium]:
    with Chromium() as found:
        yield found


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    return wide_report()


@pytest.fixture(scope="module", params=[390, 1280])
def shown(
    chromium: Chromium, report: dict[str, Any], request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[int, Page]:
    """The width of a window, and the page in it."""
    file = tmp_path_factory.mktemp("page") / "report.html"
    file.write_text(page(report))
    return request.param, chromium.open(file.as_uri(), width=request.param)


def test_it_is_as_wide_as_the_window_and_no_text_is_cut(shown: tuple[int, Page]) -> None:
    width, found = shown
    assert found.evaluate("[innerWidth, document.documentElement.scrollWidth <= innerWidth]") == [width, True]
    assert found.evaluate(CUT) == []
    assert found.evaluate(OVERLAPS) == []


def test_the_curves_have_room(shown: tuple[int, Page]) -> None:
    width, found = shown
    plots = found.evaluate('[...document.querySelectorAll("rect.nsewdrag")].map(plot => plot.getBBox().width)')
    assert len(plots) == 2
    assert min(plots) > 0.7 * width


def test_every_figure_can_be_read_without_scrolling_sideways(shown: tuple[int, Page], report: dict[str, Any]) -> None:
    width, found = shown
    cells = found.evaluate(CELLS)
    assert [tuple(cell["text"] for cell in row) for row in cells] == rows(report)
    for row in cells:
        for column, cell in zip(COLUMNS, row, strict=True):
            assert cell["seen"] or not cell["text"], (column, cell)
            if width == 390 and cell["text"] and column is not COLUMNS[0]:
                assert cell["label"].replace("\u00a0", " ") == f'"{column.long}"'
    headings = found.evaluate('[...document.querySelectorAll("th")].map(heading => heading.checkVisibility())')
    assert headings == [width == 1280] * len(COLUMNS)


def test_the_legend_names_every_policy_in_full(shown: tuple[int, Page], report: dict[str, Any]) -> None:
    _, found = shown
    names = found.evaluate(
        '[...document.querySelectorAll(".legend span")].map(name => [...name.childNodes]'
        '.filter(part => part.nodeName !== "EM").map(part => part.textContent).join("").trim())'
    )
    assert names == ["best possible", "chance", *(full_name(report, label) for label in report["policies"])]


def test_a_click_on_a_name_hides_its_curves_and_another_shows_them(shown: tuple[int, Page]) -> None:
    _, found = shown
    group = '"policy-adaptive"'
    visible = f"""[...document.querySelectorAll(".plotly-graph-div")].map(chart =>
        chart.data.filter(trace => trace.legendgroup === {group}).map(trace => trace.visible ?? true))"""
    click = f"document.querySelector('[data-group={group}]').click()"
    before = found.evaluate(visible)
    assert [set(traces) for traces in before] == [{True}, {True}]
    found.evaluate(click)
    assert [set(traces) for traces in found.evaluate(visible)] == [{False}, {False}]
    hidden = "chart.data.filter(trace => trace.visible === false).length"
    count = f'[...document.querySelectorAll(".plotly-graph-div")].map(chart => {hidden})'
    assert found.evaluate(count) == [len(traces) for traces in before], "and no other curve"
    found.evaluate(click)
    assert found.evaluate(visible) == before


def test_nothing_is_loaded_and_no_script_fails(shown: tuple[int, Page]) -> None:
    _, found = shown
    assert [url for url in found.requests if not url.startswith("file:///")] == []
    assert len(found.requests) == 1, "the page itself"
    assert found.errors == []


def test_the_checks_can_fail(chromium: Chromium, tmp_path: Path) -> None:
    file = tmp_path / "wrong.html"
    file.write_text(
        '<body style="margin: 0"><script src="https://example.invalid/x.js"></script>'
        '<div style="width: 90px; overflow: hidden; white-space: nowrap">a label that is too long for its box</div>'
        '<p style="font-size: 30px; white-space: nowrap">a line that leaves the window is cut as well, is it not?</p>'
        '<div style="width: 90px; overflow: auto; white-space: nowrap">a line that can be scrolled to its end</div>'
        '<svg class="plotly-graph-div"><g class="xtick"><text y="20">one</text><text y="21">other</text></g></svg>'
        "<script>throw new Error('oops')</script>"
    )
    found = chromium.open(file.as_uri(), width=390)
    assert [text[:13] for text, *_ in found.evaluate(CUT)] == ["a label that ", "a line that l"]
    assert found.evaluate(OVERLAPS) == [["one", "other"]]
    assert "https://example.invalid/x.js" in found.requests
    assert found.errors


def test_a_missing_browser_is_told_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(FileNotFoundError, match="apt-get install -y chromium"):
        executable()
