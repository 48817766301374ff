"""Tells of an experiment: which arm is better, and what to do now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from service.report.content import Bar, Chart, Report, Table, Tone, tone_of

Found = Mapping[str, Any]  # as `GET /experiments/{name}` returns it

TONES: Mapping[str, Tone] = {"mismatch": "bad", "broken": "bad"}
RAILS: Mapping[str, Tone] = {"ok": "good", "broken": "bad", "open": "open"}
METRICS = {"reward": "reward of an item shown", "reported": "share of items with feedback", "shown": "items of a unit"}


def report_of(found: Found, made: str) -> Report:
    """Tell of an experiment.

    Args:
        made: when, and by which command.
    """
    compared = [arm for arm in found["arms"] if arm["code"] is not None]
    metric = METRICS[found["metric"]]
    intervals = f"Each holds with {100 * found['confidence']:.4g} % for all arms, however often you look."
    charts = []
    if lifts := [_bar(arm["arm"], arm["lift"]) for arm in compared if arm["lift"] is not None]:
        note = f"{metric.capitalize()}, as a share of the control's. {intervals} Grey: too small to matter."
        charts.append(Chart("Lift over the control", note, lifts, percent=True, band=found["minimum_effect"]))
    rails = [
        replace(
            _bar(f"{rail['metric']} of {arm['arm']} (at most −{100 * rail['drop']:g} %)", rail["lift"]),
            tone=RAILS[rail["verdict"]],
        )
        for arm in compared
        for rail in arm["guardrails"]
        if rail["lift"] is not None
    ]
    if rails:
        charts.append(Chart("Guard rails", "What must not drop by more than is tolerated.", rails, percent=True))
    return Report(
        title=f"Experiment {found['name']} of loop {found['loop']}, {found['status']} since {_day(found['starts'])}",
        headline=found["says"],
        tone=_tone(found, compared),
        to_do=_to_do(found, compared),
        charts=charts,
        tables=[_arms(found)],
        notes=_notes(found),
        made=made,
    )


def _bar(label: str, lift: Mapping[str, float]) -> Bar:
    return Bar(label, lift["estimate"], lift["low"], lift["high"], tone_of(lift["low"], lift["high"]))


def _tone(found: Found, compared: Sequence[Found]) -> Tone:
    if found["code"] in TONES:
        return TONES[found["code"]]
    if any(arm["code"] == "better" for arm in compared):
        return "good"
    return "bad" if compared and all(arm["code"] == "worse" for arm in compared) else "open"


def _to_do(found: Found, compared: Sequence[Found]) -> list[str]:
    if found["code"] == "mismatch":
        return [
            "Do not use these figures. Look for what loses units of an arm: a policy with errors, a client that gives"
            " up on slow replies, bots that were taken out of one arm alone. Mend it, and make another experiment."
        ]
    if found["code"] == "broken":
        return [f"End it: POST /experiments/{found['name']}/end. The loop's traffic has its units again."]
    said = []
    best = max(
        (arm for arm in compared if arm["code"] == "better"),
        key=lambda arm: float(arm["lift"]["estimate"]),
        default=None,
    )
    if best is not None:
        said.append(
            f"Give {best['policy']} the traffic: end the experiment, then POST /policies/{best['policy']}/activate, or"
            " release it step by step."
        )
    waits = [arm for arm in compared if arm["code"] == "open"]
    for arm in waits:
        if arm["days"] is None:
            said.append(f"Leave it on: of {arm['arm']} too little is known to foretell how long.")
        else:
            days = "less than a day" if arm["days"] < 1 else f"about {arm['days']:,.0f} days"
            said.append(f"Leave it on for {days} more, until {arm['arm']} is likely settled.")
    if best is None and not waits:
        said.append("End it and keep the control: no arm is better by an amount that matters.")
    return said


def _arms(found: Found) -> Table:
    head = ("arm", "policy", "share", "units", "items shown", found["metric"], "noise explained by the past", "verdict")
    rows = [
        (
            arm["arm"] or "(left out)",
            arm["policy"] or "the loop's traffic",
            f"{100 * arm['share']:g} %",
            f"{arm['units']:,}",
            f"{arm['shown']:,}",
            "" if arm["mean"] is None else f"{arm['mean']:.4f}" + _error(arm["error"]),
            "" if arm["reduced"] is None else f"{100 * arm['reduced']:.0f} %",
            arm["code"] or "",
        )
        for arm in found["arms"]
    ]
    return Table("Arms", head, rows, f"A unit is a {found['unit']}. Errors are standard errors over units.")


def _error(error: float | None) -> str:
    return "" if error is None else f" ± {error:.4f}"


def _notes(found: Found) -> list[str]:
    notes = [
        f"Split: p = {found['mismatch']:.3g}; below .01 it is not what was asked for.",
        f"{found['events']:,} events were counted"
        + (f", {found['left_out']:,} of units beyond the bound were not." if found["left_out"] else "."),
        "Results are about the loop's wait_time late: a reward counts when the decisions of its time are settled.",
    ]
    if not found["whole"] and found["status"] == "ended":
        notes.append("It has ended, but not all its rewards are counted yet.")
    return notes


def _day(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d")
