"""Show the stages of a long command, each with a progress bar and the time left."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Advance = Callable[[int], None]
PRIOR_S = 20.0  # weight of the planned times against the measured ones, in seconds


class Stages:
    """Progress of a command: a bar for each stage on a terminal, a line for each stage elsewhere.

    Args:
        plan: the stages to come, in order, with the expected seconds of each. Expected times are scaled by the ratio
            that past stages had. With a plan, each stage also shows the time that all later ones will take.
    """

    def __init__(self, console: Console, plan: Mapping[str, float] | None = None) -> None:
        self.console = console
        self._plan = dict(plan or {})
        self._number, self._count = 0, len(self._plan)
        self._planned_s = self._measured_s = 0.0
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left:"),
            TimeRemainingColumn(),
            TextColumn("[dim]{task.fields[then]}"),
            console=console,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._progress.stop()

    @contextmanager
    def stage(self, title: str, total: int | None = None) -> Iterator[Advance]:
        """Show a stage while the block runs; yield a function to call with every part of `total` that is done."""
        expected = self._plan.pop(title, None)
        then = ""
        if expected is not None:
            self._number += 1
            title = f"[{self._number}/{self._count}] {title}"
            rest = sum(self._plan.values()) * (self._measured_s + PRIOR_S) / (self._planned_s + PRIOR_S)
            then = f"then about {_duration(rest)} more" if self._plan else "the last stage"
        started = time.monotonic()
        if not self.console.is_terminal:
            about = f" (about {_duration(expected)}, {then})" if expected is not None else ""
            self.console.print(f"{title}{about}", markup=False, highlight=False)
        task = self._progress.add_task(title.replace("[", "\\["), total=total, then=then)
        yield lambda done: self._progress.advance(task, done)
        self._progress.update(task, total=total or 1, completed=total or 1, then="")
        if expected is not None:
            self._planned_s += expected
            self._measured_s += time.monotonic() - started


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.1f} min"
