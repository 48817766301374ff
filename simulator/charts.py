"""The charts of a report: a PNG by matplotlib, and a page by plotly that needs no network."""

from __future__ import annotations

import html
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from textwrap import fill, wrap
from typing import Any

import numpy as np
import plotly.graph_objects as go
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from simulator.figures import COLUMNS, LEGEND, Figures, named, rows

# Okabe & Ito (2008): told apart by colour-blind readers as well.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A5195")
GREY = "#9A9A9A"


def _style(report: Figures) -> dict[str, str]:
    """A colour for each contestant; chance is grey."""
    labels = [label for label in report["policies"] if label != "random"]
    colours = {label: COLOURS[number % len(COLOURS)] for number, label in enumerate(labels)}
    return {"random": GREY, **colours} if "random" in report["policies"] else colours


def _end_label(report: Figures, label: str) -> str:
    """What stands at the end of a curve: the name, and how fast it was back after the last shock."""
    recovered = report["policies"][label]["recovery"]
    if not recovered or label == "random":
        return label
    after = recovered[-1]["90%"]["median"]
    return f"{label}: not back" if after is None else f"{label}: back after {after:,}"


def _spread_out(values: Sequence[float], gap: float) -> list[float]:
    """The values, moved apart as little as needed so that neighbours are `gap` apart; their order is kept."""
    order = sorted(range(len(values)), key=lambda i: values[i])
    placed = list(values)
    for _ in range(100):
        for low, high in pairwise(order):
            short = gap - (placed[high] - placed[low])
            if short > 1e-9:
                placed[low] -= short / 2
                placed[high] += short / 2
    return placed


def _recovered(report: Figures, label: str) -> tuple[float, float] | None:
    """Where a curve was back at 90 % after the last shock."""
    recovered = report["policies"][label]["recovery"]
    if not recovered or recovered[-1]["90%"]["median"] is None or label == "random":
        return None
    step = report["shocks"][-1]["step"] + recovered[-1]["90%"]["median"]
    curves = report["curves"]
    return float(step), float(np.interp(step, curves["rate_step"], curves["rate"][label]["mean"]))


def _swapped(report: Figures, label: str) -> tuple[float, float] | None:
    """Where the successor took over."""
    at = [step for step in report["policies"][label]["swapped_at"] or () if step is not None]
    if not at:
        return None
    curves = report["curves"]
    return float(at[0]), float(np.interp(at[0], curves["rate_step"], curves["rate"][label]["mean"]))


def _alarmed(report: Figures, label: str) -> tuple[float, float] | None:
    """Where a change was noticed after the last shock: the median of the seeds in which it was."""
    if not report["shocks"]:
        return None
    last = report["shocks"][-1]["step"]
    after = (
        [alarm["step"] for alarm in alarms if alarm["step"] >= last] for alarms in report["policies"][label]["alarms"]
    )
    at = [steps[0] for steps in after if steps]
    if not at:
        return None
    step, curves = float(np.median(at)), report["curves"]
    return step, float(np.interp(step, curves["rate_step"], curves["rate"][label]["mean"]))


