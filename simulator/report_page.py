"""Write a report as one HTML page with plotly charts, readable from 390 px of width on, without a network."""

from __future__ import annotations

from html import escape
from textwrap import wrap
from typing import Any

import plotly.graph_objects as go

from simulator.chart_data import Line, lines, noticed_at, recovered_at, recovery_note, swapped_at
from simulator.summary import COLUMNS, Report, full_name, legend, rows

HOVER_CHARACTERS = 32  # in one line of a hover label, which must fit a narrow screen
SWATCHES = {"solid": "", "dashdot": "6 2 2 2", "dot": "2 2", "dash": "5 3"}  # SVG dash patterns
MARKS = (
    (noticed_at, "triangle-down", "noticed the change"),
    (recovered_at, "circle", "back at 90 %"),
    (swapped_at, "diamond", "swapped"),
)

STYLE = """
* { box-sizing: border-box }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 1280px; margin: 0 auto; padding: 1rem; color: #1a1a1a;
  overflow-wrap: anywhere }
h1 { font-size: 1.5rem; line-height: 1.3; margin: .5rem 0 } h2 { font-size: 1.15rem; margin: 2rem 0 0 }
p.small, ul.events { color: #555; font-size: .9rem; margin: .25rem 0 .5rem } ul.events { padding-left: 1.2rem }
code { background: #f2f2f2; padding: .1rem }
.legend { display: flex; flex-wrap: wrap; gap: .3rem; list-style: none; margin: .5rem 0; padding: 0 }
.legend button { display: flex; align-items: center; gap: .5rem; text-align: left; font: inherit; font-size: .85rem;
  color: inherit; background: #fff; border: 1px solid #ddd; border-radius: .3rem; padding: .2rem .5rem;
  cursor: pointer; max-width: 100% }
.legend button[aria-pressed=false] { opacity: .4; text-decoration: line-through }
.legend svg { flex: none } .legend em { color: #555; font-style: normal; white-space: nowrap }
.box { overflow-x: auto }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; width: 100% }
th, td { padding: .35rem .5rem; text-align: right; vertical-align: bottom; border-bottom: 1px solid #ddd;
  overflow-wrap: normal }
td { white-space: nowrap }
th:first-child, td:first-child { text-align: left; white-space: normal; min-width: 14rem; overflow-wrap: anywhere;
  position: sticky; left: 0; background: #fff }
tr.reference td { color: #666 }
@media (max-width: 720px) {
  h1 { font-size: 1.25rem }
  table, tbody { display: block } thead { display: none }
  tr { display: grid; grid-template-columns: repeat(3, minmax(0, 1fr)); gap: .3rem .6rem; border: 1px solid #ddd;
    border-radius: .3rem; padding: .5rem .7rem; margin: .6rem 0 }
  td { border: 0; padding: 0; text-align: left; white-space: normal }
  td:first-child { grid-column: 1 / -1; font-weight: bold; position: static; min-width: 0 }
  td:empty { display: none }
  td:not(:first-child)::before { content: attr(data-column); display: block; color: #666; font-size: .75rem;
    line-height: 1.2 }
}
"""

SCRIPT = """
for (const button of document.querySelectorAll(".legend button"))
  button.addEventListener("click", () => {
    const visible = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", visible);
    for (const chart of document.querySelectorAll(".plotly-graph-div")) {
      const traces = chart.data.flatMap((trace, i) => trace.legendgroup === button.dataset.group ? [i] : []);
      if (traces.length) Plotly.restyle(chart, { visible }, traces);
    }
  });
if (matchMedia("(pointer: coarse)").matches)  // on a touch screen, dragging must scroll the page
  for (const chart of document.querySelectorAll(".plotly-graph-div")) Plotly.relayout(chart, { dragmode: false });
"""


