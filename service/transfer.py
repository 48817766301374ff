"""`rebound export` and `rebound import`, of logs and of items: their progress, and what they work on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from service.admin.exports import Exported, export_dsjson, export_parquet
from service.admin.imports import Imported, import_file, read_file
from service.errors import InvalidRequest, ReboundError
from service.exchange.items import FileItem, read_items, write_items
from service.over_http import call
from service.store.connection import connect

TIMEOUT_S = 60.0
BATCH, BATCH_BYTES = 1000, 1 << 20  # items of one request, and about their bytes: whichever is reached first


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


# ---- items, through the API


class Service(NamedTuple):
    """A loop of a running service."""

    url: str
    key: str | None
    loop: str

    def items(self, **query: Any) -> str:
        """Return the address of the loop's items."""
        return f"{self.url.rstrip('/')}/items?" + urlencode({"loop": self.loop, **query}, quote_via=quote)


def check_items(path: Path, console: Console) -> int:
    """Check all items of a file; return how many there are.

    Raises:
        InvalidRequest: names the row and the field.
    """
    with _bar(console, "checking") as progress:
        return _check_items(path, progress)


def import_items(service: Service, path: Path, console: Console) -> tuple[int, set[str]]:
    """Put all items of a file, after all were checked. An item that is there already is replaced.

    Returns:
        How many items there are, and the workers that do not serve them yet.

    Raises:
        InvalidRequest: a row is wrong; names it, and the field.
        ReboundError: the service refuses; says from which row on the items are missing.
        OSError: the service does not answer.
    """
    with _bar(console, "importing") as progress:
        total = _check_items(path, progress)
        done, missing = 0, set[str]()
        for some in _batches(read_items(path)):
            body = b'{"items":[%b]}' % b",".join(item.body for item in some)
            try:
                missing = set(call("POST", service.items(), service.key, body)["missing"])
            except (ReboundError, OSError) as error:
                said = error.detail if isinstance(error, ReboundError) else str(error)
                raise ReboundError(
                    f"{said}; {done:,} items were put, those from {some[0].where} on were not"
                ) from error
            done += len(some)
            progress(done, total)
    return total, missing


def _check_items(path: Path, progress: Callable[[int, int | None], None]) -> int:
    seen: set[str] = set()
    for number, item in enumerate(read_items(path), 1):
        if item.id in seen:
            raise InvalidRequest(f"{item.where}, id", f"{item.id!r} stands in the file twice")
        seen.add(item.id)
        if number % BATCH == 0:
            progress(number, None)
    return len(seen)


def _batches(items: Iterator[FileItem]) -> Iterator[list[FileItem]]:
    some: list[FileItem] = []
    size = 0
    for item in items:
        if some and (len(some) == BATCH or size + len(item.body) > BATCH_BYTES):
            yield some
            some, size = [], 0
        some.append(item)
        size += len(item.body)
    if some:
        yield some


def export_items(service: Service, path: Path, console: Console) -> int:
    """Write all items of a loop into a new file, which appears whole or not at all; return how many there are.

    Raises:
        InvalidRequest: the file is there.
        ReboundError: the service refuses.
        OSError: the service does not answer.
    """
    if path.exists():
        raise InvalidRequest("file", f"{path} is there already")
    done = 0

    def items() -> Iterator[tuple[str, dict[str, Any]]]:
        nonlocal done
        after: str | None = ""
        while after is not None:
            page = call("GET", service.items(limit=BATCH, after=after), service.key)
            yield from ((item["id"], item["features"]) for item in page["items"])
            done += len(page["items"])
            progress(done, max(done, page["count"]))
            after = page["next"]

    part = path.with_name(f".part-{path.name}")
    with _bar(console, "exporting") as progress:
        try:
            write_items(part, items())
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    return done


@contextmanager
def _bar(console: Console, title: str) -> Iterator[Callable[[int, int | None], None]]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bars:
        bar = bars.add_task(title, total=None)

        def progress(done: int, total: int | None) -> None:
            bars.update(bar, completed=done, total=total, description=title if total is not None else "checking")

        yield progress
