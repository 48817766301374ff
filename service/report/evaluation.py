"""Tells of an evaluation: which of the policies would have been better, and what to do now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from service.report.content import Bar, Chart, Report, Table, Tone, tone_of

Found = Mapping[str, Any]  # as `service/admin/evaluation.py` describes an evaluation

NOTES = (
    "The past is not the future: if the world changes tomorrow, the better policy of the log may be the worse.",
    "A policy that would have served would have learned from other events than those of the log.",
)


def report_of(loop: str, found: Found, request: Mapping[str, Any], why: Mapping[str, str], made: str) -> Report:
    """Tell of an evaluation.

    Args:
        request: what was asked for, as the body of `POST /evaluations`.
        why: reason for which a decision is left out -> a phrase.
        made: when, and by which command.
    """
    answers = found["answers"]
    told = [one for one in answers if one["refusal"] is None]
    headline, tone = _headline(told)
    bars = [_bar(one["target"], one["difference"]) for one in told]
    charts = []
    if bars:
        note = f"Reward of a decision, less what served got. {_interval_note(found, request)}"
        charts.append(Chart("Difference in reward", note, bars))
    for one in answers:
        parts = [_bar(part["segment"], part["difference"]) for part in one["segments"] if part["refusal"] is None]
        if parts:
            note = (
                f"The same, by segment; each interval holds with {100 * found['segment_confidence']:.4g} %, so that"
                " those of all segments hold together."
            )
            charts.append(Chart(f"{one['target']}, by segment", note, parts))
    left_out = [
        (one["target"], why[reason], f"{count:,}") for one in answers for reason, count in one["left_out"].items()
    ]
    refused = [
        (one["target"], part["segment"], part["refusal"]["why"])
        for one in answers
        for part in one["segments"]
        if part["refusal"] is not None
    ]
    tables = [_figures(answers)]
    if refused:
        tables.append(Table("Segments that cannot be judged", ("target", "segment", "why"), refused))
    if left_out:
        tables.append(Table("Decisions that were left out", ("target", "why", "decisions"), left_out))
    return Report(
        title=f"Evaluation of loop {loop}",
        headline=headline,
        tone=tone,
        to_do=_to_do(loop, told, answers),
        charts=charts,
        tables=tables,
        notes=[_log_note(found), *_propensities(found), *NOTES],
        made=made,
    )


def _bar(label: str, interval: Mapping[str, float]) -> Bar:
    return Bar(
        label, interval["estimate"], interval["low"], interval["high"], tone_of(interval["low"], interval["high"])
    )


def _headline(told: Sequence[Found]) -> tuple[str, Tone]:
    if not told:
        return "The log cannot answer: every target was refused", "open"
    best = told[0]  # they come best first
    tone = tone_of(best["difference"]["low"], best["difference"]["high"])
    if tone == "good":
        return f"{best['target']} would have been {best['verdict']} a decision", tone
    if all(one["difference"]["high"] < 0 for one in told):
        return f"What serves is better than all that were judged; nearest comes {best['target']}", "bad"
    return f"{best['target']}: {best['verdict']}", "open"


def _to_do(loop: str, told: Sequence[Found], answers: Sequence[Found]) -> list[str]:
    found = []
    if told and told[0]["difference"]["low"] > 0:
        found.append(
            f"Release {told[0]['target']} step by step (POST /policies/NAME/release in loop {loop}), or compare it on"
            " people by an experiment. The log alone has judged it so far."
        )
        worse = [one["target"] for one in told if one["difference"]["high"] < 0]
        if worse:
            found.append(f"Leave {', '.join(worse)} in the shadow: what serves is better.")
    elif told and told[0]["difference"]["high"] < 0:
        found.append("Keep what serves.")
    elif told:
        missing = told[0]["missing"]
        found.append(
            f"Wait for about {missing:,} decisions more, and ask again. Until then nothing speaks for a change."
            if missing
            else "Keep what serves: the difference, if there is one, is too small to be found by waiting."
        )
    for one in answers:
        if one["refusal"] is not None:
            found.append(f"{one['target']} was refused: {one['refusal']['why']}.")
    return found


def _interval_note(found: Found, request: Mapping[str, Any]) -> str:
    looks = "however often you look" if request["interval"] == "anytime" else "for one look"
    return (
        f"Estimator {request['estimator']}, interval {request['interval']}: each holds with"
        f" {100 * found['confidence']:.4g} %, {looks}. Where it does not touch the line at 0, the difference is shown."
    )


def _figures(answers: Sequence[Found]) -> Table:
    head = ("target", "its reward", "what served got", "decisions", "they count for", "largest weight", "verdict")
    rows = []
    for one in answers:
        counts = one["diagnostics"]
        refused = one["refusal"] is not None
        rows.append(
            (
                one["target"],
                "" if refused else _written(one["estimate"]),
                "" if refused else _written(one["logged"]),
                "" if counts is None else f"{counts['decisions']:,}",
                "" if counts is None else f"{counts['effective']:,.0f}",
                "" if counts is None or not counts["largest"] else f"{counts['largest'][0]:.1f}",
                one["verdict"] or "refused",
            )
        )
    note = (
        "Reward of a decision, with its interval. A target that seldom agrees with what served has large weights, and"
        " many decisions count for few."
    )
    return Table("Figures", head, rows, note)


def _written(interval: Mapping[str, float]) -> str:
    return f"{interval['estimate']:.4f} ({interval['low']:.4f} to {interval['high']:.4f})"


def _log_note(found: Found) -> str:
    return f"{found['decisions']:,} decisions in the log."


def _propensities(found: Found) -> list[str]:
    return [
        f"Propensities of {policy}: the mean of 1 / (n p) is {check['mean']:.3f} ± {check['half_width']:.3f}, and 1 is"
        f" expected{'' if check['passed'] else '. They are wrong: do not trust this, and run rebound audit'}."
        for policy, check in found["propensities"].items()
    ]
