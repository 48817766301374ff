"""`rebound experiment`: shows what the experiments of a loop say so far."""

from __future__ import annotations

from datetime import UTC, datetime

from redis.asyncio import Redis
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from service.admin.experiments import ArmReply, ExperimentReply, list_experiments, read_experiment
from service.report import experiment as report
from service.report.content import Report


async def look(redis: Redis, loop: str, name: str | None) -> list[ExperimentReply]:
    """Return one experiment of a loop, or all.

    Raises:
        NotFound: there is no such loop or experiment.
    """
    return await list_experiments(redis, loop) if name is None else [await read_experiment(redis, loop, name)]


def show(console: Console, found: list[ExperimentReply]) -> None:
    """Print each experiment: its arms in a table, and what they say in a sentence."""
    for one in found:
        table = Table("arm", "policy", "units", one.metric, "lift", "guard rails", title_justify="left")
        table.title = escape(f"{one.name}, {one.status} since {_day(one.starts)}")
        for arm in one.arms:
            mean = "" if arm.mean is None else f"{arm.mean:.4f}"
            rails = ", ".join(f"{rail.metric} {rail.verdict}" for rail in arm.guardrails)
            table.add_row(arm.arm or "(left out)", arm.policy or "traffic", f"{arm.units:,}", mean, _lift(arm), rails)
        console.print(table)
        sign = {"settled": "[green]✓[/]", "open": "[yellow]•[/]"}.get(one.code, "[red]✗[/]")
        console.print(f"{sign} {escape(one.says)}", highlight=False, soft_wrap=True)
        if one.left_out:
            console.print(f"left out: {one.left_out:,} events of units that were too many", highlight=False)
    if not found:
        console.print("there is no experiment yet: PUT /experiments/NAME makes one", highlight=False)


def report_of(found: ExperimentReply, made: str) -> Report:
    """Tell of an experiment in a report; `made` says when and by which command."""
    return report.report_of(found.model_dump(mode="json"), made)


def _lift(arm: ArmReply) -> str:
    if arm.lift is None:
        return ""
    return escape(f"{arm.lift.estimate:+.1%} [{arm.lift.low:+.1%}, {arm.lift.high:+.1%}]")


def _day(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d")
