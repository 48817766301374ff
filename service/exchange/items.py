"""Catalogues as files: JSON lines, each as `POST /items` takes an item, and Parquet.

    {"id": "sku-9", "features": {"category": "Cat Toy", "price": 4.5}}

A table of Parquet has the columns `id` and `features`, the latter a JSON object as text; or `id` and a column for each
field, where an empty cell leaves the field out.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from datetime import date, datetime
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from service.exchange.parquet import arrow
from service.exchange.rows import wrong

LONGEST_LINE = 64 << 20  # bytes
LONGEST_ID = 128  # characters
AT_ONCE = 1000  # rows of a table that are read or written at once


class FileItem(NamedTuple):
    """One item of a file, checked."""

    where: str  # its row, for people
    id: str
    body: bytes  # JSON, as a request holds it


def read_items(path: Path) -> Iterator[FileItem]:
    """Read the items of a file: Parquet where its name ends in `.parquet`, else JSON lines.

    Raises:
        InvalidRequest: names the row and the field; or PyArrow is not installed.
    """
    return _read_parquet(path) if path.suffix == ".parquet" else _read_lines(path)


def _read_lines(path: Path) -> Iterator[FileItem]:
    with path.open("rb") as file:
        number = 0
        while line := file.readline(LONGEST_LINE):
            number += 1
            if line.strip():
                where = f"line {number}"
                try:
                    said = orjson.loads(line)
                except orjson.JSONDecodeError as error:
                    raise wrong(where, "", f"is no JSON: {error}") from error
                if not isinstance(said, dict):
                    raise wrong(where, "", "is no JSON object")
                for name in said.keys() - {"id", "features"}:
                    raise wrong(where, name, "is no field of an item, which has `id` and `features`")
                yield _item(where, said.get("id"), said.get("features"))


def _read_parquet(path: Path) -> Iterator[FileItem]:
    pa, parquet = arrow()
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if "id" not in names:
                raise wrong(path.name, "id", "there is no such column")
            if "features" in names and len(names) > 2:
                raise wrong(path.name, "features", "stands beside other columns; name them within it, or leave it out")
            for batch in file.iter_batches(batch_size=AT_ONCE):
                for row in batch.to_pylist():
                    number += 1
                    where = f"row {number}"
                    item = row.pop("id")
                    if "features" in names:
                        yield _item(where, item, _features(where, row["features"]))
                    else:
                        yield _item(where, item, {name: value for name, value in row.items() if value is not None})
    except (pa.ArrowException, OverflowError, ValueError) as error:
        raise wrong(f"{path.name} after row {number}", "", f"cannot be read: {error}") from error


def _features(where: str, text: Any) -> Any:
    if text is None:
        return None
    try:
        return orjson.loads(text)
    except (orjson.JSONDecodeError, TypeError) as error:
        raise wrong(where, "features", f"is no JSON text: {error}") from error


def _item(where: str, item: Any, features: Any) -> FileItem:
    if isinstance(item, int) and not isinstance(item, bool):
        item = str(item)
    if not isinstance(item, str) or not 1 <= len(item) <= LONGEST_ID:
        raise wrong(where, "id", f"{item!r:.60} is no text of 1 to {LONGEST_ID} characters, and no integer")
    if features is None:
        features = {}
    if not isinstance(features, dict):
        raise wrong(where, "features", "is no JSON object")
    return FileItem(where, item, b'{"id":%b,"features":%b}' % (orjson.dumps(item), _written(where, features)))


def _written(where: str, features: Mapping[str, Any]) -> bytes:
    """Write features as JSON. Unlike orjson, this does not make null of what is not finite."""
    try:
        return _json(features)
    except (TypeError, ValueError):
        for name, value in features.items():
            try:
                _json(value)
            except (TypeError, ValueError) as error:
                raise wrong(where, f"features.{name}", f"{value!r:.60} cannot be written as JSON: {error}") from error
        raise


def _json(value: Any) -> bytes:
    return json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":"), default=_moment).encode()


def _moment(value: Any) -> str:
    if isinstance(value, (date, datetime)):
        return value.isoformat()
    raise TypeError(f"a {type(value).__name__} is no JSON")


def write_items(path: Path, items: Iterable[tuple[str, Mapping[str, Any]]]) -> None:
    """Write (id, features): Parquet where the name ends in `.parquet`, else JSON lines. `read_items` reads it again.

    Raises:
        InvalidRequest: PyArrow is not installed.
    """
    if path.suffix == ".parquet":
        _write_parquet(path, items)
    else:
        with path.open("wb") as file:
            for item, features in items:
                file.write(orjson.dumps({"id": item, "features": features}) + b"\n")


def _write_parquet(path: Path, items: Iterable[tuple[str, Mapping[str, Any]]]) -> None:
    pa, parquet = arrow()
    schema = pa.schema([("id", pa.string()), ("features", pa.string())])
    with parquet.ParquetWriter(path, schema, compression="zstd") as file:
        some: list[dict[str, str]] = []
        for item, features in items:
            some.append({"id": item, "features": orjson.dumps(features).decode()})
            if len(some) == AT_ONCE:
                file.write_table(pa.Table.from_pylist(some, schema))
                some = []
        file.write_table(pa.Table.from_pylist(some, schema))
