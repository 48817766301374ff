"""Summarise an arena: every figure of its report, the headline, and the table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from simulator.arena import ArenaPlan, ArenaResult, SeedRun, Trajectory
from simulator.measures import (
    ROLLING,
    beats,
    between_versions,
    gain,
    last_fifth,
    overtaking,
    recovery,
    regret,
    rolling,
)
from simulator.shocks import find_shock
from simulator.world import PLACES

Array = NDArray[Any]
Report = dict[str, Any]  # what report.json holds

LAST = 2000  # steps before the shock, and at the end, that have a rate of their own
CURVE_STEPS = 50  # from one point of a curve to the next
SHARES = (0.90, 0.95)  # of the oracle, at which a policy counts as recovered


def summarise(result: ArenaResult, *, command: str, started: datetime) -> Report:
    """Compute every figure of the report.

    Args:
        command: the command line that started the arena.
    """
    plan, runs = result.plan, result.runs
    shocks = [
        {"name": name, "step": step, "description": find_shock(plan.world, name).description}
        for name, step in plan.shock_steps
    ]
    labels = [contestant.label for contestant in plan.contestants]
    baseline = None if result.baseline is None else labels.index(result.baseline)
    report: Report = {
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
            "baseline": result.baseline,
        },
        "shocks": shocks,
        "seconds": [run.seconds for run in runs],
        "decisions_per_s": [plan.steps * len(run.trajectories) / run.seconds for run in runs],
        "training_s": [run.training_s for run in runs],
        "oracle": _rates(plan, [run.oracle for run in runs]),
        "random": _rates(plan, [run.random for run in runs]),
        "policies": {label: _policy(plan, runs, number, baseline) for number, label in enumerate(labels)},
        "curves": _curves(plan, runs),
    }
    report["headline"] = headline(report)
    return report


def _policy(plan: ArenaPlan, runs: Sequence[SeedRun], number: int, baseline: int | None) -> Report:
    """Compute the figures of one contestant, by its number and that of the baseline."""
    contestant = plan.contestants[number]
    mine = [run.trajectories[number] for run in runs]
    pairs = list(zip(runs, mine, strict=True))
    steps = [step for _, step in plan.shock_steps]
    until = [*steps[1:], None][: len(steps)]
    latency = np.concatenate([one.latency_ms for one in mine])
    gaps = np.concatenate([between_versions(one.policy, one.version) for one in mine])
    return {
        "policies": [str(policy) for policy in contestant.policies],
        **_rates(plan, [one.expected for one in mine]),
        "gain": _gains(runs, mine),
        "beats_random": _beats_random(runs, mine, steps[-1] if steps else None),
        "clicked": _over_seeds([one.rewards.mean() for one in mine]),
        "regret": _over_seeds([regret(one.expected, run.oracle)[-1] for run, one in pairs]),
        "overtakes_baseline": None
        if baseline is None or baseline == number
        else _steps([overtaking(one.expected, run.trajectories[baseline].expected) for run, one in pairs]),
        "recovery": [
            {
                f"{share:.0%}": _steps(
                    [recovery(one.expected, run.oracle, shock=step, share=share, until=end) for run, one in pairs]
                )
                for share in SHARES
            }
            for step, end in zip(steps, until, strict=True)
        ],
        "latency_ms": {"p50": float(np.percentile(latency, 50)), "p99": float(np.percentile(latency, 99))},
        "decisions_between_versions": {"median": float(np.median(gaps)), "mean": float(gaps.mean())}
        if len(gaps)
        else None,
        "versions": [int(one.version.max()) for one in mine],
        "alarms": [one.alarms for one in mine],
        "swapped_at": [one.swapped_at for one in mine] if contestant.successor else None,
        "adopted_at": [one.adopted_at for one in mine] if contestant.successor else None,
    }


def _beats_random(runs: Sequence[SeedRun], mine: Sequence[Trajectory], last_shock: int | None) -> bool:
    """Tell whether a contestant beats a uniform choice, over the run or over the steps before the last shock."""
    return any(
        beats(
            np.concatenate([one.expected[:until] for one in mine]), np.concatenate([run.random[:until] for run in runs])
        )
        for until in {None, last_shock}
    )


def _gains(runs: Sequence[SeedRun], mine: Sequence[Trajectory]) -> Report:
    """Compute the gain over chance of people's decisions."""
    series = [
        [values[run.person] for values in (one.expected, run.oracle, run.random)]
        for run, one in zip(runs, mine, strict=True)
    ]
    return {
        "last_fifth": _over_seeds([gain(*map(last_fifth, of_seed)) for of_seed in series]),
        "whole": _over_seeds([gain(*of_seed) for of_seed in series]),
    }


