"""Stages with a bar each: what is done, and how long is left."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Advance = Callable[[int], None]
TRUST_S = 20.0  # how long the past stages must have taken to count as much as the plan


class Stages:
    """One bar below the other on a terminal; one line a stage elsewhere.

    Args:
        plan: stages that will come, in order, with the seconds that each is likely to take, to be corrected by how long
            the past ones have taken. With a plan each stage says how long all that follows will take.
    """

    def __init__(self, console: Console, plan: Mapping[str, float] | None = None) -> None:
        self.console = console
        self._plan = dict(plan or {})
        self._number, self._count = 0, len(self._plan)
        self._planned = self._taken = 0.0
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
        """Show a stage while it lasts; yields what to call with every bit of `total` that is done."""
        guess = self._plan.pop(title, None)
        then = ""
        if guess is not None:
            self._number += 1
            title = f"[{self._number}/{self._count}] {title}"
            rest = sum(self._plan.values()) * (self._taken + TRUST_S) / (self._planned + TRUST_S)
            then = f"then about {_span(rest)} more" if self._plan else "the last stage"
        started = time.monotonic()
        if not self.console.is_terminal:
            about = f" (about {_span(guess)}, {then})" if guess is not None else ""
            self.console.print(f"{title}{about}", markup=False, highlight=False)
        task = self._progress.add_task(title.replace("[", "\\["), total=total, then=then)
        yield lambda done: self._progress.advance(task, done)
        self._progress.update(task, total=total or 1, completed=total or 1, then="")
        if guess is not None:
            self._planned += guess
            self._taken += time.monotonic() - started


def _span(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.1f} min"
