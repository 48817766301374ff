"""Builds what is told of an evaluation and of an experiment, as the service says it."""

from __future__ import annotations

from typing import Any


def interval(estimate: float, half: float) -> dict[str, float]:
    """Build an interval of this half width."""
    return {"estimate": estimate, "low": estimate - half, "high": estimate + half}


def finding(difference: float | None, half: float = 0.02, *, why: str = "", **changes: Any) -> dict[str, Any]:
    """Build the answer for one target; a difference of None: refused."""
    diagnostics = {"decisions": 4000, "users": 900, "effective": 812.0, "largest": [14.2, 9.0]}
    if difference is None:
        refused = {"code": "thin_support", "why": why}
        told: dict[str, Any] = dict.fromkeys(("verdict", "logged", "estimate", "difference", "missing"))
        return {**told, "settled": False, "refusal": refused, "diagnostics": diagnostics, **changes}
    settled = abs(difference) > half
    said = "better" if difference > 0 else "worse"
    size = abs(difference)
    return {
        "verdict": f"{said} by {size - half:.2g} to {size + half:.2g}" if settled else "can't tell yet",
        "settled": settled,
        "refusal": None,
        "logged": interval(0.25, 0.01),
        "estimate": interval(0.25 + difference, half),
        "difference": interval(difference, half),
        "missing": 0 if settled else 3100,
        "diagnostics": diagnostics,
        **changes,
    }


def answer(target: str, difference: float | None, **changes: Any) -> dict[str, Any]:
    """Build the answer for a target."""
    return {"target": target, "left_out": {}, "segments": [], **finding(difference, **changes)}


def evaluation(*answers: dict[str, Any]) -> dict[str, Any]:
    """Build an evaluation."""
    checks = {"adaptive": {"mean": 1.002, "half_width": 0.03, "passed": True}}
    return {
        "decisions": 4000,
        "confidence": 0.975,
        "segment_confidence": 0.9875,
        "propensities": checks,
        "answers": list(answers),
    }


def arm(name: str, lift: float | None = None, half: float = 0.02, **changes: Any) -> dict[str, Any]:
    """Build an arm; without a lift it is the control."""
    said: dict[str, Any] = {
        "arm": name,
        "policy": f"policy-of-{name}",
        "share": 0.5,
        "units": 20_140,
        "shown": 81_300,
        "mean": 0.2134,
        "error": 0.0021,
        "code": None,
        "lift": None,
        "reduced": None,
        "days": None,
        "guardrails": [],
        "says": None,
    }
    if lift is not None:
        code = "better" if lift > half else "worse" if lift < -half else "open"
        said |= {"code": code, "lift": interval(lift, half), "reduced": 0.31}
    return {**said, **changes}


def experiment(*arms: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Build what is told of an experiment."""
    said = {
        "name": "prices",
        "loop": "shop",
        "status": "running",
        "code": "settled",
        "says": "bold is better by 8.1 % (6.1 to 10.1); you may stop",
        "unit": "user",
        "metric": "reward",
        "minimum_effect": 0.05,
        "confidence": 0.95,
        "starts": 1_764_201_600.0,
        "arms": list(arms),
        "mismatch": 0.41,
        "events": 162_600,
        "left_out": 0,
        "whole": False,
    }
    return {**said, **changes}
