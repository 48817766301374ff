"""A loop's log as a folder of Parquet files, which DuckDB, Polars and Spark read.

    FOLDER/policies.parquet
    FOLDER/decisions/day=2026-11-27/decided-0.parquet
    FOLDER/events/day=2026-11-27/{decided,imported}-0.parquet
    FOLDER/activity/day=2026-11-27/accepted-0.parquet

Days are of UTC; an activity lies in the day on which it was accepted. Columns have the names of the API; what may be
any JSON (context, features, candidates) is a text. Each file of events is in the order of its times: those that were
decided here, and those that were imported.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from service.errors import InvalidRequest
from service.exchange.rows import moment, past_event, wrong
from service.records import Decision, Event, LoggedActivity, LoopRecord, PastEvent, PolicyRecord, order

if TYPE_CHECKING:
    import pyarrow as pa

ROWS, BYTES = 10_000, 8 << 20  # of a row group, about: whichever is reached first
OPEN = 8  # files that are written at the same time
AT_ONCE = 500  # rows that are read or packed at once
EVENTS = {
    "position": "text",
    "time": "time",
    "decision_id": "text",
    "item_id": "text",
    "user_id": "text",
    "context": "text",
    "features": "text",
    "reward": "number",
    "propensity": "number",
    "n": "integer",
    "policy": "text",
    "version": "integer",
    "source": "text",
    "slate_position": "integer",
    "encoder": "text",
    "x": "row",
}
DECISIONS = {
    "decision_id": "text",
    "at": "time",
    "user_id": "text",
    "context": "text",
    "candidates": "text",
    "exclude": "texts",
    "catalogue": "integer",
    "n": "integer",
    "k": "integer",
    "policy": "text",
    "version": "integer",
    "encoder": "text",
    "exploration_floor": "number",
    "seed": "text",
    "items": "slate",
    "rules": "text",
    "retrieved": "text",
    "seen": "texts",
}
ACTIVITY = {
    "position": "text",
    "accepted": "time",
    "at": "time",
    "user_id": "text",
    "number": "integer",
    "item_id": "text",
    "type": "text",
}
POLICIES = {
    "name": "text",
    "id": "text",
    "kind": "text",
    "params": "text",
    "seed": "integer",
    "retention": "integer",
    "version": "integer",
    "position": "text",
    "events": "integer",
    "skipped": "integer",
    "bytes": "integer",
    "kept": "integer",
    "published": "time",
    "alarms": "text",
    "begun": "text",
    "encoding": "text",
    "share": "number",
}
# Columns of events that a loop gives to an event itself.
OWN = {"position", "source", "slate_position", "encoder", "x"}
KNOWN = {
    "time",
    "decision_id",
    "item_id",
    "user_id",
    "context",
    "features",
    "reward",
    "propensity",
    "n",
    "policy",
    "version",
}


def arrow() -> tuple[Any, Any]:
    """Return PyArrow and its Parquet module.

    Raises:
        InvalidRequest: PyArrow is not installed.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise InvalidRequest("format", "Parquet needs PyArrow: pip install 'rebound[parquet]'") from error
    return pyarrow, parquet


def _schema(columns: Mapping[str, str], loop: LoopRecord) -> pa.Schema:
    pa, _ = arrow()
    text, number = pa.string(), pa.float64()
    types = {
        "text": text,
        "number": number,
        "integer": pa.int64(),
        "time": pa.timestamp("ms", tz="UTC"),
        "row": pa.list_(pa.float32()),
        "texts": pa.list_(text),
        "slate": pa.list_(pa.struct([("id", text), ("score", number), ("propensity", number)])),
    }
    origin = orjson.dumps({"loop": loop.name, "id": loop.id})
    return pa.schema([(name, types[sort]) for name, sort in columns.items()], metadata={"rebound": origin})


def _json(value: Any) -> str | None:
    return None if value is None else orjson.dumps(value).decode()


def _ms(at: float | None) -> int | None:
    return None if at is None else round(1000 * at)


