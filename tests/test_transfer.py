"""`rebound items import` and `rebound items export` against a running service."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from service import cli, transfer
from service.exchange.items import read_items


@pytest.fixture
def rebound(service: str, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Run a command on a wide terminal."""
    for name in ("console", "errors"):
        monkeypatch.setattr(cli, name, Console(width=250, stderr=name == "errors"))

    def run(command: str, path: Path, *words: str) -> Result:
        return CliRunner().invoke(cli.app, ["items", command, str(path), "--url", service, *words])

    return run


def lines(path: Path, items: list[dict[str, Any]]) -> Path:
    path.write_bytes(b"".join(orjson.dumps(item) + b"\n" for item in items))
    return path


def listed(client: httpx.Client, loop: str) -> dict[str, Any]:
    page = client.get("/items", params={"loop": loop, "limit": 1000}).json()
    assert page["count"] == len(page["items"])
    return {item["id"]: item["features"] for item in page["items"]}


def test_items_come_and_go_as_files(
    client: httpx.Client,
    make_loop: Callable[..., str],
    rebound: Callable[..., Result],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(transfer, "BATCH", 4)
    loop = make_loop(policy=None, items=0)
    items = [{"id": f"p{number}", "features": {"price": number / 2}} for number in range(10)]
    done = rebound("import", lines(tmp_path / "in.jsonl", items), "--loop", loop)
    assert (done.exit_code, "10 items imported" in done.output) == (0, True), done.output
    assert listed(client, loop) == {item["id"]: item["features"] for item in items}
    for name in ("out.jsonl", "out.parquet"):
        done = rebound("export", tmp_path / name, "--loop", loop)
        assert (done.exit_code, "10 items" in done.output) == (0, True), done.output
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "in.jsonl").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl", "out.parquet"]
    done = rebound("import", tmp_path / "out.parquet", "--loop", loop)
    assert (done.exit_code, listed(client, loop)["p3"]) == (0, {"price": 1.5})
    done = rebound("export", tmp_path / "out.jsonl", "--loop", loop)
    assert (done.exit_code, "is there already" in done.output) == (1, True)


def test_a_file_with_a_fault_changes_nothing(
    client: httpx.Client, make_loop: Callable[..., str], rebound: Callable[..., Result], tmp_path: Path
) -> None:
    loop = make_loop(policy=None, items=0)
    path = lines(tmp_path / "in.jsonl", [{"id": "a"}, {"id": "b", "features": []}])
    for words in (["--loop", loop], ["--dry-run"]):
        done = rebound("import", path, *words)
        assert (done.exit_code, "line 2, features: is no JSON object" in done.output) == (1, True), done.output
    done = rebound("import", lines(path, [{"id": "a"}, {"id": "b"}, {"id": "a"}]), "--loop", loop)
    assert (done.exit_code, "line 3, id: 'a' stands in the file twice" in done.output) == (1, True), done.output
    assert listed(client, loop) == {}


def test_a_dry_run_needs_no_service(tmp_path: Path, rebound: Callable[..., Result]) -> None:
    path = lines(tmp_path / "in.jsonl", [{"id": "a"}, {"id": "b"}])
    done = rebound("import", path, "--dry-run", "--url", "http://127.0.0.1:9")
    assert (done.exit_code, "2 items, each as it should be" in done.output) == (0, True), done.output


def test_where_the_service_refuses_is_said(
    client: httpx.Client,
    make_loop: Callable[..., str],
    rebound: Callable[..., Result],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(transfer, "BATCH", 2)
    loop = make_loop(policy=None, items=0)
    deep: dict[str, Any] = {}
    for _ in range(245):
        deep = {"deeper": deep}
    path = lines(tmp_path / "in.jsonl", [{"id": "a"}, {"id": "b"}, {"id": "c"}, {"id": "d", "features": deep}])
    done = rebound("import", path, "--loop", loop)
    assert done.exit_code == 1
    assert "nested deeper than 240 levels; 2 items were put, those from line 3 on were not" in done.output, done.output
    assert list(listed(client, loop)) == ["a", "b"]
    done = rebound("import", path, "--loop", "never-made")
    assert (done.exit_code, "there is no loop 'never-made'" in done.output) == (1, True), done.output


def test_a_batch_is_bounded_by_its_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "BATCH_BYTES", 100)
    items = [{"id": str(number), "features": {"text": "x" * size}} for number, size in enumerate([5, 5, 500, 60, 5])]
    batches = transfer._batches(read_items(lines(tmp_path / "in.jsonl", items)))
    assert [[item.id for item in some] for some in batches] == [["0", "1"], ["2"], ["3"], ["4"]]
