"""Catalogues as files: what is written is read back as it was, and what is wrong is named by row and field."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pytest
from pyarrow import parquet

from service.errors import InvalidRequest
from service.exchange.items import read_items, write_items

ITEMS: dict[str, dict[str, Any]] = {
    "a": {"kind": "Cat Toy", "price": 4.5, "tags": ["new", "é"], "maker": {"country": "de"}, "sold": None},
    "b\n𝄞": {},
    "c": {"big": 2**60, "in stock": True},
}


def read(path: Path) -> dict[str, Any]:
    found = {}
    for item in read_items(path):
        said = orjson.loads(item.body)
        assert said["id"] == item.id
        found[item.id] = said["features"]
    return found


@pytest.mark.parametrize("name", ["items.jsonl", "items.parquet"])
def test_what_is_written_is_read_back(name: str, tmp_path: Path) -> None:
    write_items(tmp_path / name, ITEMS.items())
    assert read(tmp_path / name) == ITEMS
    write_items(tmp_path / name, [])
    assert read(tmp_path / name) == {}


def test_a_table_may_have_a_column_for_each_field(tmp_path: Path) -> None:
    table = {"id": [7, 8], "price": [1.5, None], "tags": [["a"], []], "since": [None, date(2026, 11, 27)]}
    parquet.write_table(pa.table(table), tmp_path / "items.parquet")
    assert read(tmp_path / "items.parquet") == {
        "7": {"price": 1.5, "tags": ["a"]},
        "8": {"tags": [], "since": "2026-11-27"},
    }


@pytest.mark.parametrize(
    ("line", "where"),
    [
        ("{", "line 3"),
        ("[]", "line 3"),
        ('{"features": {}}', "line 3, id"),
        ('{"id": ""}', "line 3, id"),
        ('{"id": 1.5}', "line 3, id"),
        ('{"id": true}', "line 3, id"),
        ('{"id": "x", "features": 1}', "line 3, features"),
        ('{"id": "x", "price": 1}', "line 3, price"),
        ('{"id": "x", "features": {"price": NaN}}', "line 3"),
    ],
)
def test_a_wrong_line_is_named(line: str, where: str, tmp_path: Path) -> None:
    path = tmp_path / "items.jsonl"
    path.write_text('{"id": "first"}\n\n' + line + "\n")
    with pytest.raises(InvalidRequest) as error:
        read(path)
    assert error.value.detail.startswith(f"{where}:") or error.value.detail.startswith(f"{where} ")


@pytest.mark.parametrize(
    ("columns", "where"),
    [
        ({"sku": ["a"]}, "items.parquet, id"),
        ({"id": ["a"], "features": ["{}"], "price": [1]}, "items.parquet, features"),
        ({"id": ["a", None], "price": [1, 2]}, "row 2, id"),
        ({"id": ["a"], "features": ["{"]}, "row 1, features"),
        ({"id": ["a", "b"], "price": [1.0, float("nan")]}, "row 2, features.price"),
        ({"id": ["a"], "image": [b"\x00"]}, "row 1, features.image"),
    ],
)
def test_a_wrong_cell_is_named(columns: dict[str, Any], where: str, tmp_path: Path) -> None:
    parquet.write_table(pa.table(columns), tmp_path / "items.parquet")
    with pytest.raises(InvalidRequest) as error:
        read(tmp_path / "items.parquet")
    assert error.value.detail.startswith(where)


def test_what_is_no_table_is_refused(tmp_path: Path) -> None:
    (tmp_path / "items.parquet").write_text("no table")
    with pytest.raises(InvalidRequest, match="cannot be read"):
        read(tmp_path / "items.parquet")
