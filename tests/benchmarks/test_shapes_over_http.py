"""Measures over HTTP what the default policy learns from the shapes of data that users send.

make bench ARGS=tests/benchmarks/test_shapes_over_http.py                     # 1 seed, about half an hour on 2 cores
make bench ARGS='tests/benchmarks/test_shapes_over_http.py --seeds 1-10 --world ids --world revenue'

make bench ARGS='tests/benchmarks/test_shapes_over_http.py --world changes'   # what changes in mid-run

Ten clients at once, feedback at once, `adaptive`, nothing declared beside the reference. `--arm linucb` plays another
policy. Where the data change in mid-run, what `/status` says of them is printed. Every run is also written to
runs/shapes-over-http.json.
"""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from itertools import product
from pathlib import Path

import httpx
import orjson
import pytest
from rich.console import Console

from simulator.arena import ArenaPlan, run_arena
from simulator.client import ServiceClient
from simulator.contestants import parse_contestants
from simulator.measures import gain, last_fifth, regained_after
from simulator.progress import Stages
from simulator.world.shapes import DECLARED, SHAPES
from tests.benchmarks.shapes import Job, Outcome, cells
from tests.benchmarks.test_shapes_of_data import QUICK_STEPS, chosen_seeds, chosen_worlds, of_reference, table, times
from tests.processes import Served

FILE = Path(__file__).parents[2] / "runs/shapes-over-http.json"
SEEDS = "1"
CLIENTS = 10
FORMS = {"no schema": "", "declared": DECLARED}


def test_gains_over_http(tmp_path: Path, request: pytest.FixtureRequest, quick: bool) -> None:
    worlds = chosen_worlds(request.config.getoption("--world") or ["study"])
    [policy] = request.config.getoption("--arm") or ["adaptive"]
    seeds = [1] if quick else chosen_seeds(request.config.getoption("--seeds") or SEEDS)
    steps = QUICK_STEPS if quick else request.config.getoption("--steps")
    jobs = [Job(world, form, seed, steps) for world, form, seed in product(worlds, FORMS, seeds)]
    console = Console(width=None if Console().is_terminal else 200)
    with Served(tmp_path / "data") as served:
        outcomes = asyncio.run(play_all(served.url, policy, jobs, console))
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_bytes(orjson.dumps([{**asdict(job), **asdict(found)} for job, found in outcomes.items()]))
    found = cells(outcomes)
    console.print(table(found, list(FORMS), len(seeds)))
    changing = {world: row for world, row in found.items() if SHAPES[world].changes_at}
    if changing:
        console.print(times("Decisions from the change to .9 of the gain before", "regained", changing, list(FORMS)))
    for line in of_reference(found):
        console.print(line, highlight=False)


async def play_all(url: str, policy: str, jobs: list[Job], console: Console) -> dict[Job, Outcome]:
    """Play one job after the other against one service."""
    outcomes = {}
    async with ServiceClient(url) as client, httpx.AsyncClient(base_url=url, timeout=30) as reader:
        with Stages(console) as stages:
            for job in jobs:
                told: dict[str, int] = {}
                title = f"{job.world}, {job.arm}, seed {job.seed}"
                with stages.stage(title):
                    listening = asyncio.create_task(listen(reader, told))
                    loop, outcomes[job] = await play(client, policy, job)
                    await profiled(reader, loop, SHAPES[job.world].steps if job.steps is None else job.steps)
                    listening.cancel()
                    await client.delete_loop(loop)
                if SHAPES[job.world].changes_at:
                    said = ", ".join(f"{notice} by event {at}" for notice, at in told.items())
                    stages.console.print(f"{title}: /status said {said or 'nothing'}", highlight=False)
    return outcomes


async def play(client: ServiceClient, policy: str, job: Job) -> tuple[str, Outcome]:
    """Play one run; return its loop, which is kept, and its measures. A failure of any request stops it."""
    plan = ArenaPlan(
        parse_contestants([policy], None),
        world=job.world + FORMS[job.arm],
        steps=SHAPES[job.world].steps if job.steps is None else job.steps,
        seeds=[job.seed],
        shocks=(),
        window=CLIENTS,
        keep=True,
    )
    [run] = (await run_arena(client, plan, Stages(Console(quiet=True)))).runs
    [trajectory] = run.trajectories
    shown, best, chance = (values[run.person] for values in (trajectory.expected, run.oracle, run.random))
    change = SHAPES[job.world].changes_at
    return trajectory.loop, Outcome(
        last=gain(*map(last_fifth, (shown, best, chance))),
        whole=gain(shown, best, chance),
        regained=None if change is None else regained_after(shown, best, chance, at=int(run.person[:change].sum())),
        alarms=len(trajectory.alarms),
    )


async def listen(reader: httpx.AsyncClient, told: dict[str, int]) -> None:
    """Write down, until it is cancelled, each notice of a loop, and how many of its events were profiled by then."""
    while True:
        for status in (await reader.get("/status")).json()["loops"].values():
            for notice in status["notices"]:
                told.setdefault(f"{notice['code']} of {notice['field'] or 'the loop'}", status["profiled"])
        await asyncio.sleep(0.25)


async def profiled(reader: httpx.AsyncClient, loop: str, events: int) -> None:
    """Wait until the profile of a loop holds so many events, and whoever listens has looked once more."""
    async with asyncio.timeout(60):
        while (await reader.get("/status")).json()["loops"][loop]["profiled"] < events:
            await asyncio.sleep(0.1)
        await asyncio.sleep(0.5)
