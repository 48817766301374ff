"""Backups: loops written to one file, and made again from it.

The file is gzip over lines of JSON: a head, one line a row (`store/loop_rows.py`), and at the end the number of rows
and a digest of all lines before. It is read as a stream. It holds data alone: no code, no paths, and no name of a key
outside the loop that it is restored to.
"""

from __future__ import annotations

import gzip
import os
import zlib
from base64 import b64decode, b64encode
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any
from uuid import uuid4

import orjson
from redis.asyncio import Redis

from service.errors import Conflict, InvalidRequest, NotFound
from service.loop import LOOP_NAME
from service.records import Change, LoopRecord
from service.store import change_log, loop_store
from service.store.codec import FORMAT, check_format, loop_fields, read_loop_fields
from service.store.connection import answering, now
from service.store.keys import DELETED, Keys
from service.store.loop_rows import AT_ONCE, BadRow, Row, read_rows, write_rows
from service.store.open_time import read_opening

MAGIC = "rebound backup"
LONGEST_HEAD = 1 << 26  # bytes: records of thousands of loops
LONGEST_LINE = 1 << 30  # bytes: a snapshot of the largest model, as base64
UNFINISHED_S = 86_400.0  # after which the keys of a restore that was cut off are swept


@dataclass(frozen=True)
class Copied:
    """What a backup holds of one loop, or what was restored."""

    loop: str
    rows: int
    decisions: int
    policies: int

    @classmethod
    def of(cls, record: LoopRecord, sorts: Counter[str]) -> Copied:
        """Count rows, of their sorts."""
        return cls(record.name, sorts.total(), sorts["decision"], sorts["policy"])


def _sort(row: Row) -> str:
    return row.key.partition(":")[0]


async def write_backup(
    redis: Redis, path: Path, loops: Sequence[str] | None, progress: Callable[[int], None] = lambda rows: None
) -> list[Copied]:
    """Write loops into a file, which appears whole or not at all.

    Args:
        redis: a copy of the data to which nobody writes.
        loops: their names; None: all.
        progress: called with the number of rows written.

    Raises:
        NotFound: there is no such loop.
    """
    names = await loop_store.loop_names(redis) if loops is None else loops
    records = [await loop_store.read_loop(redis, name) for name in names]
    part = path.with_name(path.name + ".part")
    copied = []
    total, digest = 0, blake2b()
    # Only the owner may read it: it holds what users did.
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as raw:
        with gzip.GzipFile(fileobj=raw, mode="wb", compresslevel=4, filename="", mtime=0) as file:

            def put(line: Mapping[str, Any]) -> None:
                text = orjson.dumps(line) + b"\n"
                digest.update(text)
                file.write(text)

            times = {"at": await now(redis), "open": (await read_opening(redis)).now_ms}
            put({"file": MAGIC, "v": FORMAT, **times, "loops": [_head(record) for record in records]})
            for number, record in enumerate(records):
                sorts: Counter[str] = Counter()
                async for row in read_rows(redis, Keys(record.name, record.id)):
                    put({"loop": number, **_as_json(row)})
                    sorts[_sort(row)] += 1
                    progress(total + sorts.total())
                total += sorts.total()
                copied.append(Copied.of(record, sorts))
            file.write(orjson.dumps({"rows": total, "blake2b": digest.hexdigest()}) + b"\n")
        raw.flush()
        os.fsync(raw.fileno())
    part.replace(path)
    return copied


def _head(record: LoopRecord) -> dict[str, Any]:
    return {"name": record.name, "record": [_text(part) for pair in loop_fields(record).items() for part in pair]}


@dataclass(frozen=True)
class Head:
    """The beginning of a backup."""

    at: float  # unix seconds: the moment that it shows
    open_ms: int  # open time at that moment
    loops: tuple[LoopRecord, ...]


def read_head(path: Path) -> Head:
    """Check a whole backup against its digest; return its head.

    Raises:
        InvalidRequest: it is no backup, or is damaged.
        NewerFormat: a newer version wrote it.
    """
    lines = _lines(path)
    head = next(lines, None)
    for _ in lines:
        pass
    return _head_of(head)


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """Read all lines but the last, which must fit them. Of a line that unpacks to more than it may, no more is read."""
    digest, rows, held = blake2b(), -1, b""
    try:
        with gzip.open(path) as file:
            while line := file.readline(LONGEST_LINE if held else LONGEST_HEAD):
                if held:
                    digest.update(held)
                    rows += 1
                    yield orjson.loads(held)
                held = line
        end = orjson.loads(held)
        whole = (end["rows"], end["blake2b"]) == (rows, digest.hexdigest())
    except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError) as error:
        raise InvalidRequest("file", f"{path} is no backup, or is damaged: {error or type(error).__name__}") from error
    if not whole:
        raise InvalidRequest("file", f"{path} is damaged: its digest is not that of its content")


def _head_of(line: dict[str, Any] | None) -> Head:
    if not isinstance(line, dict) or line.get("file") != MAGIC:
        raise InvalidRequest("file", "is no backup of Rebound")
    check_format("this backup", line.get("v"))
    try:
        loops = []
        for loop in line["loops"]:
            parts = [_bytes(part) for part in loop["record"]]
            if not LOOP_NAME.fullmatch(loop["name"]):
                raise ValueError(f"{loop['name']!r} is no name of a loop")
            loops.append(read_loop_fields(loop["name"], dict(zip(parts[::2], parts[1::2], strict=True))))
        return Head(float(line["at"]), int(line.get("open", 1000 * line["at"])), tuple(loops))
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidRequest("file", f"has a head that cannot be read: {error}") from error


