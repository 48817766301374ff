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
import numpy as np
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
LOOPS = 4  # at once, where each has one client
FORMS = {"no schema": "", "declared": DECLARED}


def test_gains_over_http(tmp_path: Path, request: pytest.FixtureRequest, quick: bool) -> None:
    worlds = chosen_worlds(request.config.getoption("--world") or ["study"])
    [policy] = request.config.getoption("--arm") or ["adaptive"]
    seeds = [1] if quick else chosen_seeds(request.config.getoption("--seeds") or SEEDS)
    steps = QUICK_STEPS if quick else request.config.getoption("--steps")
    jobs = [Job(world, form, seed, steps) for world, form, seed in product(worlds, FORMS, seeds)]
    console = Console(width=None if Console().is_terminal else 200)
    with Served(tmp_path / "data") as served:
        clients = request.config.getoption("--clients")
        outcomes, rates = asyncio.run(play_all(served.url, policy, jobs, clients, console))
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_bytes(orjson.dumps([{**asdict(job), **asdict(found)} for job, found in outcomes.items()]))
    found = cells(outcomes)
    console.print(table(found, list(FORMS), len(seeds)))
    low, middle, high = np.quantile(rates, (0.0, 0.5, 1.0))
    console.print(f"Decisions a second in a loop: {middle:.0f} ({low:.0f} to {high:.0f})")
    changing = {world: row for world, row in found.items() if SHAPES[world].changes_at}
    if changing:
        console.print(times("Decisions from the change to .9 of the gain before", "regained", changing, list(FORMS)))
    for line in of_reference(found):
        console.print(line, highlight=False)


async def play_all(
    url: str, policy: str, jobs: list[Job], clients: int, console: Console
) -> tuple[dict[Job, Outcome], list[float]]:
    """Play the jobs against one service, as many at once as there are places; return decisions a second, too."""
    outcomes: dict[Job, Outcome] = {}
    rates = []
    told: dict[str, dict[str, int]] = {}  # loop -> notice -> events of the profile when it was first told
    places = asyncio.Semaphore(LOOPS if clients == 1 else 1)
    async with ServiceClient(url) as client, httpx.AsyncClient(base_url=url, timeout=30) as reader:
        with Stages(console) as stages, stages.stage("playing", len(jobs)) as advance:

            async def play_one(job: Job) -> None:
                async with places:
                    loop, outcomes[job], rate = await play(client, policy, job, clients)
                    rates.append(rate)
                    await profiled(reader, loop, steps_of(job))
                    await client.delete_loop(loop)
                advance(1)
                if SHAPES[job.world].changes_at:
                    said = ", ".join(f"{notice} by event {at}" for notice, at in told.get(loop, {}).items())
                    title = f"{job.world}, {job.arm}, seed {job.seed}"
                    stages.console.print(f"{title}: /status said {said or 'nothing'}", highlight=False)

            listening = asyncio.create_task(listen(reader, told))
            async with asyncio.TaskGroup() as group:
                for job in jobs:
                    group.create_task(play_one(job))
            listening.cancel()
    return {job: outcomes[job] for job in jobs}, rates


def steps_of(job: Job) -> int:
    return SHAPES[job.world].steps if job.steps is None else job.steps


async def play(client: ServiceClient, policy: str, job: Job, clients: int) -> tuple[str, Outcome, float]:
    """Play one run; return its loop, which is kept, its measures, and decisions a second.

    A failure of any request stops it.
    """
    plan = ArenaPlan(
        parse_contestants([policy], None),
        world=job.world + FORMS[job.arm],
        steps=steps_of(job),
        seeds=[job.seed],
        shocks=(),
        window=clients,
        keep=True,
    )
    [run] = (await run_arena(client, plan, Stages(Console(quiet=True)))).runs
    [trajectory] = run.trajectories
    shown, best, chance = (values[run.person] for values in (trajectory.expected, run.oracle, run.random))
    change = SHAPES[job.world].changes_at
    outcome = Outcome(
        last=gain(*map(last_fifth, (shown, best, chance))),
        whole=gain(shown, best, chance),
        regained=None if change is None else regained_after(shown, best, chance, at=int(run.person[:change].sum())),
        alarms=len(trajectory.alarms),
    )
    return trajectory.loop, outcome, steps_of(job) / run.seconds


async def listen(reader: httpx.AsyncClient, told: dict[str, dict[str, int]]) -> None:
    """Write down, until it is cancelled, each notice of a loop, and how many of its events were profiled by then."""
    while True:
        for loop, status in (await reader.get("/status")).json()["loops"].items():
            for notice in status["notices"]:
                about = f"{notice['code']} of {notice['field'] or 'the loop'}"
                told.setdefault(loop, {}).setdefault(about, status["profiled"])
        await asyncio.sleep(0.25)


async def profiled(reader: httpx.AsyncClient, loop: str, events: int) -> None:
    """Wait until the profile of a loop holds so many events, and whoever listens has looked once more."""
    async with asyncio.timeout(60):
        while (await reader.get("/status")).json()["loops"][loop]["profiled"] < events:
            await asyncio.sleep(0.1)
        await asyncio.sleep(0.5)
