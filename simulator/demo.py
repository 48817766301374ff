"""The whole story in a few minutes: a service of its own, the arena, a report, and nothing left running."""

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

from simulator.arena import HISTORY, PLAY, TRAINING, Plan, play
from simulator.client import Service
from simulator.contestants import parse_contestants
from simulator.errors import Failing
from simulator.figures import Figures, summarise, table
from simulator.progress import Stages
from simulator.report import new_folder, write

START, WRITE = "starting the service", "writing the report"
READY_S, STOP_S = 60.0, 20.0
POLICIES = ["random", "popularity", "embedding_mlp", "linucb:alpha=1.5,ridge=1", "neural_ucb", "adaptive"]
SWAP = "popularity,adaptive@0.25"

STORY = """\
A recommender trained on {history:,} past impressions meets bandits that start from nothing, over HTTP, in a pet shop
with four kinds of customers. After {half:,} of {steps:,} steps every customer's tastes change. In one more loop the
served policy is swapped under traffic. It takes about {minutes}.
"""


def arena_plan(*, quick: bool, seed: int) -> Plan:
    """What the demo plays."""
    contestants = parse_contestants(POLICIES, SWAP)
    steps, history = (3_000, 20_000) if quick else (16_000, 200_000)
    return Plan(contestants, steps=steps, seeds=(seed,), history=history)


async def run(console: Console, plan: Plan, *, out: Path, command: str) -> Figures:
    """All of it; the figures. The service is stopped and its data removed however this ends.

    Raises:
        SimulatorError: says what went wrong and what to do.
    """
    began = time.monotonic()
    started = datetime.now().astimezone()
    decisions = plan.steps * len(plan.contestants)
    times = {
        START: 3.0,
        HISTORY: plan.history / 7000,
        TRAINING: 2 + plan.history / 12_000,
        PLAY: decisions / 700,
        WRITE: 4.0,
    }
    minutes = sum(times.values()) / 60
    told = f"{minutes:.0f} minutes" if minutes >= 1.5 else "a minute"
    console.print(STORY.format(history=plan.history, half=plan.steps // 2, steps=plan.steps, minutes=told))
    with Stages(console, times) as stages:
        with serving() as child:
            async with Service(child.url) as service:
                with stages.stage(START):
                    await child.ready(service)
                runs = await play(service, plan, stages)
        with stages.stage(WRITE):
            found = summarise(plan, runs, command=command, started=started)
            files = write(new_folder(out), found)
    console.print(table(found))
    console.print(f"\nin {time.monotonic() - began:.0f} s; nothing is left running. The report:", highlight=False)
    for file in files:
        console.print(f"  {file}", highlight=False, soft_wrap=True)
    return found


class Child:
    """`rebound serve` on a free port and a folder of its own."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self._log = folder / "serve.log"
        command = [sys.executable, "-m", "service", "serve", "--port", str(port), "--workers", "2"]
        # Settings of the caller's own service, its Redis above all, are not for the demo's.
        env = {name: value for name, value in os.environ.items() if not name.startswith("REBOUND_")}
        with self._log.open("wb") as log:
            # A session of its own: Ctrl-C reaches us alone, and we stop it in order.
            self._process = subprocess.Popen(
                [*command, "--data", str(folder / "data")],
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    async def ready(self, service: Service) -> None:
        """Return when it answers.

        Raises:
            Failing: it ended, or does not answer in time; with the end of its log.
        """
        deadline = time.monotonic() + READY_S
        while not await service.is_ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                last = self._log.read_text(errors="replace")[-2000:]
                raise Failing(f"the service did not start; it said:\n{last}")
            await asyncio.sleep(0.1)

    def stop(self) -> None:
        """Ask as Ctrl-C would, wait, insist."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            try:
                self._process.wait(STOP_S)
            except (subprocess.TimeoutExpired, KeyboardInterrupt):
                self._process.kill()  # its children die with it
                self._process.wait()


@contextmanager
def serving() -> Iterator[Child]:
    """A service that is stopped, and whose data are removed, whatever happens."""
    folder = Path(tempfile.mkdtemp(prefix="rebound-demo-"))
    try:
        child = Child(folder)
        try:
            yield child
        finally:
            child.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