def page(report: Report) -> str:
    """Write the page. It holds its styles, its scripts and plotly itself, so it loads nothing."""
    looks = lines(report)
    config = {"displaylogo": False, "displayModeBar": False, "responsive": True}
    rates, regrets = (
        figure.to_html(full_html=False, include_plotlyjs=number == 0, config=config)
        for number, figure in enumerate((_rate_chart(report, looks), _regret_chart(report, looks)))
    )
    settings = report["settings"]
    seeds = ", ".join(map(str, settings["seeds"]))
    plural = "s" if len(settings["seeds"]) > 1 else ""
    shaded = " Shaded: lowest to highest of the seeds." if plural else ""
    window = report["curves"]["window"]
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Rebound arena, {report["started"]}</title><style>{STYLE}</style></head><body>
<h1>{escape(report["headline"])}</h1>
<p class="small">{settings["world"]}, {settings["steps"]:,} steps, seed{plural} {seeds}; {report["started"]}.
All policies met the same users at the same steps with the same draws, over HTTP.</p>
{_events(report)}
<h2>Click rate over time</h2>
<p class="small">Expected clicks per recommendation, mean of the last {window} steps.
▼ noticed the change, ● back at 90 % of the best possible, ◆ swapped.{shaded}</p>
{rates}
{_legend(report, looks)}
<p class="small">Click a policy to hide it. Drag in a chart to zoom, double-click to reset.</p>
<h2>Clicks missed</h2>
<p class="small">Cumulative, against always choosing best.</p>
{regrets}
<h2>Figures</h2>
<div class="box">{_table(report)}</div>
<p class="small">{escape(legend(report))}</p>
<p class="small">Made by <code>{escape(report["command"])}</code>; every figure is in report.json.</p>
<script>{SCRIPT}</script>
</body></html>
"""


def _events(report: Report) -> str:
    """List shocks and swaps in order of step."""
    events = [
        (shock["step"], f"<b>{escape(shock['name'])}</b>: {escape(shock['description'])}") for shock in report["shocks"]
    ]
    for label, policy in report["policies"].items():
        if at := swapped_at(report, label):
            first, second = map(escape, policy["policies"])
            events.append((int(at[0]), f"<b>swap</b> under traffic: {first} → {second}"))
    entries = "".join(f"<li>Step {step:,}: {text}</li>" for step, text in sorted(events))
    return f'<ul class="events">{entries}</ul>' if entries else ""


def _legend(report: Report, looks: dict[str, Line]) -> str:
    """Make a button for each curve. Text of HTML wraps, where the legend of plotly is cut on a narrow screen."""
    entries = [
        ("oracle", "best possible", Line("#000000", "dash"), ""),
        ("random", "chance", Line("#000000", "dot"), ""),
    ]
    entries += [
        (f"policy-{label}", full_name(report, label), look, recovery_note(report, label))
        for label, look in looks.items()
    ]
    buttons = "".join(
        f'<li><button type="button" aria-pressed="true" data-group="{escape(group)}">{_swatch(look)}'
        f"<span>{_breakable(name)}{f' <em>{note}</em>' if note else ''}</span></button></li>"
        for group, name, look, note in entries
    )
    return f'<ul class="legend">{buttons}</ul>'


def _breakable(name: str) -> str:
    """Escape the name of a policy; let its lines end after `:` and `,`."""
    return escape(name).replace(":", ":<wbr>").replace(",", ",<wbr>")


def _swatch(look: Line) -> str:
    line = f'stroke="{look.colour}" stroke-width="3" stroke-dasharray="{SWATCHES[look.dash]}"'
    return f'<svg width="26" height="8" aria-hidden="true"><line x1="0" y1="4" x2="26" y2="4" {line}/></svg>'


def _table(report: Report) -> str:
    """Make the table of all figures. The roles keep it a table where the style lays rows out as cards."""
    found = rows(report)
    headings = [escape(column.long).replace(" %", "\u00a0%") for column in COLUMNS]
    head = "".join(f'<th role="columnheader">{heading}</th>' for heading in headings)
    body = "".join(
        f'<tr role="row"{" class=reference" if number >= len(found) - 2 else ""}>'
        + "".join(
            f'<td role="cell" data-column="{heading}">{cell}</td>'
            for heading, cell in zip(headings, (_breakable(row[0]), *map(escape, row[1:])), strict=True)
        )
        + "</tr>"
        for number, row in enumerate(found)
    )
    return f'<table role="table"><thead><tr role="row">{head}</tr></thead><tbody>{body}</tbody></table>'


# ---- charts


def _rate_chart(report: Report, looks: dict[str, Line]) -> Any:
    curves = report["curves"]
    figure = go.Figure()
    for name, shown, dash in (("oracle", "best possible", "dash"), ("random", "chance", "dot")):
        figure.add_scatter(
            x=curves["rate_step"],
            y=curves[name]["mean"],
            line={"color": "black", "width": 1.5, "dash": dash},
            legendgroup=name,
            hovertemplate=_hover(shown, ".3f"),
        )
    _add_curves(figure, report, looks, "rate", ".3f")
    for find, symbol, text in MARKS:
        for label, look in looks.items():
            if at := find(report, label):
                figure.add_scatter(
                    x=[at[0]],
                    y=[at[1]],
                    mode="markers",
                    marker={
                        "color": look.colour,
                        "size": 12,
                        "symbol": symbol,
                        "line": {"color": "white", "width": 1.5},
                    },
                    legendgroup=f"policy-{label}",
                    hovertemplate=_hover(f"{full_name(report, label)}: {text}", ".3f"),
                )
    _lay_out(figure, report, height=460, top=1.25 * max(curves["oracle"]["max"]))
    return figure


def _regret_chart(report: Report, looks: dict[str, Line]) -> Any:
    figure = go.Figure()
    _add_curves(figure, report, looks, "regret", ",.0f")
    highest = max(max(report["curves"]["regret"][label]["max"]) for label in looks)
    _lay_out(figure, report, height=360, top=1.2 * highest)
    return figure


def _add_curves(figure: Any, report: Report, looks: dict[str, Line], kind: str, number_format: str) -> None:
    steps = report["curves"][f"{kind}_step"]
    for label, look in looks.items():
        curve, group = report["curves"][kind][label], f"policy-{label}"
        if len(report["settings"]["seeds"]) > 1:
            figure.add_scatter(
                x=[*steps, *steps[::-1]],
                y=[*curve["max"], *curve["min"][::-1]],
                fill="toself",
                fillcolor=look.colour,
                opacity=0.15,
                line={"width": 0},
                legendgroup=group,
                hoverinfo="skip",
            )
        figure.add_scatter(
            x=steps,
            y=curve["mean"],
            mode="lines",
            line={"color": look.colour, "width": 2.5, "dash": look.dash},
            legendgroup=group,
            hovertemplate=_hover(full_name(report, label), number_format),
        )


def _lay_out(figure: Any, report: Report, *, height: int, top: float) -> None:
    """Set axes and margins, and mark the shocks.

    Args:
        height: of the chart, in pixels.
        top: upper end of the y axis.
    """
    end = report["settings"]["steps"]
    for number, shock in enumerate(report["shocks"]):
        left = shock["step"] > end / 2  # the wider side has room for the name on a narrow screen
        figure.add_vline(x=shock["step"], line={"color": "black", "dash": "dot", "width": 1.5})
        figure.add_annotation(
            x=shock["step"],
            y=top,
            text=f"<b>{escape(shock['name'])}</b>",
            font={"size": 12},
            xanchor="right" if left else "left",
            yanchor="top",
            xshift=-4 if left else 4,
            yshift=-18 * number,  # names of close shocks do not overlap
            showarrow=False,
        )
    # Ticks hold the labels of the two axes apart at the origin.
    axis = {"automargin": True, "ticks": "outside", "ticklen": 6, "tickcolor": "#ccc"}
    figure.update_layout(
        template="plotly_white",
        hovermode="closest",
        hoverlabel={"align": "left"},
        showlegend=False,
        height=height,
        margin={"l": 10, "r": 16, "t": 10, "b": 10},
        xaxis={"title": {"text": "step"}, "range": [0, end], "tickformat": ",", "nticks": 8, **axis},
        yaxis={"range": [0, top], "tickformat": ",~r", **axis},
    )


def _hover(name: str, number_format: str) -> str:
    """Write a hover label; `<extra>` hides plotly's own name beside it, which is cut at 15 characters."""
    text = "<br>".join(escape(part) for part in wrap(name, HOVER_CHARACTERS))
    return f"<b>{text}</b><br>step %{{x:,}}: %{{y:{number_format}}}<extra></extra>"
