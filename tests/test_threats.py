"""Threats of docs/security.md that no other test tries; and that the page names tests which are there."""

from __future__ import annotations

import ast
import re
import socket
from functools import cache
from pathlib import Path

import httpx
import pytest

from service.run.embedded import EmbeddedRedis
from service.settings import Settings
from tests.conftest import Worker
from tests.test_architecture import FILES, ROOT

ROW = re.compile(r"^\| (?P<threat>[^|]+) \| (?P<against>[^|]+) \| (?P<tests>[^|]+) \|$", re.MULTILINE)
PAGE = (ROOT / "docs/security.md").read_text()
ROWS = [row for row in ROW.finditer(PAGE) if row["threat"] != "threat"]


@cache
def names_in(file: str) -> set[str]:
    path = ROOT / file
    tree = ast.parse(path.read_text() if path.exists() else "")
    return {node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))}


def missing(cell: str) -> list[str]:
    """Return the tests of a cell that are not there; the cell itself where it names none."""
    named = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", cell)
    return [f"{file}::{name}" for file, name in named if name not in names_in(file)] if named else [cell]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["threat"][:50])
def test_every_threat_is_tried(row: re.Match[str]) -> None:
    assert missing(row["tests"]) == []


def test_the_check_of_the_page_can_fail() -> None:
    assert len(ROWS) == PAGE.count("\n| ") - 5, "every line is read, but for five heads"
    assert missing("nothing") == ["nothing"]
    assert missing("`tests/nowhere.py::test_x`") == ["tests/nowhere.py::test_x"]


def test_no_page_of_another_site_may_read_an_answer(client: httpx.Client) -> None:
    headers = {"Origin": "https://elsewhere.example", "Access-Control-Request-Method": "PUT"}
    for method, path in (("OPTIONS", "/loops/default"), ("GET", "/loops"), ("POST", "/recommend")):
        reply = client.request(method, path, headers=headers)
        assert not [name for name in reply.headers if name.startswith("access-control")]
    headers["Origin"] = str(client.base_url)
    assert client.options("/loops/default", headers=headers).status_code == 405


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "elsewhere.example"},  # whose name resolves to 127.0.0.1
        {"Host": "127.0.0.1.elsewhere.example:8000"},
        {"Host": "127.0.0.1@elsewhere.example"},
        {"Host": "[::1].elsewhere.example"},
        {"Host": "localhost.elsewhere.example"},
        {"Host": "10.0.0.1"},
        {"Host": ""},
        {"Origin": "https://elsewhere.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
    ],
)
def test_without_keys_no_page_of_another_site_reaches_anything(client: httpx.Client, headers: dict[str, str]) -> None:
    body = {"candidates": ["a"], "decision_id": "of another site"}
    for method, path in (("POST", "/recommend"), ("PUT", "/loops/taken"), ("GET", "/loops"), ("GET", "/users/u1")):
        sent = None if method == "GET" else body if path == "/recommend" else {}
        reply = client.request(method, path, headers=headers, json=sent)
        assert (reply.status_code, reply.json()["code"]) == (403, "other_site"), (method, path)
    assert client.get("/decisions/of another site").status_code == 404
    assert client.get("/healthz", headers=headers).status_code == 200, "for probes, which call by any name"


def test_pages_of_our_own_and_all_loopback_names_are_answered(client: httpx.Client) -> None:
    port = client.base_url.port
    for host in (f"127.0.0.1:{port}", f"localhost:{port}", f"LOCALHOST:{port}", "localhost", "[::1]:80", "127.0.0.7"):
        for headers in ({"Host": host}, {"Host": host, "Origin": f"http://{host}"}):
            assert client.get("/loops", headers=headers).status_code == 200, headers
    with socket.create_connection((client.base_url.host, port or 0), timeout=20) as plain:
        plain.sendall(b"GET /loops HTTP/1.0\r\n\r\n")  # a browser always says a host
        assert plain.recv(1024).startswith(b"HTTP/1.1 200 ")


def test_with_keys_or_told_that_others_are_kept_out_any_name_is_answered(redis_url: str) -> None:
    headers = {"Host": "shop.example", "Origin": "https://elsewhere.example", "X-API-Key": "secret"}
    for settings in (
        Settings(redis_url=redis_url, admin_keys="secret"),
        Settings(redis_url=redis_url, without_keys=True),
    ):
        with Worker(settings, learner=False) as url:
            assert httpx.get(f"{url}/loops", headers=headers, timeout=30).status_code == 200


RUNS_CODE = re.compile(
    r"""^\s*(import|from)\s+(pickle|shelve|dill|cloudpickle|joblib|yaml)\b
    | (?<![.\w])(eval|exec|compile)\(
    | marshal\.load | from\ marshal\ import\ .*\bload
    | torch\.load
    | np\.load\((?!.*allow_pickle=False)""",
    re.MULTILINE | re.VERBOSE,
)


def test_nothing_that_is_read_can_run_code() -> None:
    """No format that holds code, and no text that is run: whatever is stored, imported or sent is data."""
    for file in FILES:
        if file.startswith("service/"):
            assert RUNS_CODE.search((ROOT / file).read_text()) is None, file
    for wrong in (
        "import pickle",
        "  from yaml import load",
        "x = eval(y)",
        "np.load(path)",
        "from marshal import loads",
    ):
        assert RUNS_CODE.search(wrong), wrong
    assert RUNS_CODE.search("re.compile('x')") is None


def test_data_and_socket_are_their_owners_only(tmp_path: Path) -> None:
    with EmbeddedRedis(tmp_path / "data") as redis:
        assert redis.data.stat().st_mode & 0o777 == 0o700
        assert redis.socket.stat().st_mode & 0o077 == 0
