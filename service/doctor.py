"""Looks into a service or its data for `rebound doctor` and `rebound schema propose`, and shows what was found."""

from __future__ import annotations

import asyncio
import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

from service.admin.doctor import Finding, Seen
from service.admin.profile import FieldReply, ProfileReply, read_profile
from service.admin.status import LoopStatus, Status, loop_status
from service.errors import ReboundError, StoreUnavailable
from service.run.embedded import EmbeddedRedisError, redis_of_folder
from service.settings import without_password
from service.store import loop_store, workers
from service.store.connection import connect

SIGNS = {"good": "[green]✓[/]", "note": "[yellow]•[/]", "bad": "[red]✗[/]"}
MOST_FIELDS = 40
errors = Console(stderr=True)


@dataclass(frozen=True, repr=False)  # it may hold a key and a password
class Source:
    """What to look into: the first of these that is given."""

    url: str | None
    key: str | None
    redis: str | None
    data: Path


def look(source: Source, loop: str | None) -> Seen:
    """Read the state of a service, or of its data. Exits with 1 where there is nothing to read.

    Args:
        loop: the only one to read; None: all.
    """
    try:
        if source.url is not None:
            return _over_http(source.url.rstrip("/"), source.key, loop)
        with ExitStack() as stack:
            url, where, running = source.redis, without_password(source.redis or ""), True
            if url is None:
                url, running = stack.enter_context(redis_of_folder(source.data))
                where = str(source.data)
            return asyncio.run(_in_redis(url, where, loop, running=running))
    except (ReboundError, EmbeddedRedisError, OSError, ValueError) as error:
        errors.print(
            f"[red]✗[/] {escape(getattr(error, 'detail', None) or str(error))}", highlight=False, soft_wrap=True
        )
        raise typer.Exit(1) from error


async def _in_redis(url: str, where: str, only: str | None, *, running: bool) -> Seen:
    redis = connect(url, name="doctor", timeout_s=10)
    try:
        names = [only] if only is not None else await loop_store.loop_names(redis)
        loops, profiles = {}, {}
        for name in names:
            try:
                loops[name] = await loop_status(redis, name)
                profiles[name] = await read_profile(redis, name)
            except StoreUnavailable:
                raise
            except (KeyError, ValueError, RuntimeError) as error:
                loops[name] = LoopStatus(learning=False, misfits={}, policies={}, problem=str(error))
        learner = await workers.learner_alive(redis)
        rung = ("ok" if learner else "learner_down") if running else None
        return Seen(where, rung, len(await workers.live_workers(redis)), loops, profiles)
    finally:
        await redis.aclose()


def _over_http(url: str, key: str | None, only: str | None) -> Seen:
    status = Status.model_validate(_get(url, "/status", key))
    if only is not None and only not in status.loops:
        raise ValueError(f"there is no loop {only!r}; there are {', '.join(sorted(status.loops)) or 'none'}")
    loops = {name: found for name, found in status.loops.items() if only in (None, name)}
    profiles = {
        name: ProfileReply.model_validate(_get(url, f"/loops/{urllib.parse.quote(name, safe='')}/profile", key))
        for name, found in loops.items()
        if found.problem is None
    }
    return Seen(url, status.rung, status.workers, loops, profiles)


def _get(url: str, path: str, key: str | None) -> Any:
    request = urllib.request.Request(url + path, headers={} if key is None else {"X-API-Key": key})
    try:
        with urllib.request.urlopen(request, timeout=30) as reply:
            return json.loads(reply.read())
    except urllib.error.HTTPError as error:
        said = error.read()[:300].decode(errors="replace")
        error.close()
        raise ValueError(f"{url}{path} answers {error.code}: {said}") from error


# ---- what people see


def show(console: Console, seen: Seen, findings: Sequence[Finding], *, fields: bool) -> None:
    """Print findings a loop at a time, with a table of its fields."""
    console.print(f"looking at {escape(seen.where)}", highlight=False, soft_wrap=True)
    _print(console, [finding for finding in findings if finding.loop is None])
    for name in seen.loops:
        console.print()
        console.print(f"[bold]loop {escape(name)}[/]", highlight=False)
        _print(console, [finding for finding in findings if finding.loop == name])
        profile = seen.profiles.get(name)
        if fields and profile is not None and profile.events:
            console.print(Padding(_table(profile), (1, 0, 0, 2)))
    bad = sum(finding.level == "bad" for finding in findings)
    console.print()
    sentence = {0: "Nothing needs a person.", 1: "1 finding needs a person."}.get(bad, f"{bad} findings need a person.")
    console.print(f"{SIGNS['bad' if bad else 'good']} {sentence}", highlight=False)


def _print(console: Console, findings: Sequence[Finding]) -> None:
    for finding in findings:
        lines = Table.grid(padding=(0, 1))
        lines.add_row(
            SIGNS[finding.level], escape(finding.says) + (f" [dim]({finding.code})[/]" if finding.code else "")
        )
        if finding.do:
            lines.add_row("", f"[dim]→ {escape(finding.do)}[/]")
        console.print(Padding(lines, (0, 0, 0, 2)), highlight=False)


def _table(profile: ProfileReply) -> Table:
    """The picture of a profile: a line for each field."""
    table = Table(
        title=f"{profile.events:,} events, {profile.items.distinct:,} items, {profile.users.distinct:,} users, rewards "
        f"{_numbers(profile.rewards.quantiles)}",
        title_justify="left",
        title_style="",
        box=box.SIMPLE_HEAD,
    )
    for column in ("field", "taken as", "missing", "different", "newest values"):
        table.add_column(
            column, justify="right" if column in ("missing", "different") else "left", no_wrap=column == "field"
        )
    for field in profile.fields[:MOST_FIELDS]:
        left_out = field.kind == "left_out"
        taken = f"left out: {(field.reason or '').replace('_', ' ')}" if left_out else field.kind
        table.add_row(
            escape(f"{field.side}.{field.path}"),
            taken,
            f"{field.missing:.0%}",
            f"{field.distinct:,}",
            escape(_values(field)),
            style="dim" if left_out else "",
        )
    if len(profile.fields) > MOST_FIELDS:
        table.add_row(f"… and {len(profile.fields) - MOST_FIELDS} more", "", "", "", "")
    return table


def _values(field: FieldReply) -> str:
    if field.kind == "vector":
        return f"{field.size} numbers"
    if field.kind == "number":
        return _numbers(field.quantiles)
    if field.kind in ("levels", "boolean") and field.newest.levels:
        shares = list(field.newest.levels.items())
        shown = ", ".join(f"{level[:20]} {share:.0%}" for level, share in shares[:3])
        return shown + (", …" if len(shares) > 3 else "")
    if field.kind == "set":
        return ", ".join(level[:20] for level in list(field.levels)[:6])
    return field.last.value[:40] if field.last else ""


def _numbers(quantiles: dict[str, float]) -> str:
    if not quantiles:
        return "none"
    low, middle, high = (quantiles[share] for share in ("0.02", "0.5", "0.98"))
    return f"{low:.4g} … {middle:.4g} … {high:.4g}"
