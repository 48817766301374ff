"""Run the demo: start a service, run an arena against it, write a report, and stop everything."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from rich.console import Console

from simulator.arena import HISTORY, STEPS, TRAINING, ArenaPlan, run_arena
from simulator.client import ServiceClient
from simulator.errors import Failing
from simulator.progress import Stages
from simulator.report import new_folder, write
from simulator.scenario import load
from simulator.summary import Report, summarise, table

START, WRITE = "starting the service", "writing the report"
START_TIMEOUT_S, STOP_TIMEOUT_S = 60.0, 20.0
QUICK = {"steps": 3_000, "history": 20_000}

INTRODUCTION = """\
A recommender trained on {history:,} past impressions meets bandits that start from nothing, over HTTP, in a pet shop
with four kinds of customers. After {half:,} of {steps:,} steps every customer's tastes change. In one more loop the
served policy is swapped under traffic. It takes about {minutes}.
"""


def arena_plan(*, quick: bool, seed: int) -> ArenaPlan:
    """Return the arena of the demo."""
    return load("demo", {"seeds": [seed], **(QUICK if quick else {})}).plan()


async def run_demo(console: Console, plan: ArenaPlan, *, out: Path, command: str) -> Report:
    """Run the demo; return its report. Stops the service and removes its data, also after an error.

    Args:
        command: the command line, for the report.

    Raises:
        SimulatorError: says what failed and what to do.
    """
    began = time.monotonic()
    started = datetime.now().astimezone()
    decisions = plan.steps * len(plan.contestants)
    expected_s = {
        START: 3.0,
        HISTORY: plan.history / 7000,
        TRAINING: 2 + plan.history / 12_000,
        STEPS: decisions / 700,
        WRITE: 4.0,
    }
    minutes = sum(expected_s.values()) / 60
    shown = f"{minutes:.0f} minutes" if minutes >= 1.5 else "a minute"
    console.print(INTRODUCTION.format(history=plan.history, half=plan.steps // 2, steps=plan.steps, minutes=shown))
    with Stages(console, expected_s) as stages:
        with running_service() as process:
            async with ServiceClient(process.url) as client:
                with stages.stage(START):
                    await process.ready(client)
                result = await run_arena(client, plan, stages)
        with stages.stage(WRITE):
            report = summarise(result, command=command, started=started)
            files = write(new_folder(out), report)
    console.print(table(report))
    console.print(f"\nin {time.monotonic() - began:.0f} s; nothing is left running. The report:", highlight=False)
    for file in files:
        console.print(f"  {file}", highlight=False, soft_wrap=True)
    return report


class ServiceProcess:
    """`rebound serve` on a free port, with its data in `folder`."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self._log = folder / "serve.log"
        command = [sys.executable, "-m", "service", "serve", "--port", str(port), "--workers", "2"]
        # The demo must not use the Redis, or any other setting, of the caller's own service.
        env = {name: value for name, value in os.environ.items() if not name.startswith("REBOUND_")}
        with self._log.open("wb") as log:
            # A new session keeps Ctrl-C from the service, so that `stop` can stop it in order.
            self._process = subprocess.Popen(
                [*command, "--data", str(folder / "data")],
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    async def ready(self, client: ServiceClient) -> None:
        """Return when the service answers.

        Raises:
            Failing: it ended, or does not answer in 60 s. The message has the end of its log.
        """
        deadline = time.monotonic() + START_TIMEOUT_S
        while not await client.is_ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                last = self._log.read_text(errors="replace")[-2000:]
                raise Failing(f"the service did not start; its log ends with:\n{last}")
            await asyncio.sleep(0.1)

    def stop(self) -> None:
        """Send SIGINT, wait 20 s, then send SIGKILL."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            try:
                self._process.wait(STOP_TIMEOUT_S)
            except (subprocess.TimeoutExpired, KeyboardInterrupt):
                self._process.kill()  # its children end with it
                self._process.wait()


@contextmanager
def running_service() -> Iterator[ServiceProcess]:
    """Run a service during the block; stop it and remove its data afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="rebound-demo-"))
    try:
        process = ServiceProcess(folder)
        try:
            yield process
        finally:
            process.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