def image(report: Figures, path: Path) -> None:
    """The two charts, one below the other."""
    curves, colours = report["curves"], _style(report)
    end = report["settings"]["steps"]
    figure = Figure(figsize=(13, 9.5), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(fill(report["headline"], 110), x=0.01, ha="left", fontsize=14, fontweight="bold")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])

    def draw(axes: Axes, kind: str, ends: dict[str, str]) -> None:
        places = {label: curves[kind][label]["mean"][-1] for label in ends}
        steps = curves[f"{kind}_step"]
        for label, colour in colours.items():
            curve, z = curves[kind][label], 1 if label == "random" else 3
            dashed = "--" if report["policies"][label]["swapped_at"] else "-"
            axes.plot(steps, curve["mean"], dashed, color=colour, linewidth=2.2, zorder=z)
            if len(report["settings"]["seeds"]) > 1:
                axes.fill_between(steps, curve["min"], curve["max"], color=colour, alpha=0.15, linewidth=0)
        low, high = axes.get_ylim()
        spread = _spread_out(list(places.values()), (high - low) * (0.045 if kind == "rate" else 0.07))
        for (label, y), placed in zip(places.items(), spread, strict=True):
            axes.annotate(
                ends[label],
                xy=(end, y),
                xytext=(end * 1.012, placed),
                color=colours[label],
                va="center",
                fontsize=11,
                fontweight="bold",
                annotation_clip=False,
            )
        for shock in report["shocks"]:
            axes.axvline(shock["step"], color="black", linewidth=1.2, linestyle=":")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)

    top.set_ylim(0, 1.2 * max(curves["oracle"]["max"]))
    for name, style in (("oracle", "--"), ("random", ":")):
        top.plot(curves["rate_step"], curves[name]["mean"], style, color="black", linewidth=1.2, zorder=2)
    top.annotate("best possible", (end * 0.01, curves["oracle"]["mean"][0]), va="bottom", fontsize=10)
    below = {"xytext": (0, -12), "textcoords": "offset points"}
    top.annotate("chance", (end * 0.01, curves["random"]["mean"][0]), va="top", fontsize=10, **below)
    draw(top, "rate", {label: _end_label(report, label) for label in colours})
    for label, colour in colours.items():
        if at := _recovered(report, label):
            top.plot(*at, "o", color=colour, markersize=9, markeredgecolor="white", zorder=5)
        if at := _alarmed(report, label):
            top.plot(*at, "v", color=colour, markersize=9, markeredgecolor="black", zorder=5)
        if at := _swapped(report, label):
            top.plot(*at, "D", color=colour, markersize=9, markeredgecolor="black", zorder=5)
            second = report["policies"][label]["policies"][1]
            text = f"swapped live to {second}"
            top.annotate(text, at, xytext=(0, -16), textcoords="offset points", color=colour, ha="left", va="top")
    for shock in report["shocks"]:
        text = "\n ".join([f" {shock['name']}:", *wrap(shock["says"], 34)])
        top.annotate(text, (shock["step"], top.get_ylim()[1]), va="top", fontsize=10)
    top.set_ylabel(f"expected clicks per recommendation\n(mean of the last {curves['window']} steps)")
    top.set_title(
        "▼ noticed the change   ● back at 90 % of the best possible",
        loc="left",
        fontsize=10,
        color="#444444",
    )
    draw(bottom, "regret", {label: label for label in colours})
    bottom.set_ylabel("clicks missed so far\n(against always choosing best)")
    bottom.set_xlabel("step (one recommendation each)")
    bottom.set_xlim(0, end)
    bottom.set_ylim(bottom=0)
    bottom.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    bottom.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    figure.savefig(path, dpi=110)


