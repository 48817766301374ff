"""The report of an arena: every figure as JSON, charts as one HTML page that needs no network, and a PNG.

`summarise` works out the figures; all else shows what it found.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray
from rich.table import Table

from simulator.arena import Plan, Run, Track
from simulator.measures import WINDOW, between_versions, overtaking, recovery, regret, rolling
from simulator.shocks import find_shock

Array = NDArray[Any]
Figures = dict[str, Any]

LAST = 2000  # steps before the shock, and at the end, that are told by themselves
EVERY = 50  # steps from one point of a curve to the next
SHARES = (0.90, 0.95)  # of the oracle: what counts as recovered
BASELINE = "embedding_mlp"

# Okabe & Ito (2008): told apart by colour-blind readers as well.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A5195")
GREY = "#9A9A9A"


def new_folder(out: Path) -> Path:
    """`out`/<YYYYmmdd-HHMMSS>, made; a number is added where it is there already."""
    name = datetime.now().strftime("%Y%m%d-%H%M%S")
    for attempt in range(1, 1000):
        folder = out / (name if attempt == 1 else f"{name}-{attempt}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        return folder
    raise FileExistsError(f"{out / name} and a thousand like it are there already")


def write(folder: Path, report: Figures) -> list[Path]:
    """report.json, report.html and report.png in `folder`; their paths."""
    json, page, image = (folder / f"report.{ending}" for ending in ("json", "html", "png"))
    json.write_bytes(orjson.dumps(report, option=orjson.OPT_INDENT_2))
    page.write_text(_page(report))
    _image(report, image)
    return [json, page, image]


# ---- the figures


def summarise(plan: Plan, runs: Sequence[Run], *, command: str, started: datetime) -> Figures:
    """Every figure of the report. `runs` hold the same contestants, one run a seed."""
    shocks = [
        {"name": name, "step": step, "says": find_shock(plan.world, name).says} for name, step in plan.shock_steps
    ]
    labels = [contestant.label for contestant in plan.contestants]
    policies = {
        label: _policy(plan, runs, [run.tracks[number] for run in runs], labels) for number, label in enumerate(labels)
    }
    report: Figures = {
        "headline": "",
        "command": command,
        "started": started.isoformat(timespec="seconds"),
        "settings": {
            "world": plan.world,
            "steps": plan.steps,
            "seeds": list(plan.seeds),
            "window": plan.window,
            "history": plan.history,
            "contestants": {c.label: [str(policy) for policy in c.policies] for c in plan.contestants},
        },
        "shocks": shocks,
        "seconds": [run.seconds for run in runs],
        "decisions_per_s": [plan.steps * len(run.tracks) / run.seconds for run in runs],
        "training_s": [run.training_s for run in runs],
        "oracle": _rates(plan, [run.oracle for run in runs]),
        "random": _rates(plan, [run.random for run in runs]),
        "policies": policies,
        "curves": _curves(plan, runs),
    }
    report["headline"] = headline(report)
    return report


def _policy(plan: Plan, runs: Sequence[Run], tracks: Sequence[Track], labels: Sequence[str]) -> Figures:
    contestant = tracks[0].contestant
    steps = [step for _, step in plan.shock_steps]
    until = [*steps[1:], None]
    latency = np.concatenate([track.latency_ms for track in tracks])
    gaps = np.concatenate([between_versions(track.policy, track.version) for track in tracks])
    baseline = labels.index(BASELINE) if BASELINE in labels and contestant.label != BASELINE else None
    return {
        "policies": [str(policy) for policy in contestant.policies],
        **_rates(plan, [track.expected for track in tracks]),
        "clicked": _spread([track.clicks.mean() for track in tracks]),
        "regret": _spread([regret(track.expected, run.oracle)[-1] for run, track in zip(runs, tracks, strict=True)]),
        "overtakes_baseline": None
        if baseline is None
        else _steps(
            [overtaking(track.expected, run.tracks[baseline].expected) for run, track in zip(runs, tracks, strict=True)]
        ),
        "recovery": [
            {
                f"{share:.0%}": _steps(
                    [
                        recovery(track.expected, run.oracle, shock=step, share=share, until=end)
                        for run, track in zip(runs, tracks, strict=True)
                    ]
                )
                for share in SHARES
            }
            for step, end in zip(steps, until, strict=True)
        ],
        "latency_ms": {"p50": float(np.percentile(latency, 50)), "p99": float(np.percentile(latency, 99))},
        "decisions_between_versions": {"median": float(np.median(gaps)), "mean": float(gaps.mean())}
        if len(gaps)
        else None,
        "versions": [int(track.version.max()) for track in tracks],
        "swapped_at": [track.swapped_at for track in tracks] if contestant.successor else None,
        "adopted_at": [track.adopted_at for track in tracks] if contestant.successor else None,
    }


def _rates(plan: Plan, series: Sequence[Array]) -> Figures:
    """Mean expected rates over parts of the run. Without a shock, all of it is before."""
    steps = [step for _, step in plan.shock_steps] or [plan.steps]
    first, last = steps[0], steps[-1]
    parts = {
        "whole": slice(None),
        "before": slice(0, first),
        "last_before": slice(max(0, first - LAST), first),
        "after": slice(last, None),
        "last": slice(max(0, plan.steps - LAST), None),
    }
    return {
        name: _spread([rates[part].mean() for rates in series]) if len(series[0][part]) else None
        for name, part in parts.items()
    }


def _spread(values: Sequence[Any]) -> Figures:
    """Of one figure over the seeds; `sd` is the sample's, 0 for one seed."""
    v = np.array(values, dtype=np.float64)
    sd = float(v.std(ddof=1)) if len(v) > 1 else 0.0
    return {"mean": float(v.mean()), "sd": sd, "min": float(v.min()), "max": float(v.max()), "seeds": v.tolist()}