def event_row(event: Event) -> dict[str, Any]:
    """Return the columns of an event."""
    return {
        "position": event.position,
        "time": _ms(event.time),
        "decision_id": event.decision_id,
        "item_id": event.item,
        "user_id": event.user,
        "context": _json(event.context),
        "features": _json(event.features),
        "reward": event.reward,
        "propensity": event.propensity,
        "n": event.n,
        "policy": event.policy,
        "version": event.version,
        "source": event.source,
        "slate_position": event.slate_position,
        "encoder": event.encoder,
        "x": event.x,
    }


def decision_row(decision: Decision) -> dict[str, Any]:
    """Return the columns of a decision."""
    return {
        "decision_id": decision.decision_id,
        "at": _ms(decision.at),
        "user_id": decision.user_id,
        "context": _json(decision.context),
        "candidates": _json(decision.candidates),
        "exclude": list(decision.left_out),
        "catalogue": decision.catalogue,
        "n": decision.n,
        "k": decision.k,
        "policy": decision.policy,
        "version": decision.version,
        "encoder": decision.encoder,
        "exploration_floor": decision.exploration_floor,
        "seed": decision.seed,
        "items": [asdict(item) for item in decision.items],
        "rules": _json(decision.rules),
        "retrieved": None if decision.retrieved is None else _json(decision.retrieved._asdict()),
        "seen": None if decision.seen is None else [decision.seen.position, *decision.seen.items],
    }


def activity_row(activity: LoggedActivity) -> dict[str, Any]:
    """Return the columns of an activity."""
    return {
        "position": activity.position,
        "accepted": order(activity.position)[0],
        "at": activity.at,
        "user_id": activity.user,
        "number": activity.number,
        "item_id": activity.item,
        "type": activity.type,
    }


def policy_row(policy: PolicyRecord, share: float) -> dict[str, Any]:
    """Return the columns of a policy."""
    texts = {name: _json(getattr(policy, name)) for name in ("params", "alarms", "begun", "encoding")}
    plain = {name: getattr(policy, name) for name in POLICIES if name not in (*texts, "published", "share")}
    return {**plain, **texts, "published": _ms(policy.published), "share": share}


