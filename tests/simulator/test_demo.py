"""The demo starts a service of its own and leaves nothing behind, also when it is interrupted."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from simulator import demo
from simulator.scenario import load
from tests.waiting import until


def processes_of(folder: Path) -> list[int]:
    """Ids of the processes whose command line names the folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue
            if str(folder) in line:
                found.append(int(entry.name))
    return found


@pytest.mark.anyio
async def test_a_short_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("REBOUND_REDIS_URL", "redis://127.0.0.1:1/0")  # the caller's own, not for the demo
    plan = load("demo", {"policies": ["random", "linucb"], "steps": 100}).plan()
    console = Console(file=io.StringIO(), width=200)
    report = await demo.run_demo(console, plan, out=tmp_path / "runs", command="rebound-sim demo")
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert re.search(r"\[1/\d\] starting the service \(about 3 s, then about .* more\)", said)
    assert report["headline"].split()[0] in said
    assert sorted(path.name for path in (tmp_path / "runs").rglob("*.*") if path.is_file()) == [
        "report.html",
        "report.json",
        "report.png",
    ]
    assert list(tmp_path.glob("rebound-demo-*")) == []
    assert processes_of(tmp_path) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    command = [sys.executable, "-m", "simulator", "demo", "--out", str(tmp_path / "runs")]
    env = {**os.environ, "TMPDIR": str(tmp_path)}
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=env,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )
    until(lambda: len(processes_of(tmp_path)) >= 3, "the demo has a service", within_s=60)
    process.send_signal(number)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert list(tmp_path.glob("rebound-demo-*")) == []
    assert processes_of(tmp_path) == []
