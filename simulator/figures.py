"""Every figure of an arena, and the table and the headline that tell them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

import numpy as np
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
    until = [*steps[1:], None][: len(steps)]
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
        "alarms": [track.alarms for track in tracks],
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
    at = np.unique([*range(0, plan.steps, EVERY), plan.steps - 1])
    ends = np.unique([*range(window - 1, plan.steps, EVERY), plan.steps - 1])  # the last step of each window

    def band(series: Sequence[Array]) -> Figures:
        v = np.stack(series)
        return {"mean": v.mean(axis=0).tolist(), "min": v.min(axis=0).tolist(), "max": v.max(axis=0).tolist()}

    def rate(of: Callable[[Run], Array]) -> Figures:
        return band([rolling(of(run), window)[ends - window + 1] for run in runs])

    labels = [contestant.label for contestant in plan.contestants]
    return {
        "window": window,
        "rate_step": (ends + 1).tolist(),
        "regret_step": (at + 1).tolist(),
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
    said = [f"{winner} wins with {100 * share:.0f} % of the clicks that were possible."]
    if not report["shocks"]:
        return said[0]
    shock = report["shocks"][-1]
    struck = f"{shock['name']} struck at step {shock['step']:,}"
    best = report["oracle"]["after"]["mean"]
    falls = {
        label: (p["last_before"]["mean"], p["after"]["mean"]) for label, p in policies.items() if label != "random"
    }
    back = {
        label: p["recovery"][-1]["90%"]["median"]
        for label, p in policies.items()
        if p["recovery"][-1]["90%"]["median"] is not None
    }
    loser = min(falls, key=lambda label: falls[label][1] - falls[label][0], default=None)
    # From fewer steps than a window nobody knows what a policy had before.
    if loser is not None and shock["step"] >= WINDOW and falls[loser][1] < 0.9 * falls[loser][0]:
        before, after = falls[loser]
        places = 2 if best > 0.2 else 3
        never = "" if loser in back else " and never came back"
        fell = f"{loser} fell from {before:.{places}f} to {after:.{places}f} (best possible: {best:.{places}f})"
        said.append(f"When {struck}, {fell}{never}.")
    else:
        said.append(f"{struck[0].upper()}{struck[1:]}.")
    if back:
        fastest = min(back, key=lambda label: back[label])
        said.append(f"{named(report, fastest)} was back at 90 % of the best possible after {back[fastest]:,} steps.")
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
    "alarms",
    "p50",
    "p99",
)
LEGEND = (
    "Expected clicks per recommendation: before the shock, in the last 2,000 steps before it, after it, and in the "
    "last 2,000 of the run. Regret: clicks missed against always choosing best. 90 %, 95 %: steps from the shock to "
    f"the end of the first {WINDOW} steps with that share of the best possible. Overtakes: step from which on it is "
    f"ahead of {BASELINE} in clicks so far. Alarms: how often it noticed a change. p50, p99: ms for "
    "/recommend as the arena saw it, with all loops at once; rebound-sim load measures latency."
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
        alarms = f"{sum(map(len, p['alarms'])) or ''}"
        found.append((named(report, label), *_parts(p), f"{p['regret']['mean']:,.0f}", *back, ahead, alarms, *latency))
    for label in ("oracle", "random"):
        name = "best possible" if label == "oracle" else "chance"
        found.append((name, *_parts(report[label]), *[""] * 7))
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
