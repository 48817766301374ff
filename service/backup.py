"""`rebound backup` and `rebound restore`: what they print, and the Redis that they read from."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from service.admin.backups import Copied, restore_backup, write_backup
from service.run.embedded import EmbeddedRedis, redis_of_folder
from service.store.connection import connect
from service.store.replica import fetch_data

TIMEOUT_S = 60.0


@contextmanager
def redis_of(url: str | None, data: Path) -> Iterator[str]:
    """Give the URL of the Redis that is named, else of a data folder's, started for the time where none runs."""
    if url is not None:
        yield url
        return
    with redis_of_folder(data) as (of_folder, _):
        yield of_folder


def backup(url: str, file: Path, loops: Sequence[str] | None, console: Console) -> list[Copied]:
    """Write loops of a running Redis, all as of one moment, into a file.

    Raises:
        StoreUnavailable: Redis does not answer, or does not give its data away.
        EmbeddedRedisError: no redis-server that reads the data can be started here.
        NotFound: there is no such loop.
    """
    # Beside the file: there is room for the data, or the backup would fail anyhow.
    with tempfile.TemporaryDirectory(dir=file.resolve().parent, prefix=".rebound-backup-") as folder:
        frozen = Path(folder)
        with _bar(console, "taking a copy", "MB") as advance:
            fetch_data(url, frozen / "dump.rdb", lambda done, total: advance(done / 1e6, total / 1e6))
        with EmbeddedRedis(frozen, frozen=True) as copy, _bar(console, "writing", "rows") as advance:
            return asyncio.run(_write(copy.url, file, loops, lambda rows: advance(rows, None)))


async def _write(url: str, file: Path, loops: Sequence[str] | None, progress: Callable[[int], None]) -> list[Copied]:
    async with connect(url, name="backup", timeout_s=TIMEOUT_S) as redis:
        return await write_backup(redis, file, loops, progress)


def restore(url: str, file: Path, loop: str | None, into: str | None, console: Console) -> list[Copied]:
    """Make the loops of a backup again; errors as of `restore_backup`."""
    with _bar(console, "restoring", "rows") as advance:
        return asyncio.run(_restore(url, file, loop, into, lambda rows: advance(rows, None)))


async def _restore(
    url: str, file: Path, loop: str | None, into: str | None, progress: Callable[[int], None]
) -> list[Copied]:
    async with connect(url, name="restore", timeout_s=TIMEOUT_S) as redis:
        return await restore_backup(redis, file, loop=loop, into=into, progress=progress)


@contextmanager
def _bar(console: Console, title: str, unit: str) -> Iterator[Callable[[float, float | None], None]]:
    columns = (TextColumn(title), BarColumn(), TextColumn("{task.completed:,.0f} " + unit), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bars:
        bar = bars.add_task(title, total=None)
        yield lambda done, total: bars.update(bar, completed=done, total=total)


def table(copied: Sequence[Copied]) -> Table:
    """Show what was copied, one row a loop."""
    shown = Table("loop", "policies", "decisions", "rows")
    for one in copied:
        shown.add_row(one.loop, f"{one.policies:,}", f"{one.decisions:,}", f"{one.rows:,}")
    return shown
