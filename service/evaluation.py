"""`rebound evaluate`: does an evaluation here, or has a running service do it; and shows what came of it."""

from __future__ import annotations

import asyncio
import time
import urllib.parse
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from service.admin.evaluation import WHY, described, evaluate, target_of
from service.errors import ReboundError
from service.over_http import call
from service.report import evaluation as report
from service.report.content import Report
from service.store.connection import connect

LOOK_S = 0.5  # from one look at a service's evaluation to the next
BAR_AFTER_S = 2.0

Request = Mapping[str, Any]  # as the body of `POST /evaluations`
Found = Mapping[str, Any]  # as `described` returns it


def evaluate_here(url: str, loop: str, request: Request, errors: Console) -> Found:
    """Evaluate the log in this Redis.

    Raises:
        ReboundError: see `evaluate`.
    """
    options = {name: request[name] for name in ("estimator", "interval", "confidence", "segment")}

    async def run(progress: Callable[[int, int | None], None]) -> Found:
        async with connect(url, name="evaluate", timeout_s=30) as redis:
            targets = [target_of(**said) for said in request["targets"]]
            found = await evaluate(redis, loop, targets, **options, most=request["decisions"], progress=progress)
            return described(found)

    with _bar(errors) as progress:
        return asyncio.run(run(progress))


def evaluate_there(url: str, key: str | None, loop: str, request: Request, errors: Console) -> Found:
    """Have a running service evaluate its log; cancel it when this is interrupted.

    Raises:
        ReboundError: the service refuses, or the evaluation failed or was cancelled.
        OSError: the service does not answer.
    """
    where = "?" + urllib.parse.urlencode({"loop": loop})
    path = f"{url.rstrip('/')}/evaluations"
    said = call("POST", path + where, key, request)
    mine = f"{path}/{said['id']}"
    try:
        with _bar(errors) as progress:
            while said["status"] in ("waiting", "running"):
                progress(said["done"], said["total"])
                time.sleep(LOOK_S)
                said = call("GET", mine + where, key)
    except KeyboardInterrupt:
        call("POST", f"{mine}/cancel{where}", key)
        raise
    if said["status"] != "done":
        raise ReboundError(f"it was {said['status']}" + (f": {said['error']['detail']}" if said["error"] else ""))
    found: Found = said["result"]
    return found


@contextmanager
def _bar(errors: Console) -> Iterator[Callable[[int, int | None], None]]:
    bar = Progress(console=errors, transient=True)
    task = bar.add_task("decisions", total=None)
    started = time.monotonic()

    def progress(done: int, total: int | None) -> None:
        if not bar.live.is_started and time.monotonic() - started > BAR_AFTER_S:
            bar.start()
        bar.update(task, completed=done, total=total)

    try:
        yield progress
    finally:
        bar.stop()


# ---- what people see


def report_of(loop: str, found: Found, request: Request, made: str) -> Report:
    """Tell of an evaluation in a report; `made` says when and by which command."""
    return report.report_of(loop, found, request, WHY, made)


def show(console: Console, loop: str, found: Found) -> None:
    """Print the answers, best first, and what was left out."""
    _show_findings(console, "target", [(one["target"], one) for one in found["answers"]])
    for one in found["answers"]:
        left_out = [f"{count:,} {WHY[reason]}" for reason, count in one["left_out"].items()]
        if left_out:
            console.print(escape(f"left out for {one['target']}: {'; '.join(left_out)}"), highlight=False)
        if one["segments"]:
            _show_findings(console, one["target"], [(part["segment"], part) for part in one["segments"]])
    console.print(
        f"loop {escape(loop)}: {found['decisions']:,} decisions in the log; each interval holds with"
        f" {found['confidence']:.6g}",
        highlight=False,
    )
    if any(one["segments"] for one in found["answers"]):
        console.print(f"each interval of a segment holds with {found['segment_confidence']:.6g}", highlight=False)


def _show_findings(console: Console, title: str, findings: Sequence[tuple[str, Found]]) -> None:
    table = Table(
        escape(title), "reward per decision", "what served got", "difference", "decisions (effective)", "verdict"
    )
    for name, one in findings:
        cells = ["", "", ""]
        if one["refusal"] is None:
            cells = [_interval(one["estimate"]), _interval(one["logged"]), _interval(one["difference"], sign="+")]
        counts = one["diagnostics"]
        count = "" if counts is None else f"{counts['decisions']:,} ({counts['effective']:,.0f})"
        table.add_row(escape(name), *cells, count, escape(one["verdict"] or "refused"))
    console.print(table)
    for name, one in findings:
        if one["refusal"] is not None:
            console.print(f"[red]✗[/] {escape(name)} refused: {escape(one['refusal']['why'])}", highlight=False)


def _interval(found: Found, *, sign: str = "") -> str:
    estimate, low, high = (format(found[name], f"{sign}.4f") for name in ("estimate", "low", "high"))
    return f"{estimate} [{low}, {high}]".replace("[", "\\[")
