"""Writes a report as one page of HTML that loads nothing, readable from 390 px of width on, and on paper."""

from __future__ import annotations

from html import escape

from service.report.content import Chart, Report, Table

COLOURS = {"good": "#11703f", "bad": "#b3201f", "open": "#59636e"}
SIGNS = {"good": "✓", "bad": "✗", "open": "•"}  # colour alone tells nothing to some

STYLE = """
* { box-sizing: border-box }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1rem; color: #1b2027;
  background: #fff; overflow-wrap: anywhere }
h1 { font-size: 1.4rem; line-height: 1.3; margin: .25rem 0 } h2 { font-size: 1.1rem; margin: 2rem 0 .25rem }
p.small, ul.small { color: #59636e; font-size: .9rem; margin: .25rem 0 .75rem } ul { padding-left: 1.2rem }
section.todo { border-left: 4px solid var(--tone); padding: .25rem 1rem; background: #f6f7f9; margin: 1rem 0 }
ul.chart { list-style: none; padding: 0; margin: .5rem 0 }
ul.chart li { display: grid; grid-template-columns: 12rem 1fr 15.5rem; gap: .25rem .75rem; align-items: center;
  padding: .15rem 0 }
ul.chart svg { width: 100%; height: 26px; display: block; overflow: visible }
ul.chart .value { font-variant-numeric: tabular-nums; white-space: nowrap; font-size: .9rem }
.axis { display: flex; justify-content: space-between; color: #59636e; font-size: .8rem; margin: 0 16.25rem 0 12.75rem }
.box { overflow-x: auto }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; width: 100% }
th, td { padding: .35rem .5rem; text-align: right; vertical-align: top; border-bottom: 1px solid #d9dee4;
  overflow-wrap: normal }
th:first-child, td:first-child, td.text, th.text { text-align: left }
@media (max-width: 720px) {
  ul.chart li { grid-template-columns: 1fr } .axis { margin: 0 } ul.chart .value { white-space: normal }
}
"""


def page(report: Report) -> str:
    """Write the page."""
    to_do = "".join(f"<p>{escape(sentence)}</p>" for sentence in report.to_do)
    notes = "".join(f"<li>{escape(note)}</li>" for note in report.notes)
    charts, tables = "".join(map(_chart, report.charts)), "".join(map(_table, report.tables))
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(report.title)}</title><style>{STYLE}</style></head>
<body style="--tone: {COLOURS[report.tone]}">
<p class="small">{escape(report.title)}</p>
<h1>{SIGNS[report.tone]} {escape(report.headline)}</h1>
<section class="todo"><h2 style="margin-top: .5rem">What to do</h2>{to_do}</section>
{charts}{tables}
<h2>What this stands on</h2>
<ul class="small">{notes}</ul>
<p class="small">{escape(report.made)}</p>
</body></html>
"""


def _chart(chart: Chart) -> str:
    low, high = chart.reach
    bars = "".join(
        f"<li><span>{escape(bar.label)}</span>{_line(chart, number)}"
        f'<span class="value" style="color: {COLOURS[bar.tone]}">{SIGNS[bar.tone]} {chart.written(bar.estimate)}'
        f" ({chart.written(bar.low)} to {chart.written(bar.high)})</span></li>"
        for number, bar in enumerate(chart.bars)
    )
    axis = f'<div class="axis"><span>{chart.written(low)}</span><span>{chart.written(high)}</span></div>'
    return f'<h2>{escape(chart.title)}</h2><p class="small">{escape(chart.note)}</p><ul class="chart">{bars}</ul>{axis}'


def _line(chart: Chart, number: int) -> str:
    """Draw one interval; x is in percent of the width, so that it fits every screen."""
    bar, (low, high) = chart.bars[number], chart.reach

    def x(value: float) -> str:
        return f"{100 * (value - low) / (high - low):.2f}%"

    parts = []
    if chart.band is not None:
        width = f"{200 * chart.band / (high - low):.2f}%"
        parts.append(f'<rect x="{x(-chart.band)}" y="0" width="{width}" height="26" fill="#eef1f4"/>')
    parts.append(f'<line x1="{x(0)}" x2="{x(0)}" y1="0" y2="26" stroke="#1b2027" stroke-dasharray="2 2"/>')
    colour = COLOURS[bar.tone]
    parts.append(
        f'<line x1="{x(bar.low)}" x2="{x(bar.high)}" y1="13" y2="13" stroke="{colour}" stroke-width="4"'
        ' stroke-linecap="round"/>'
    )
    parts.append(f'<circle cx="{x(bar.estimate)}" cy="13" r="6" fill="{colour}"/>')
    said = f"{bar.label}: {chart.written(bar.estimate)}, {chart.written(bar.low)} to {chart.written(bar.high)}"
    return f'<svg role="img" aria-label="{escape(said)}">{"".join(parts)}</svg>'


def _table(table: Table) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in table.head)
    rows = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in table.rows)
    note = f'<p class="small">{escape(table.note)}</p>' if table.note else ""
    return (
        f'<h2>{escape(table.title)}</h2><div class="box"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>{note}"
    )
