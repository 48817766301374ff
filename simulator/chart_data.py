"""Data that both forms of the charts show: line styles, and the points where something happened."""

from __future__ import annotations

from itertools import count
from typing import NamedTuple

import numpy as np

from simulator.summary import Report

# Okabe & Ito (2008), which colour-blind readers can tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A5195")
GREYS = ("#9A9A9A", "#6B6B6B")  # of contestants that do not beat a uniform choice
DASHES = ("solid", "dashdot", "dot")  # of contestants that share a colour


class Line(NamedTuple):
    """The look of one contestant's curves. `dash` is named as by plotly; "dash" marks a swap."""

    colour: str
    dash: str


def lines(report: Report) -> dict[str, Line]:
    """Choose a line for each contestant. No two are the same up to 21 contestants, apart from swaps."""
    coloured, grey = count(), count()
    found = {}
    for label, policy in report["policies"].items():
        number, colours = (next(coloured), COLOURS) if policy["beats_random"] else (next(grey), GREYS)
        dash = "dash" if policy["swapped_at"] else DASHES[number // len(colours) % len(DASHES)]
        found[label] = Line(colours[number % len(colours)], dash)
    return found


def recovery_note(report: Report, label: str) -> str:
    """Tell how soon a contestant recovered from the last shock; empty where there is nothing to recover."""
    policy = report["policies"][label]
    if not policy["recovery"] or not policy["beats_random"]:
        return ""
    after = policy["recovery"][-1]["90%"]["median"]
    return "not back" if after is None else f"back after {after:,}"


def recovered_at(report: Report, label: str) -> tuple[float, float] | None:
    """Return (step, rate) at which a contestant was back at 90 % of the oracle after the last shock."""
    policy = report["policies"][label]
    if not policy["recovery"] or not policy["beats_random"] or policy["recovery"][-1]["90%"]["median"] is None:
        return None
    return _on_curve(report, label, report["shocks"][-1]["step"] + policy["recovery"][-1]["90%"]["median"])


def noticed_at(report: Report, label: str) -> tuple[float, float] | None:
    """Return (step, rate) at which a contestant noticed the last shock: the median of the seeds in which it did."""
    if not report["shocks"]:
        return None
    last = report["shocks"][-1]["step"]
    after = (
        [alarm["step"] for alarm in alarms if alarm["step"] >= last] for alarms in report["policies"][label]["alarms"]
    )
    first = [steps[0] for steps in after if steps]
    return _on_curve(report, label, float(np.median(first))) if first else None


def swapped_at(report: Report, label: str) -> tuple[float, float] | None:
    """Return (step, rate) at which the successor first served, in the first seed in which it did."""
    at = [step for step in report["policies"][label]["swapped_at"] or () if step is not None]
    return _on_curve(report, label, at[0]) if at else None


def _on_curve(report: Report, label: str, step: float) -> tuple[float, float]:
    curves = report["curves"]
    return float(step), float(np.interp(step, curves["rate_step"], curves["rate"][label]["mean"]))
