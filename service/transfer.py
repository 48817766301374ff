"""`rebound export` and `rebound import`: their progress, and the Redis that they work on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from service.admin.exports import Exported, export_dsjson, export_parquet
from service.admin.imports import Imported, import_file, read_file
from service.store.connection import connect

TIMEOUT_S = 60.0


def export_log(url: str, loop: str, path: Path, console: Console) -> Exported:
    """Write a loop's log: into a file of DSJSON where the name ends in `.dsjson`, else into a folder of Parquet files.

    Raises:
        ReboundError: see `service/admin/exports.py`.
    """
    write = export_dsjson if path.suffix == ".dsjson" else export_parquet

    async def run(progress: Callable[[int, int | None], None]) -> Exported:
        async with connect(url, name="export", timeout_s=TIMEOUT_S) as redis:
            return await write(redis, loop, path, progress)

    with _bar(console, "exporting") as progress:
        return asyncio.run(run(progress))


def import_log(url: str, loop: str, path: Path, console: Console) -> Imported:
    """Append the events of a file to a loop's log.

    Raises:
        ReboundError: see `service/admin/imports.py`.
    """

    async def run(progress: Callable[[int, int | None], None]) -> Imported:
        async with connect(url, name="import", timeout_s=TIMEOUT_S) as redis:
            return await import_file(redis, loop, lambda: read_file(path), progress)

    with _bar(console, "importing") as progress:
        return asyncio.run(run(progress))


@contextmanager
def _bar(console: Console, title: str) -> Iterator[Callable[[int, int | None], None]]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bars:
        bar = bars.add_task(title, total=None)

        def progress(done: int, total: int | None) -> None:
            bars.update(bar, completed=done, total=total, description=title if total is not None else "checking")

        yield progress