def _plots(report: Figures) -> list[Any]:
    """The same two charts for the browser: hover to read values, click a name to hide it."""
    curves, colours = report["curves"], _style(report)
    end = report["settings"]["steps"]
    figures = []
    for kind, axis in (
        ("rate", f"expected clicks per recommendation<br>(mean of the last {curves['window']} steps)"),
        ("regret", "clicks missed so far<br>(against always choosing best)"),
    ):
        figure, steps = go.Figure(), curves[f"{kind}_step"]
        if kind == "rate":
            for name, shown, dash in (("oracle", "best possible", "dash"), ("random", "chance", "dot")):
                line = {"color": "black", "width": 1.5, "dash": dash}
                figure.add_scatter(x=steps, y=curves[name]["mean"], name=shown, line=line, hovertemplate="%{y:.3f}")
        top = max(curves["oracle"]["max"]) * 1.2 if kind == "rate" else 0.0
        for label, colour in colours.items():
            curve = curves[kind][label]
            if len(report["settings"]["seeds"]) > 1:
                around = {"x": [*steps, *steps[::-1]], "y": [*curve["max"], *curve["min"][::-1]], "legendgroup": label}
                edge = {"fill": "toself", "fillcolor": colour, "opacity": 0.15, "line": {"width": 0}}
                figure.add_scatter(**around, **edge, showlegend=False, hoverinfo="skip")
            line = {"color": colour, "width": 2.5, "dash": "dash" if report["policies"][label]["swapped_at"] else None}
            hover = "%{y:.3f}" if kind == "rate" else "%{y:,.0f}"
            figure.add_scatter(
                x=steps, y=curve["mean"], name=named(report, label), line=line, legendgroup=label, hovertemplate=hover
            )
            top = max(top, *curve["max"])
        marks = (
            (_recovered, "circle", "back at 90 %"),
            (_alarmed, "triangle-down", "noticed the change"),
            (_swapped, "diamond", "swapped"),
        )
        for find, symbol, text in marks if kind == "rate" else ():
            for label, colour in colours.items():
                if at := find(report, label):
                    marker = {"color": colour, "size": 12, "symbol": symbol, "line": {"color": "white", "width": 1.5}}
                    figure.add_scatter(
                        x=[at[0]],
                        y=[at[1]],
                        mode="markers",
                        marker=marker,
                        showlegend=False,
                        legendgroup=label,
                        name=text,
                    )
        ends = [curves[kind][label]["mean"][-1] for label in colours]
        for (label, colour), y in zip(colours.items(), _spread_out(ends, top * 0.055), strict=True):
            text = _end_label(report, label) if kind == "rate" else label
            font = {"color": colour, "size": 13}
            figure.add_annotation(
                x=end, y=y, text=f"<b>{text}</b>", font=font, showarrow=False, xanchor="left", xshift=6
            )
        for shock in report["shocks"]:
            figure.add_vline(x=shock["step"], line={"color": "black", "dash": "dot", "width": 1.5})
            text = f"<b>{shock['name']}</b>" + (f"<br>{fill(shock['says'], 30)}" if kind == "rate" else "")
            place = {"xanchor": "left", "yanchor": "top", "align": "left", "xshift": 4, "showarrow": False}
            figure.add_annotation(x=shock["step"], y=top, text=text.replace("\n", "<br>"), **place)
        for label, colour in colours.items() if kind == "rate" else ():
            if at := _swapped(report, label):
                text = f"swapped live to {report['policies'][label]['policies'][1]}"
                place = {"xanchor": "left", "yanchor": "top", "yshift": -8, "showarrow": False}
                figure.add_annotation(x=at[0], y=at[1], text=text, font={"color": colour}, **place)
        figure.update_layout(
            template="plotly_white",
            hovermode="x unified",
            height=560 if kind == "rate" else 420,
            margin={"l": 70, "r": 250, "t": 30, "b": 90},
            legend={"orientation": "h", "y": -0.18},
            xaxis={"title": "step (one recommendation each)", "range": [0, end], "tickformat": ","},
            yaxis={"title": axis, "range": [0, top * 1.03]},
        )
        figures.append(figure)
    return figures


STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 1280px; margin: 2rem auto; padding: 0 1rem; color: #1a1a1a }
h1 { font-size: 1.5rem; line-height: 1.3 } h2 { font-size: 1.1rem; margin: 2rem 0 0 }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; width: 100% }
th, td { padding: .35rem .6rem; text-align: right; border-bottom: 1px solid #ddd }
th:first-child, td:first-child { text-align: left }
tr.reference { color: #666 } p.small { color: #555; font-size: .9rem } code { background: #f2f2f2; padding: .1rem }
"""


def page(report: Figures) -> str:
    """All in one file: the charts carry their own copy of plotly."""
    config = {"displaylogo": False, "responsive": True}
    rate, missed = (
        figure.to_html(full_html=False, include_plotlyjs=number == 0, config=config)
        for number, figure in enumerate(_plots(report))
    )
    found = rows(report)
    head = "".join(f"<th>{html.escape(column)}</th>" for column in COLUMNS)
    body = "".join(
        f"<tr{' class=reference' if number >= len(found) - 2 else ''}>"
        + "".join(f"<td>{html.escape(cell)}</td>" for cell in row)
        + "</tr>"
        for number, row in enumerate(found)
    )
    settings = report["settings"]
    seeds = ", ".join(map(str, settings["seeds"]))
    shaded = " Shaded: lowest to highest of the seeds." if len(settings["seeds"]) > 1 else ""
    played = f"{settings['world']}, {settings['steps']:,} steps, seed{'s' * (len(settings['seeds']) > 1)} {seeds}"
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Rebound arena, {report["started"]}</title><style>{STYLE}</style></head><body>
<h1>{html.escape(report["headline"])}</h1>
<p class="small">{played}, {report["started"]}.
All policies met the same users at the same steps with the same luck, over HTTP.
Triangles: noticed the change. Dots: back at 90 % of the best possible.{shaded}</p>
<h2>Click rate over time</h2>{rate}
<h2>Clicks missed</h2>{missed}
<h2>Figures</h2><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>
<p class="small">{html.escape(LEGEND)}</p>
<p class="small">Made by <code>{html.escape(report["command"])}</code>; every figure is in report.json.</p>
</body></html>
"""
