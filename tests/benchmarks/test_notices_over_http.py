"""Plants each fault of the data contract over HTTP, and looks at what `/status` says of it.

make bench ARGS=tests/benchmarks/test_notices_over_http.py       # about 15 minutes on 2 cores

A run is 2 000 decisions with their rewards in a loop of its own, four at once. `/status` is asked after each 200, when
the profile has counted them. Clean runs of the same length go first.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from rich.console import Console
from rich.table import Table

from simulator.progress import Stages
from tests.benchmarks.test_shapes_of_data import chosen_seeds
from tests.processes import Served
from tests.represent.streams import Change, events
from tests.represent.test_notices import PLANTED, N

EVERY = 200  # decisions from one look at `/status` to the next
AT_ONCE = 4
QUICK = 2  # faults that a quick run plants
SEEDS = "1-3"  # of the clean runs

Told = dict[tuple[str, str | None], int]  # (code, path) -> decisions after which it was first told
Fault = tuple[str, Change, int, str | None]


def test_each_notice_is_told_over_http(tmp_path: Path, request: pytest.FixtureRequest, quick: bool) -> None:
    seeds = [1] if quick else chosen_seeds(request.config.getoption("--seeds") or SEEDS)
    faults = PLANTED[-QUICK:] if quick else PLANTED
    console = Console(width=None if Console().is_terminal else 200)
    with Served(tmp_path / "data") as served:
        clean, planted = asyncio.run(play_all(served.url, seeds, faults, console))
    table = Table("fault", "planted from", "told after", "told beside it", title="Notices over HTTP")
    for seed, told in zip(seeds, clean, strict=True):
        table.add_row(f"none (seed {seed})", "", "", listed(told))
    for (code, _, start, path), told in zip(faults, planted, strict=True):
        beside = {one: at for one, at in told.items() if one != (code, path)}
        table.add_row(named(code, path), str(start), str(told.get((code, path), "never")), listed(beside))
    console.print(table)
    assert not any(clean)
    assert all((code, path) in told for (code, _, _, path), told in zip(faults, planted, strict=True))


def named(code: str, path: str | None) -> str:
    return code if path is None else f"{code} of {path}"


def listed(told: Told) -> str:
    return ", ".join(f"{named(*one)} after {at}" for one, at in told.items()) or "nothing"


async def play_all(
    url: str, seeds: Sequence[int], faults: Sequence[Fault], console: Console
) -> tuple[list[Told], list[Told]]:
    """Play the clean runs and one run for each fault; return what was told in each."""
    runs = [events(N, seed=seed) for seed in seeds]
    runs += [events(N, change=change, start=start) for _, change, start, _ in faults]
    told = []
    async with httpx.AsyncClient(base_url=url, timeout=30) as client:
        with Stages(console) as stages, stages.stage("playing", len(runs)) as advance:
            for number, run in enumerate(runs):
                told.append(await play(client, f"run-{number}", run))
                advance(1)
    return told[: len(seeds)], told[len(seeds) :]


async def play(client: httpx.AsyncClient, loop: str, run: Iterable[dict[str, Any]]) -> Told:
    """Send one run; return what was told, and when."""
    (await client.put(f"/loops/{loop}", json={})).raise_for_status()
    told: Told = {}
    whole = list(run)
    for sent in range(AT_ONCE, len(whole) + 1, AT_ONCE):
        await asyncio.gather(*(send(client, loop, event) for event in whole[sent - AT_ONCE : sent]))
        if sent % EVERY == 0:
            for notice in await notices(client, loop, sent):
                _, _, path = (notice["field"] or "").partition("/")
                told.setdefault((notice["code"], path or None), sent)
    (await client.delete(f"/loops/{loop}")).raise_for_status()
    return told


async def send(client: httpx.AsyncClient, loop: str, event: dict[str, Any]) -> None:
    """Ask for a decision with one candidate, the event's item, and report the event's reward."""
    candidate = {"id": event["item"], "features": event["features"]}
    body = {"loop": loop, "user_id": event["user"], "context": event["context"], "candidates": [candidate]}
    decision = await client.post("/recommend", json=body)
    decision.raise_for_status()
    report = {"decision_id": decision.json()["decision_id"], "reward": event["reward"]}
    (await client.post("/feedback", json=report)).raise_for_status()


async def notices(client: httpx.AsyncClient, loop: str, sent: int) -> list[dict[str, Any]]:
    """Return what `/status` says of a loop's data when its profile holds all that was sent."""
    async with asyncio.timeout(60):
        while True:
            status = (await client.get("/status")).raise_for_status().json()["loops"][loop]
            if status["profiled"] >= sent:
                found: list[dict[str, Any]] = status["notices"]
                return found
            await asyncio.sleep(0.05)