class _File:
    """One Parquet file. Rows are held, packed, until they fill a row group."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._pa, parquet = arrow()
        path.parent.mkdir(parents=True, exist_ok=True)
        self._schema, self._writer = schema, parquet.ParquetWriter(path, schema, compression="zstd")
        self._rows: list[dict[str, Any]] = []
        self._size = 0  # characters of `_rows`, about
        self._packed: list[pa.RecordBatch] = []

    def add(self, row: dict[str, Any]) -> None:
        self._rows.append(row)
        self._size += sum(len(value) for value in row.values() if isinstance(value, str))
        if len(self._rows) >= AT_ONCE or self._size >= BYTES:
            self._pack()

    def _pack(self) -> None:
        if self._rows:
            self._packed.append(self._pa.RecordBatch.from_pylist(self._rows, self._schema))
        self._rows, self._size = [], 0
        if sum(len(batch) for batch in self._packed) >= ROWS or sum(batch.nbytes for batch in self._packed) >= BYTES:
            self._write()

    def _write(self) -> None:
        if self._packed:
            self._writer.write_table(self._pa.Table.from_batches(self._packed))
        self._packed = []

    def close(self) -> None:
        self._pack()
        self._write()
        self._writer.close()


class ParquetFolder:
    """Writes a log into a folder, in memory that does not grow with it. Close it, also after an error."""

    def __init__(self, folder: Path, loop: LoopRecord) -> None:
        self._folder, self._loop = folder, loop
        tables = {"events": EVENTS, "decisions": DECISIONS, "activity": ACTIVITY}
        self._schemas = {name: _schema(columns, loop) for name, columns in tables.items()}
        self._open: OrderedDict[tuple[str, str, str], _File] = OrderedDict()
        self._files: dict[tuple[str, str, str], int] = {}  # how many there are of this table, day and name

    def add_event(self, event: Event) -> None:
        name = "decided" if event.at is None else "imported"
        self._add("events", event.time, name, event_row(event))

    def add_decision(self, decision: Decision) -> None:
        self._add("decisions", decision.at, "decided", decision_row(decision))

    def add_activity(self, activity: LoggedActivity) -> None:
        row = activity_row(activity)
        self._add("activity", row["accepted"] / 1000, "accepted", row)

    def _add(self, table: str, at: float, name: str, row: dict[str, Any]) -> None:
        place = (table, moment(at)[:10], name)
        if place not in self._open:
            if len(self._open) == OPEN:
                self._open.popitem(last=False)[1].close()
            number = self._files.get(place, 0)
            self._files[place] = number + 1
            path = self._folder / table / f"day={place[1]}" / f"{name}-{number}.parquet"
            self._open[place] = _File(path, self._schemas[table])
        self._open.move_to_end(place)
        self._open[place].add(row)

    def write_policies(self, policies: Iterable[tuple[PolicyRecord, float]]) -> None:
        """Write all policies, each with its share of the traffic."""
        file = _File(self._folder / "policies.parquet", _schema(POLICIES, self._loop))
        for policy, share in policies:
            file.add(policy_row(policy, share))
        file.close()

    def close(self) -> None:
        while self._open:
            self._open.popitem()[1].close()


# ---- reading


def read_parquet(path: Path) -> Iterator[tuple[str, PastEvent]]:
    """Read the events of a file, or of a folder that `ParquetFolder` wrote, oldest first: (row for people, event).

    Files of one folder are merged by time; folders come in the order of their names.

    Raises:
        InvalidRequest: PyArrow is not installed, or a file is damaged or holds something else; names row and field.
    """
    arrow()
    root = path / "events" if (path / "events").is_dir() else path
    files = sorted(root.rglob("*.parquet")) if root.is_dir() else [root]
    if not files:
        raise InvalidRequest("file", f"{path} holds no Parquet file")
    for _, some in groupby(files, key=lambda file: file.parent):
        rows = [_read_file(file, str(file.relative_to(path)) if file != path else file.name) for file in some]
        yield from heapq.merge(*rows, key=lambda pair: pair[1].at or 0.0)


def _read_file(path: Path, name: str) -> Iterator[tuple[str, PastEvent]]:
    """Read one file, which people know by `name`."""
    pa, parquet = arrow()
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            columns: Sequence[str] = file.schema_arrow.names
            _check_columns(name, columns)
            wanted = [column for column in columns if column in KNOWN]
            origin = _origin(file.schema_arrow.metadata)
            for batch in file.iter_batches(batch_size=AT_ONCE, columns=wanted):
                for row in _in_us(batch).to_pylist():
                    number += 1
                    where = f"{name} row {number}"
                    yield where, past_event(where, _fields(where, row) | {"origin": origin})
    except (pa.ArrowException, OSError, OverflowError, ValueError) as error:
        raise wrong(f"{name} after row {number}", "", f"cannot be read: {error}") from error


def _in_us(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return times in µs, as Python has no nanoseconds."""
    pa, _ = arrow()
    number = batch.schema.get_field_index("time")
    if number < 0 or not pa.types.is_timestamp(batch.schema.field(number).type):
        return batch
    column = batch.column(number)
    return batch.set_column(number, "time", column.cast(pa.timestamp("us", tz=column.type.tz), safe=False))


def _origin(metadata: Mapping[bytes, bytes] | None) -> str | None:
    """Return the id of the loop that a file was exported from; None: Rebound did not write it."""
    try:
        return str(orjson.loads((metadata or {})[b"rebound"])["id"])
    except (KeyError, TypeError, ValueError):
        return None


def _check_columns(name: str, names: Sequence[str]) -> None:
    for needed in ("decision_id", "item_id", "reward"):
        if needed not in names:
            raise wrong(name, needed, "there is no such column")
    for found in names:
        if found not in KNOWN | OWN | {"day"}:
            raise wrong(name, found, "is no column of an event; rename it, or put it into `context`")


def _fields(where: str, row: dict[str, Any]) -> dict[str, Any]:
    for name in ("context", "features"):
        if row.get(name) is not None:
            try:
                row[name] = orjson.loads(row[name])
            except (orjson.JSONDecodeError, TypeError) as error:
                raise wrong(where, name, f"is no JSON text: {error}") from error
    at = row.pop("time", None)
    if at is not None:
        if not isinstance(at, datetime):
            raise wrong(where, "time", "is no timestamp")
        row["at"] = (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()
    return row
