"""Draw the charts of a report as a PNG, by matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from textwrap import fill, wrap

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from simulator.chart_data import Line, lines, noticed_at, recovered_at, recovery_note, swapped_at
from simulator.summary import Report

STYLES = {"solid": "-", "dashdot": "-.", "dot": ":", "dash": "--"}
WIDTH, HEIGHT, DPI = 13.0, 10.5, 110  # inches, inches, pixels an inch
LABEL_CHARACTERS = 30  # in one line of a label at the end of a curve
LINE_HEIGHT = 0.040  # of a label's line, as a share of the height of the upper chart


def save_image(report: Report, path: Path) -> None:
    """Write the image of a report."""
    image(report).savefig(path, dpi=DPI)


def image(report: Report) -> Figure:
    """Draw click rates above, cumulative regret below."""
    looks = lines(report)
    figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(fill(report["headline"], 105), x=0.01, ha="left", fontsize=14, fontweight="bold")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
    _draw_rates(upper, report, looks)
    _draw_regret(lower, report, looks)
    return figure


def _draw_rates(axes: Axes, report: Report, looks: dict[str, Line]) -> None:
    curves, end = report["curves"], report["settings"]["steps"]
    axes.set_ylim(0, 1.25 * max(curves["oracle"]["max"]))
    for name, style in (("oracle", "--"), ("random", ":")):
        axes.plot(curves["rate_step"], curves[name]["mean"], style, color="black", linewidth=1.2, zorder=2)
    axes.annotate("best possible", (end * 0.01, curves["oracle"]["mean"][0]), va="bottom", fontsize=10)
    axes.annotate(
        "chance",
        (end * 0.01, curves["random"]["mean"][0]),
        xytext=(0, -12),
        textcoords="offset points",
        va="top",
        fontsize=10,
    )
    _draw_curves(axes, report, looks, "rate", {label: recovery_note(report, label) for label in looks})
    for label, look in looks.items():
        for find, marker, edge in (
            (recovered_at, "o", "white"),
            (noticed_at, "v", "black"),
            (swapped_at, "D", "black"),
        ):
            if at := find(report, label):
                axes.plot(*at, marker, color=look.colour, markersize=9, markeredgecolor=edge, zorder=5)
    for number, shock in enumerate(report["shocks"]):
        left = shock["step"] > 0.7 * end  # the text would leave the chart on the right
        text = "\n".join([f"{shock['name']}:", *wrap(shock["description"], 34)])
        axes.annotate(
            text,
            (shock["step"], axes.get_ylim()[1]),
            xytext=(-5 if left else 5, -36 * (number % 2)),
            textcoords="offset points",
            ha="right" if left else "left",
            va="top",
            fontsize=10,
        )
    axes.set_ylabel(f"expected clicks per recommendation\n(mean of the last {curves['window']} steps)")
    axes.set_title(
        "▼ noticed the change   ● back at 90 % of the best possible   ◆ swapped",
        loc="left",
        fontsize=10,
        color="#444444",
    )


def _draw_regret(axes: Axes, report: Report, looks: dict[str, Line]) -> None:
    _draw_curves(axes, report, looks, "regret", {label: "" for label in looks})
    axes.set_ylabel("clicks missed so far\n(against always choosing best)")
    axes.set_xlabel("step (one recommendation each)")
    axes.set_xlim(0, report["settings"]["steps"])
    axes.set_ylim(bottom=0)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: f"{value:,.0f}")


def _draw_curves(axes: Axes, report: Report, looks: dict[str, Line], kind: str, notes: dict[str, str]) -> None:
    """Draw the curves of all contestants, each with its name and note at its end."""
    curves, end = report["curves"][kind], report["settings"]["steps"]
    steps = report["curves"][f"{kind}_step"]
    for label, look in looks.items():
        order = 3 if report["policies"][label]["beats_random"] else 1
        axes.plot(steps, curves[label]["mean"], STYLES[look.dash], color=look.colour, linewidth=2.2, zorder=order)
        if len(report["settings"]["seeds"]) > 1:
            band = curves[label]
            axes.fill_between(steps, band["min"], band["max"], color=look.colour, alpha=0.15, linewidth=0)
    low, high = axes.get_ylim()
    texts = {label: _end_text(_end_name(report, label), note) for label, note in notes.items()}
    line = (high - low) * (LINE_HEIGHT if kind == "rate" else LINE_HEIGHT * 1.5)
    heights = [line * (text.count("\n") + 1) for text in texts.values()]
    ends = [curves[label]["mean"][-1] for label in looks]
    for (label, text), y, placed in zip(texts.items(), ends, place_labels(ends, heights), strict=True):
        axes.annotate(
            text,
            xy=(end, y),
            xytext=(end * 1.012, placed),
            color=looks[label].colour,
            va="center",
            fontsize=10,
            fontweight="bold",
            annotation_clip=False,
        )
    for shock in report["shocks"]:
        axes.axvline(shock["step"], color="black", linewidth=1.2, linestyle=":")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _end_name(report: Report, label: str) -> str:
    """Return the label of a contestant; for a swap, the successor."""
    policy = report["policies"][label]
    return label if policy["swapped_at"] is None else f"→ {policy['policies'][1]}"


def _end_text(name: str, note: str) -> str:
    """Join a name and its note, in one line if both fit."""
    text = f"{name}: {note}" if note else name
    return text if len(text) <= LABEL_CHARACTERS else "\n".join([fill(name, LABEL_CHARACTERS), note]).rstrip()


def place_labels(centres: Sequence[float], heights: Sequence[float]) -> list[float]:
    """Move labels apart, as little as needed so that none overlaps another; return their centres.

    The order of the labels is kept.
    """
    order = sorted(range(len(centres)), key=lambda i: centres[i])
    placed = list(centres)
    for _ in range(300):
        for low, high in pairwise(order):
            short = (heights[low] + heights[high]) / 2 - (placed[high] - placed[low])
            if short > 1e-9:
                placed[low] -= short / 2
                placed[high] += short / 2
    return placed