def _rates(plan: ArenaPlan, series: Sequence[Array]) -> Report:
    """Average the expected rates (T,) of each seed over parts of the run. Without a shock all steps are `before`."""
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
        name: _over_seeds([rates[part].mean() for rates in series]) if len(series[0][part]) else None
        for name, part in parts.items()
    }


def _over_seeds(values: Sequence[Any]) -> Report:
    """Summarise one figure over the seeds. `sd` is the sample's, 0 for one seed."""
    v = np.array(values, dtype=np.float64)
    sd = float(v.std(ddof=1)) if len(v) > 1 else 0.0
    return {"mean": float(v.mean()), "sd": sd, "min": float(v.min()), "max": float(v.max()), "seeds": v.tolist()}


def _steps(values: Sequence[int | None]) -> Report:
    """Summarise numbers of steps over the seeds. None means "never" and counts as later than all others."""
    v = np.sort([np.inf if value is None else value for value in values])
    median, worst = v[(len(v) - 1) // 2], v[-1]
    return {
        "median": int(median) if np.isfinite(median) else None,
        "worst": int(worst) if np.isfinite(worst) else None,
        "seeds": list(values),
    }


def _curves(plan: ArenaPlan, runs: Sequence[SeedRun]) -> Report:
    """Compute rolling rates and cumulative regrets every 50 steps: mean, lowest and highest of the seeds."""
    window = min(ROLLING, plan.steps)
    at = np.unique([*range(0, plan.steps, CURVE_STEPS), plan.steps - 1])
    ends = np.unique([*range(window - 1, plan.steps, CURVE_STEPS), plan.steps - 1])  # the last step of each window

    def band(series: Sequence[Array]) -> Report:
        v = np.stack(series)
        return {"mean": v.mean(axis=0).tolist(), "min": v.min(axis=0).tolist(), "max": v.max(axis=0).tolist()}

    def rate(of: Callable[[SeedRun], Array]) -> Report:
        return band([rolling(of(run), window)[ends - window + 1] for run in runs])

    labels = [contestant.label for contestant in plan.contestants]
    return {
        "window": window,
        "rate_step": (ends + 1).tolist(),
        "regret_step": (at + 1).tolist(),
        "oracle": rate(lambda run: run.oracle),
        "random": rate(lambda run: run.random),
        "rate": {
            label: rate(lambda run, number=number: run.trajectories[number].expected)  # type: ignore[misc]
            for number, label in enumerate(labels)
        },
        "regret": {
            label: band([regret(run.trajectories[number].expected, run.oracle)[at] for run in runs])
            for number, label in enumerate(labels)
        },
    }


# ---- in words


def headline(report: Report) -> str:
    """Name the winner, the policy that lost most at the last shock, and the one that recovered first."""
    policies = report["policies"]
    winner = max(policies, key=lambda label: policies[label]["whole"]["mean"])
    if report["settings"]["world"] in PLACES:
        share = policies[winner]["whole"]["mean"] / report["oracle"]["whole"]["mean"]
        sentences = [f"{_short_name(report, winner)} wins with {100 * share:.0f} % of the clicks that were possible."]
    else:
        share = policies[winner]["gain"]["whole"]["mean"]
        sentences = [f"{_short_name(report, winner)} wins with {100 * share:.0f} % of the gain that was possible."]
    if not report["shocks"]:
        return sentences[0]
    shock = report["shocks"][-1]
    event = f"{shock['name']} struck at step {shock['step']:,}"
    best = report["oracle"]["after"]["mean"]
    falls = {
        label: (p["last_before"]["mean"], p["after"]["mean"]) for label, p in policies.items() if p["beats_random"]
    }
    recovered = {
        label: p["recovery"][-1]["90%"]["median"]
        for label, p in policies.items()
        if p["recovery"][-1]["90%"]["median"] is not None
    }
    loser = min(falls, key=lambda label: falls[label][1] - falls[label][0], default=None)
    # A rate from fewer steps than a rolling mean is too uncertain to compare with.
    if loser is not None and shock["step"] >= ROLLING and falls[loser][1] < 0.9 * falls[loser][0]:
        before, after = falls[loser]
        places = 2 if best > 0.2 else 3
        never = "" if loser in recovered else " and never came back"
        fall = f"fell from {before:.{places}f} to {after:.{places}f} (best possible: {best:.{places}f})"
        sentences.append(f"When {event}, {_short_name(report, loser)} {fall}{never}.")
    else:
        sentences.append(f"{event[0].upper()}{event[1:]}.")
    if recovered:
        fastest = min(recovered, key=lambda label: recovered[label])
        steps = f"{recovered[fastest]:,}"
        sentences.append(f"{full_name(report, fastest)} was back at 90 % of the best possible after {steps} steps.")
    else:
        sentences.append("None was back at 90 % of the best possible by the end.")
    return " ".join(sentences)


class Column(NamedTuple):
    """A column of the table: its heading on the terminal, and the longer one on the page."""

    short: str
    long: str


COLUMNS = (
    Column("policy", "policy"),
    Column("before", "before the shock"),
    Column("last 2k before", "last 2,000 before"),
    Column("after", "after the shock"),
    Column("last 2k", "last 2,000 steps"),
    Column("regret", "clicks missed"),
    Column("90 %", "steps to 90 %"),
    Column("95 %", "steps to 95 %"),
    Column("overtakes", "overtakes at step"),
    Column("alarms", "changes noticed"),
    Column("p50", "p50, ms"),
    Column("p99", "p99, ms"),
)


def legend(report: Report) -> str:
    """Explain the columns of the table."""
    baseline = report["settings"]["baseline"]
    overtakes = f"Overtakes: step from which on it is ahead of {baseline} in clicks so far. " if baseline else ""
    gains = ""
    if report["settings"]["world"] not in PLACES:
        found = ", ".join(
            f"{label} {' / '.join(_decimals(p['gain'][part]['mean']) for part in ('last_fifth', 'whole'))}"
            for label, p in report["policies"].items()
        )
        gains = f"Gain, (shown - chance) / (best - chance), in the last fifth and over the run: {found}. "
    return (
        f"{gains}Expected clicks per recommendation: before the shock, in the last 2,000 steps before it, after it, "
        "and in the last 2,000 of the run. Regret: clicks missed against always choosing best. 90 %, 95 %: steps from "
        f"the shock to the end of the first {ROLLING} steps with that share of the best possible. {overtakes}Alarms: "
        "how often it noticed a change. p50, p99: ms for /recommend as the arena saw it, with all loops at once; "
        "rebound-sim load measures latency."
    )


def rows(report: Report) -> list[tuple[str, ...]]:
    """Return the cells of the table: contestants, best first, then the oracle and a uniform choice."""
    policies = report["policies"]
    found = []
    for label in sorted(policies, key=lambda label: -policies[label]["whole"]["mean"]):
        p = policies[label]
        recovered = [_or_never(p["recovery"][-1][f"{share:.0%}"]) if p["recovery"] else "" for share in SHARES]
        overtakes = "" if p["overtakes_baseline"] is None else _or_never(p["overtakes_baseline"])
        latency = [f"{p['latency_ms'][q]:.1f}" for q in ("p50", "p99")]
        alarms = f"{sum(map(len, p['alarms'])) or ''}"
        missed = f"{p['regret']['mean']:,.0f}"
        found.append((full_name(report, label), *_cells(p), missed, *recovered, overtakes, alarms, *latency))
    for label, name in (("oracle", "best possible"), ("random", "chance")):
        found.append((name, *_cells(report[label]), *[""] * 7))
    return found


def full_name(report: Report, label: str) -> str:
    """Return the policy of a contestant with its parameters; for a swap both policies and the step."""
    p = report["policies"][label]
    if p["swapped_at"] is None:
        return str(p["policies"][0])
    first, second = p["policies"]
    at = next((step for step in p["swapped_at"] if step is not None), None)
    return f"{first} → {second}" + ("" if at is None else f" at {at:,}")


def _short_name(report: Report, label: str) -> str:
    """Return the label of a contestant; for a swap, whose label tells nothing, both policies and the step."""
    return label if report["policies"][label]["swapped_at"] is None else full_name(report, label)


def _cells(rates: Report) -> list[str]:
    """Write the rates over the parts of the run."""
    cells = []
    for part in ("before", "last_before", "after", "last"):
        found = rates[part]
        if found is None:
            cells.append("")
        else:
            sd = f" ±{_decimals(found['sd'])}" if len(found["seeds"]) > 1 else ""
            cells.append(_decimals(found["mean"]) + sd)
    return cells


def _decimals(rate: float) -> str:
    return f"{rate:.3f}".removeprefix("0")


def _or_never(steps: Report) -> str:
    """Write the median, and the worst of several seeds."""
    median, worst = ("never" if steps[which] is None else f"{steps[which]:,}" for which in ("median", "worst"))
    return median if len(steps["seeds"]) == 1 or median == worst else f"{median} ({worst})"


def table(report: Report) -> Table:
    """Lay out the table for the terminal."""
    shown = Table(title=report["headline"], title_justify="left", title_style="bold", caption=legend(report))
    shown.caption_justify = "left"
    for number, column in enumerate(COLUMNS):
        shown.add_column(column.short, justify="right" if number else "left", no_wrap=number > 0)
    found = rows(report)
    for number, row in enumerate(found):
        shown.add_row(*row, end_section=number == len(found) - 3, style="dim" if number >= len(found) - 2 else None)
    return shown