def _steps(values: Sequence[int | None]) -> Figures:
    """Of a number of steps that may never come; the median counts "never" as later than all."""
    v = np.sort([np.inf if value is None else value for value in values])
    median, worst = v[(len(v) - 1) // 2], v[-1]
    return {
        "median": int(median) if np.isfinite(median) else None,
        "worst": int(worst) if np.isfinite(worst) else None,
        "seeds": list(values),
    }


def _curves(plan: Plan, runs: Sequence[Run]) -> Figures:
    """Rolling rate and regret so far, every 50 steps: mean, lowest and highest of the seeds."""
    window = min(WINDOW, plan.steps)
    at = np.unique([*range(window - 1, plan.steps, EVERY), plan.steps - 1])  # the last step of each window

    def band(series: Sequence[Array]) -> Figures:
        v = np.stack(series)
        return {"mean": v.mean(axis=0).tolist(), "min": v.min(axis=0).tolist(), "max": v.max(axis=0).tolist()}

    def rate(of: Callable[[Run], Array]) -> Figures:
        return band([rolling(of(run), window)[at - window + 1] for run in runs])

    labels = [contestant.label for contestant in plan.contestants]
    return {
        "window": window,
        "step": (at + 1).tolist(),
        "oracle": rate(lambda run: run.oracle),
        "random": rate(lambda run: run.random),
        "rate": {
            label: rate(lambda run, number=number: run.tracks[number].expected)  # type: ignore[misc]
            for number, label in enumerate(labels)
        },
        "regret": {
            label: band([regret(run.tracks[number].expected, run.oracle)[at] for run in runs])
            for number, label in enumerate(labels)
        },
    }


# ---- in words


def headline(report: Figures) -> str:
    """Who wins, what the shock did to the baseline, and how fast the winner was back."""
    policies = report["policies"]
    winner = max(policies, key=lambda label: policies[label]["whole"]["mean"])
    share = policies[winner]["whole"]["mean"] / report["oracle"]["whole"]["mean"]
    said = [f"{winner} wins with {share:.0%} of the clicks that were possible."]
    if not report["shocks"]:
        return said[0]
    shock = report["shocks"][-1]
    struck = f"{shock['name']} struck at step {shock['step']:,}"
    best = report["oracle"]["after"]["mean"]
    losers = sorted(
        (label for label in policies if label != "random"),
        key=lambda label: policies[label]["after"]["mean"] - policies[label]["last_before"]["mean"],
    )
    back = {
        label: p["recovery"][-1]["90%"]["median"]
        for label, p in policies.items()
        if p["recovery"][-1]["90%"]["median"] is not None
    }
    if losers and policies[losers[0]]["after"]["mean"] < 0.9 * policies[losers[0]]["last_before"]["mean"]:
        loser = losers[0]
        before, after = policies[loser]["last_before"]["mean"], policies[loser]["after"]["mean"]
        never = "" if loser in back else " and never came back"
        said.append(f"When {struck}, {loser} fell from {before:.2f} to {after:.2f} (best possible: {best:.2f}){never}.")
    else:
        said.append(f"{struck[0].upper()}{struck[1:]}.")
    if back:
        fastest = min(back, key=lambda label: back[label])
        said.append(f"{fastest} was back at 90 % of the best possible after {back[fastest]:,} steps.")
    else:
        said.append("None was back at 90 % of the best possible by the end.")
    return " ".join(said)


COLUMNS = (
    "policy",
    "before",
    "last 2k before",
    "after",
    "last 2k",
    "regret",
    "90 %",
    "95 %",
    "overtakes",
    "p50",
    "p99",
)
LEGEND = (
    "Expected clicks per recommendation: before the shock, in the last 2,000 steps before it, after it, in the last 2,000 of "
    "the run. Regret: clicks missed against always choosing best. 90 %, 95 %: steps from the shock to the end of the first "
    f"{WINDOW} steps with that share of the best possible. Overtakes: step from which on it is ahead of {BASELINE} in clicks "
    "so far. p50, p99: ms for /recommend as the arena saw it, with all loops at once; `rebound-sim load` measures "
    "latency."
)


def rows(report: Figures) -> list[tuple[str, ...]]:
    """The table, best first, then what was possible and what chance gives."""
    policies = report["policies"]
    found = []
    for label in sorted(policies, key=lambda label: -policies[label]["whole"]["mean"]):
        p = policies[label]
        back = [_never(p["recovery"][-1][f"{share:.0%}"]) if p["recovery"] else "" for share in SHARES]
        ahead = "" if p["overtakes_baseline"] is None else _never(p["overtakes_baseline"])
        latency = [f"{p['latency_ms'][q]:.1f}" for q in ("p50", "p99")]
        found.append((named(report, label), *_parts(p), f"{p['regret']['mean']:,.0f}", *back, ahead, *latency))
    for label in ("oracle", "random"):
        name = "best possible" if label == "oracle" else "chance"
        found.append((name, *_parts(report[label]), *[""] * 6))
    return found


def named(report: Figures, label: str) -> str:
    """A contestant with its parameters, or with what took over when."""
    p = report["policies"][label]
    if p["swapped_at"] is None:
        return str(p["policies"][0])
    first, second = p["policies"]
    at = next((step for step in p["swapped_at"] if step is not None), None)
    return f"{first} → {second}" + ("" if at is None else f" at {at:,}")


def _parts(rates: Figures) -> list[str]:
    cells = []
    for part in ("before", "last_before", "after", "last"):
        spread = rates[part]
        if spread is None:
            cells.append("")
        else:
            sd = f" ±{_decimals(spread['sd'])}" if len(spread["seeds"]) > 1 else ""
            cells.append(_decimals(spread["mean"]) + sd)
    return cells


def _decimals(rate: float) -> str:
    return f"{rate:.3f}".removeprefix("0")


def _never(steps: Figures) -> str:
    """The median; over several seeds with the worst."""
    median, worst = ("never" if steps[which] is None else f"{steps[which]:,}" for which in ("median", "worst"))
    return median if len(steps["seeds"]) == 1 or median == worst else f"{median} ({worst})"


def table(report: Figures) -> Table:
    """For the terminal."""
    shown = Table(title=report["headline"], title_justify="left", title_style="bold", caption=LEGEND)
    shown.caption_justify = "left"
    for column in COLUMNS:
        shown.add_column(column, justify="left" if column == "policy" else "right", no_wrap=column != "policy")
    found = rows(report)
    for number, row in enumerate(found):
        shown.add_row(*row, end_section=number == len(found) - 3, style="dim" if number >= len(found) - 2 else None)
    return shown


# ---- the charts


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
        for low, high in zip(order, order[1:], strict=False):
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
    return float(step), float(np.interp(step, curves["step"], curves["rate"][label]["mean"]))


def _swapped(report: Figures, label: str) -> tuple[float, float] | None:
    """Where the successor took over."""
    at = [step for step in report["policies"][label]["swapped_at"] or () if step is not None]
    if not at:
        return None
    curves = report["curves"]
    return float(at[0]), float(np.interp(at[0], curves["step"], curves["rate"][label]["mean"]))


def _image(report: Figures, path: Path) -> None:
    """The two charts, one below the other."""
    from textwrap import fill

    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    curves, steps, colours = report["curves"], report["curves"]["step"], _style(report)
    end = report["settings"]["steps"]
    figure = Figure(figsize=(13, 9.5), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(fill(report["headline"], 110), x=0.01, ha="left", fontsize=14, fontweight="bold")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])

    def draw(axes: Axes, kind: str, ends: dict[str, str]) -> None:
        places = {label: curves[kind][label]["mean"][-1] for label in ends}
        low, high = axes.get_ylim()
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

    top.set_ylim(0, 1.12 * max(curves["oracle"]["max"]))
    for name, style in (("oracle", "--"), ("random", ":")):
        top.plot(steps, curves[name]["mean"], style, color="black", linewidth=1.2, zorder=2)
    top.annotate("best possible", (end * 0.01, curves["oracle"]["mean"][0]), va="bottom", fontsize=10)
    top.annotate("chance", (end * 0.01, curves["random"]["mean"][0]), va="top", fontsize=10)
    draw(top, "rate", {label: _end_label(report, label) for label in colours})
    for label, colour in colours.items():
        if at := _recovered(report, label):
            top.plot(*at, "o", color=colour, markersize=9, markeredgecolor="white", zorder=5)
        if at := _swapped(report, label):
            top.plot(*at, "D", color=colour, markersize=9, markeredgecolor="black", zorder=5)
            second = report["policies"][label]["policies"][1]
            top.annotate(
                f"swapped live to {second}",
                at,
                xytext=(8, -22),
                textcoords="offset points",
                color=colour,
                fontsize=10,
                arrowprops={"arrowstyle": "-", "color": colour},
            )
    for shock in report["shocks"]:
        top.annotate(f" {shock['name']}:\n {shock['says']}", (shock["step"], top.get_ylim()[1]), va="top", fontsize=10)
    top.set_ylabel(f"expected clicks per recommendation\n(mean of the last {curves['window']} steps)")
    top.set_title("● back at 90 % of the best possible", loc="left", fontsize=10, color="#444444")
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
    import plotly.graph_objects as go

    curves, steps, colours = report["curves"], report["curves"]["step"], _style(report)
    end = report["settings"]["steps"]
    figures = []
    for kind, axis in (
        ("rate", f"expected clicks per recommendation (mean of the last {curves['window']} steps)"),
        ("regret", "clicks missed so far, against always choosing best"),
    ):
        figure = go.Figure()
        if kind == "rate":
            for name, shown, dash in (("oracle", "best possible", "dash"), ("random", "chance", "dot")):
                line = {"color": "black", "width": 1.5, "dash": dash}
                figure.add_scatter(x=steps, y=curves[name]["mean"], name=shown, line=line, hovertemplate="%{y:.3f}")
        top = max(curves["oracle"]["max"]) * 1.12 if kind == "rate" else 0.0
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
        marks = [] if kind == "regret" else [(_recovered, "circle", "back at 90 %"), (_swapped, "diamond", "swapped")]
        for find, symbol, text in marks:
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
            figure.add_annotation(
                x=shock["step"],
                y=top,
                text=f"{shock['name']}: {shock['says']}",
                showarrow=False,
                xanchor="left",
                xshift=4,
            )
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
th, td { padding: .35rem .6rem; text-align: right; border-bottom: 1px solid #ddd } th:first-child, td:first-child { text-align: left }
tr.reference { color: #666 } p.small { color: #555; font-size: .9rem } code { background: #f2f2f2; padding: .1rem .3rem }
"""


def _page(report: Figures) -> str:
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
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Rebound arena, {report["started"]}</title><style>{STYLE}</style></head><body>
<h1>{html.escape(report["headline"])}</h1>
<p class="small">{settings["world"]}, {settings["steps"]:,} steps, seed{"s" if len(settings["seeds"]) > 1 else ""} {seeds},
{report["started"]}. All policies met the same users at the same steps with the same luck, over HTTP.
Dots: back at 90 % of the best possible. Shaded: lowest to highest of the seeds.</p>
<h2>Click rate over time</h2>{rate}
<h2>Clicks missed</h2>{missed}
<h2>Figures</h2><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>
<p class="small">{html.escape(LEGEND)}</p>
<p class="small">Made by <code>{html.escape(report["command"])}</code>; every figure is in report.json.</p>
</body></html>
"""