async def restore_backup(
    redis: Redis,
    path: Path,
    *,
    loop: str | None = None,
    into: str | None = None,
    progress: Callable[[int], None] = lambda rows: None,
) -> list[Copied]:
    """Make the loops of a backup in a Redis that may be in use; each appears whole or not at all.

    Deadlines of decisions move by the age of the backup: nobody could report meanwhile.

    Args:
        loop: the only one to make; None: all.
        into: another name for it.

    Raises:
        InvalidRequest: it is no backup, or is damaged; `into` is no name, or stands for several loops.
        NotFound: the backup has no such loop.
        Conflict: a name is taken; nothing was made.
        NewerFormat: a newer version wrote it.
    """
    head = read_head(path)
    wanted = _wanted(head, loop, into)
    for record in wanted.values():
        if record.name in await loop_store.loop_names(redis):
            raise Conflict(
                f"there is a loop {record.name!r}; restore it under another name, or delete it first",
                code="loop_exists",
            )
    later_ms = (await read_opening(redis)).now_ms - head.open_ms
    # Should this be cut off, what it wrote is swept one day.
    unfinished = {f"{record.name}/{record.id}": await now(redis) + UNFINISHED_S for record in wanted.values()}
    if unfinished:
        async with answering():
            await redis.zadd(DELETED, unfinished)
    sorts: dict[int, Counter[str]] = {number: Counter() for number in wanted}
    async for number, rows in _in_batches(path, wanted):
        record = wanted[number]
        await write_rows(redis, Keys(record.name, record.id), rows, later_ms=later_ms)
        sorts[number].update(map(_sort, rows))
        progress(sum(found.total() for found in sorts.values()))
    for number, record in wanted.items():
        restored = {"loop": head.loops[number].name, "backup_of": head.at}
        change = Change("rebound restore", "restore loop", None, restored)
        await change_log.append_of_loop(redis, record.name, change)
        if not await loop_store.create_loop(redis, record):
            raise Conflict(f"somebody made a loop {record.name!r} meanwhile", code="loop_exists")
        async with answering():
            await redis.zrem(DELETED, f"{record.name}/{record.id}")
    return [Copied.of(wanted[number], sorts[number]) for number in wanted]


def _wanted(head: Head, loop: str | None, into: str | None) -> dict[int, LoopRecord]:
    """Return number in the backup -> the record of the loop to make, with an id of its own."""
    chosen = {number: record for number, record in enumerate(head.loops) if loop in (None, record.name)}
    if not chosen:
        held = ", ".join(record.name for record in head.loops) or "none"
        raise NotFound(f"the backup has no loop {loop!r}; it has {held}", code="unknown_loop")
    if into is not None and len(chosen) != 1:
        raise InvalidRequest("into", "is the name of one loop; say which with `loop`")
    if into is not None and not LOOP_NAME.fullmatch(into):
        raise InvalidRequest("into", f"{into!r} is no name of a loop")
    return {number: replace(record, name=into or record.name, id=uuid4().hex[:12]) for number, record in chosen.items()}


async def _in_batches(path: Path, wanted: Mapping[int, LoopRecord]) -> AsyncIterator[tuple[int, list[Row]]]:
    """Yield the rows of the wanted loops, some at a time, with the number of their loop."""
    lines = _lines(path)
    next(lines)  # the head
    while some := list(islice(lines, AT_ONCE)):
        for number in wanted:
            if rows := [_of_json(line) for line in some if line.get("loop") == number]:
                yield number, rows


# ---- rows as JSON: a text as it is, other bytes as a list of one text in base64


def _text(value: bytes | str | int) -> str | list[str]:
    if isinstance(value, int):
        return str(value)
    if isinstance(value, str):
        return value
    try:
        return value.decode()
    except UnicodeDecodeError:
        return [b64encode(value).decode()]


def _bytes(said: str | list[str]) -> bytes:
    return said.encode() if isinstance(said, str) else b64decode(said[0], validate=True)


def _as_json(row: Row) -> dict[str, Any]:
    match row.type:
        case "hash":
            value: list[Any] = [[_text(field), _text(found)] for field, found in row.value]
        case "zset":
            value = [[_text(member), score] for member, score in row.value]
        case "stream":
            value = [[_text(place), [_text(part) for part in parts]] for place, parts in row.value]
        case _:
            value = [_text(found) for found in row.value]
    return {"room": row.room, "key": row.key, "type": row.type, "ttl": row.ttl, "value": value}


def _of_json(line: Mapping[str, Any]) -> Row:
    """Read what `_as_json` wrote.

    Raises:
        InvalidRequest: it is something else.
    """
    try:
        value: list[Any] = line["value"]
        match line["type"]:
            case "hash":
                value = [(_bytes(field), _bytes(found)) for field, found in value]
            case "zset":
                value = [(_bytes(member), float(score)) for member, score in value]
            case "stream":
                value = [(_bytes(place), [_bytes(part) for part in parts]) for place, parts in value]
            case "string" | "list" | "set":
                value = [_bytes(found) for found in value]
            case other:
                raise BadRow(f"there is no type {other!r}")
        ttl = line["ttl"]
        return Row(str(line["room"]), str(line["key"]), line["type"], None if ttl is None else int(ttl), value)
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidRequest("file", f"holds a row that cannot be read: {error}") from error
