"""The command `rebound`: as a person types it, in a process of its own."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from service.settings import Settings
from tests.processes import Served
from tests.waiting import until


def rebound(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run it to its end, with no REBOUND_* variables but these."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("REBOUND_")}
    command = [sys.executable, "-m", "service", *words]
    return subprocess.run(command, env={**clean, **env}, capture_output=True, text=True, timeout=60)


def test_what_is_wrong_is_listed() -> None:
    done = rebound("serve", REBOUND_WORKER="2", REBOUND_PORT="many")
    assert done.returncode == 2
    first, second = done.stderr.strip().splitlines()
    assert first == "✗ REBOUND_WORKER is no setting; did you mean REBOUND_WORKERS?"
    assert second.startswith("✗ REBOUND_PORT: ")


def test_another_address_needs_keys() -> None:
    done = rebound("serve", "--host", "0.0.0.0")
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    assert "REBOUND_ADMIN_KEYS" in done.stderr


@pytest.mark.parametrize("command", ["api", "learn"])
def test_a_process_by_itself_needs_redis(command: str) -> None:
    done = rebound(command)
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    assert "REBOUND_REDIS_URL" in done.stderr


def test_a_taken_port_is_named(data: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        done = rebound("serve", "--port", str(port), "--data", str(data))
    assert (done.returncode, "Traceback" in done.stderr) == (1, False)
    assert f"127.0.0.1:{port}" in done.stderr
    assert "--port" in done.stderr


def test_messages_are_shown_as_they_are(tmp_path: Path) -> None:
    """A folder may have a name that looks like rich's markup."""
    (tmp_path / "[red]").touch()
    done = rebound("serve", "--port", "0", "--data", str(tmp_path / "[red]" / "[/]"))
    assert done.returncode == 1
    assert f"{tmp_path}/[red]/[/]" in done.stderr


def test_flags_override_variables_and_secrets_are_not_shown() -> None:
    secrets = {"REBOUND_ADMIN_KEYS": "hunter2", "REBOUND_REDIS_URL": "redis://:hunter2@host"}
    done = rebound("settings", **secrets, COLUMNS="200")
    assert done.returncode == 0
    assert "redis://***@host" in done.stdout
    assert "hunter2" not in done.stdout
    assert {f"REBOUND_{name.upper()}" for name in Settings.model_fields} <= set(done.stdout.split())
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert f"127.0.0.1:{port}" in rebound("serve", "--port", str(port), REBOUND_PORT="1").stderr


def test_every_command_has_an_example() -> None:
    for command in ("serve", "api", "learn", "audit"):
        assert re.search(r"Example: \S", rebound(command, "--help", COLUMNS="200").stdout), command


def test_an_api_worker_does_not_import_torch() -> None:
    code = "import sys, service.cli, service.api.app; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("log_format", ["console", "json"])
def test_tracebacks_in_the_log_show_no_variables(log_format: str) -> None:
    """They would show the keys of the request that failed."""
    code = """
import logging, sys, structlog
from service import logs
from service.settings import Settings

def check(half):
    key = "hunter2-" + half
    raise RuntimeError("boom")

logs.configure(Settings(log_format=sys.argv[1]))
try:
    check("secret")
except RuntimeError:
    structlog.get_logger().exception("ours", decision_id="d1")
    logging.getLogger("uvicorn.error").exception("uvicorn's")
"""
    done = subprocess.run([sys.executable, "-c", code, log_format], capture_output=True, text=True)
    assert done.stderr.count("boom") >= 2, "both tracebacks are there"
    assert "hunter2-secret" not in done.stderr
    if log_format == "json":
        ours, uvicorns = map(json.loads, done.stderr.splitlines())
        assert (ours["event"], ours["level"], ours["decision_id"]) == ("ours", "error", "d1")
        assert (uvicorns["event"], uvicorns["level"]) == ("uvicorn's", "error")


def test_a_second_service_on_the_folder_is_refused_and_harms_nothing(data: Path) -> None:
    with Served(data) as served:
        until(lambda: list((data / "metrics").iterdir()), "the workers count")
        before = sorted(path.name for path in (data / "metrics").iterdir())
        second = rebound("serve", "--port", "0", "--data", str(data))
        assert (second.returncode, "Traceback" in second.stderr) == (1, False)
        assert f"in use by process {served.process.pid}" in second.stderr
        assert set(before) <= {path.name for path in (data / "metrics").iterdir()}
        assert served.ready()


def test_the_service_says_where_it_is_and_stops_cleanly(tmp_path: Path) -> None:
    data, said = tmp_path / "data", tmp_path / "said"
    command = [sys.executable, "-m", "service", "serve", "--port", "0", "--data", str(data)]
    with said.open("wb") as out:
        process = subprocess.Popen(command, stdout=out)
    try:
        until(lambda: "Ctrl-C" in said.read_text(), "it is ready", within_s=60)
        lines = said.read_text()
        found = re.search(r"ready at (http://127\.0\.0\.1:\d+) ", lines)
        assert found, lines
        url = found[1]
        assert f"state: {data}" in lines
        assert """-d '{"user_id": "u1", "candidates": ["a", "b", "c"]}'""" in lines
        assert httpx.get(f"{url}/docs").status_code == 200
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/healthz")
