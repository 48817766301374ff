"""Draws a report as a PNG, by matplotlib, which the service itself does without."""

from __future__ import annotations

from pathlib import Path
from textwrap import fill
from typing import Any

from service.errors import ReboundError
from service.report.content import Chart, Report
from service.report.page import COLOURS

WIDTH, DPI = 10.0, 110  # inches, pixels an inch
LINE, GAP, BAR = 0.2, 0.14, 0.42  # inches of a line of text, between two texts, and of a bar
CHARACTERS = 92  # of a line


def save_image(report: Report, path: Path) -> None:
    """Write the headline, what to do, and the charts.

    Raises:
        ReboundError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ReboundError("a picture needs matplotlib: pip install matplotlib; a report in HTML does not") from error
    texts = [
        fill(report.headline, 70),
        *(fill(sentence, CHARACTERS) for sentence in report.to_do),
    ]
    top = sum(GAP + LINE * (text.count("\n") + 1) for text in texts) + 1.0
    heights = [1.3 + BAR * len(chart.bars) for chart in report.charts]
    total = top + sum(heights) + 0.4
    figure = Figure(figsize=(WIDTH, total), dpi=DPI)
    FigureCanvasAgg(figure)
    y = total - 0.35
    figure.text(0.03, y / total, report.title, size=9, color="#59636e", va="top", parse_math=False)
    y -= LINE + GAP
    for number, text in enumerate(texts):
        style: dict[str, Any] = {"size": 14, "weight": "bold", "color": COLOURS[report.tone]} if not number else {}
        figure.text(0.03, y / total, text, va="top", parse_math=False, **{"size": 10.5, **style})
        y -= LINE * (text.count("\n") + 1) + GAP
    for chart, height in zip(report.charts, heights, strict=True):
        axes = figure.add_axes((0.26, (y - height + 0.5) / total, 0.7, (height - 1.1) / total))
        _draw(axes, chart)
        y -= height
    figure.text(0.03, 0.12 / total, report.made, size=8, color="#59636e", va="bottom", parse_math=False)
    figure.savefig(path)


def _draw(axes: Any, chart: Chart) -> None:
    scale = 100 if chart.percent else 1
    if chart.band is not None:
        axes.axvspan(-scale * chart.band, scale * chart.band, color="#eef1f4")
    axes.axvline(0, color="#1b2027", linestyle=":", linewidth=1)
    for number, bar in enumerate(chart.bars):
        ends = [scale * bar.low, scale * bar.high]
        axes.plot(ends, [number, number], color=COLOURS[bar.tone], linewidth=4, solid_capstyle="round")
        axes.plot([scale * bar.estimate], [number], "o", color=COLOURS[bar.tone], markersize=8)
    axes.set_yticks(range(len(chart.bars)), [fill(bar.label, 26) for bar in chart.bars], size=9, parse_math=False)
    axes.set_ylim(len(chart.bars) - 0.4, -0.6)
    axes.set_xlim(*(scale * end for end in chart.reach))
    axes.set_title(chart.title + (" (%)" if chart.percent else ""), size=11, loc="left", parse_math=False)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(axis="y", length=0)
