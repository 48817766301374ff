"""The command `rebound-sim`."""

from __future__ import annotations

import asyncio
import shlex
import signal
import sys
from collections.abc import Coroutine
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from simulator.client import Service
from simulator.contestants import PolicySpec
from simulator.errors import SimulatorError, UnknownName, Unplayable
from simulator.progress import Stages
from simulator.shocks import SHOCKS
from simulator.world import WORLDS, Traffic

if TYPE_CHECKING:
    from collections.abc import Iterator

T = TypeVar("T")

# What is not read on a screen (a file, a pipe) need not fit one.
console = Console(width=None if Console().is_terminal else 140)
errors = Console(stderr=True)

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="Simulated users for Rebound: worlds whose truth is known, shocks that change it, reports on who copes.\n\n"
    "`rebound-sim demo` needs nothing else. The others talk to a running service (`rebound serve`), over HTTP alone.",
)

Url = Annotated[str, typer.Option(envvar="REBOUND_SIM_URL", help="Address of the service.")]
ApiKey = Annotated[
    str | None,
    typer.Option(envvar="REBOUND_SIM_API_KEY", help="An admin's key, if the service has keys.", show_default=False),
]
Out = Annotated[Path, typer.Option(help="Folder for reports; each gets a folder of its own in it.")]
WorldName = Annotated[str, typer.Option("--world", help=f"One of: {', '.join(WORLDS)}.")]
LOCAL = "http://127.0.0.1:8000"


@app.command()
def demo(
    quick: Annotated[bool, typer.Option("--quick", help="A short one, for a first look and for CI.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Everything random follows from it.")] = 1,
    out: Out = Path("runs"),
) -> None:
    """The whole story, with a service of its own: learn, be shocked, recover, swap a policy live, report.

    Example: `rebound-sim demo --quick`
    """
    from simulator import demo as story

    run(story.run(console, story.arena_plan(quick=quick, seed=seed), out=out, command=_command()))


@app.command()
def arena(
    policies: Annotated[
        list[str] | None,
        typer.Argument(help="Each in a loop of its own, such as linucb:alpha=1.5.", show_default=False),
    ] = None,
    swap: Annotated[
        str | None,
        typer.Option(
            help="One more loop, whose policy is changed under traffic: popularity,linucb@0.25 at a quarter.",
            show_default=False,
        ),
    ] = None,
    shock: Annotated[
        list[str] | None,
        typer.Option(
            help=f"What happens when, as a share of the run: taste-swap@0.5. May be repeated. There are: "
            f"{', '.join(dict.fromkeys(name for of_world in SHOCKS.values() for name in of_world))}; or none.",
            show_default="the world's first, at 0.5",
        ),
    ] = None,
    scenario: Annotated[
        str | None,
        typer.Option(
            help="All of this from a TOML file, from a report.json to play it again, or by name (`rebound-sim worlds` "
            "lists them). Other options, where given, replace its fields.",
            show_default=False,
        ),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Recommendations for each policy, at least 100.", show_default="20000")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="The first seed.", show_default="1")] = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, max=100, help="How many runs, each with the next seed.", show_default="1")
    ] = None,
    history: Annotated[
        int | None, typer.Option(help="Random impressions that embedding_mlp trains on.", show_default="200000")
    ] = None,
    window: Annotated[
        int | None, typer.Option(help="Requests in flight for each policy, up to 1000.", show_default="16")
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the loops in the service, for `rebound audit`.")] = False,
    world: Annotated[str | None, typer.Option(help=f"One of: {', '.join(WORLDS)}.", show_default="petshop")] = None,
    url: Url = LOCAL,
    api_key: ApiKey = None,
    out: Out = Path("runs"),
) -> None:
    """Policies head to head: same users, same steps, same luck.

    Without names: those of the demo.

    Examples:

    - `rebound-sim arena`
    - `rebound-sim arena adaptive linucb:alpha=1.5 --seeds 5`
    - `rebound-sim arena linucb popularity --shock bestseller-collapse@0.3 --shock catalogue-churn@0.6`
    - `rebound-sim arena linucb --swap popularity,linucb@0.25 --shock none`
    - `rebound-sim arena --scenario s5-seasonality --seeds 1`
    - `rebound-sim arena --scenario runs/20260131-120000/report.json`
    """
    from simulator.arena import play
    from simulator.demo import POLICIES
    from simulator.figures import summarise, table
    from simulator.report import new_folder, write
    from simulator.scenario import Scenario, load

    with told():
        given = {
            "world": world,
            "steps": steps,
            "seeds": None if seed is None and seeds is None else _seeds(seed, seeds),
            "policies": policies or None,
            "swap": swap,
            "shocks": None if shock is None else [_shock(text) for text in shock if text != "none"],
            "window": window,
            "history": history,
        }
        changes = {name: value for name, value in given.items() if value is not None}
        if scenario is None:
            first = next(iter(SHOCKS[_world(world or "petshop")]))
            story = {"policies": POLICIES, "shocks": [{"name": first, "share": 0.5}]}
            chosen = Scenario.of({**story, **changes}, where="arena")
        else:
            chosen = load(scenario, changes)
        plan = chosen.plan(keep=keep)

    async def go() -> None:
        started = datetime.now().astimezone()
        async with Service(url, api_key=api_key) as service:
            await service.wait_ready(1)
            with Stages(console) as stages:
                runs = await play(service, plan, stages)
        found = summarise(plan, runs, command=_command(), started=started)
        found["scenario"] = chosen.model_dump(mode="json", exclude_none=True)
        files = write(new_folder(out), found)
        console.print(table(found))
        for file in files:
            console.print(f"  {file}", highlight=False, soft_wrap=True)
        if keep:
            for number, track in enumerate(track for run in runs for track in run.tracks):
                console.print(f"  {'loops kept:' if number == 0 else '           '} {track.loop}", highlight=False)

    run(go())


@app.command()
def load(
    rate: Annotated[float, typer.Option(min=0.1, help="Recommendations per second (Poisson).")] = 200,
    seconds: Annotated[float, typer.Option(min=1, help="How long new requests start.")] = 20,
    feedback: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the recommendations that get feedback.")
    ] = 0.5,
    policy: Annotated[str, typer.Option(help="What serves, such as linucb:alpha=1.5.")] = "adaptive",
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds after which a request has failed.")] = 10,
    seed: Annotated[int, typer.Option(min=0)] = 1,
    url: Url = LOCAL,
    api_key: ApiKey = None,
    out: Out = Path("runs"),
) -> None:
    """Open-loop load: latency counted from the intended start, failures as samples.

    Example: `rebound-sim load --rate 500 --seconds 30`
    """
    import orjson

    from simulator import load as loads
    from simulator.report import new_folder

    with told():
        plan = loads.LoadPlan(rate=rate, seconds=seconds, feedback=feedback, seed=seed, policy=PolicySpec.parse(policy))

    async def go() -> None:
        async with Service(url, api_key=api_key, timeout_s=timeout, connections=4096) as service:
            await service.wait_ready(1)
            with Stages(console) as stages:
                figures = await loads.run(service, plan, stages)
        file = new_folder(out) / "load.json"
        file.write_bytes(orjson.dumps({"command": _command(), **figures}, option=orjson.OPT_INDENT_2))
        console.print(loads.table(figures))
        console.print(f"  {file}", highlight=False, soft_wrap=True)

    run(go())


@app.command()
def live(
    rate: Annotated[float, typer.Option(min=0.1, max=5000, help="Recommendations per second (Poisson).")] = 50,
    loop: Annotated[str, typer.Option(help="The loop to send to; made if absent.")] = "petshop",
    policies: Annotated[
        list[str] | None,
        typer.Option(
            "--policy",
            help="Made if absent; the first serves, the others learn in its shadow. May be repeated.",
            show_default="adaptive, linucb:alpha=1.5",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0)] = 1,
    world: WorldName = "petshop",
    host: Annotated[str, typer.Option(help="Address of the control endpoint.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the control endpoint.")] = 8080,
    wait: Annotated[float, typer.Option(min=0, help="Seconds to wait for the service at the start.")] = 60,
    url: Url = LOCAL,
    api_key: ApiKey = None,
) -> None:
    """Endless traffic, until Ctrl-C. A shock is one request away.

    Examples:

    - `rebound-sim live --rate 100`
    - `curl -X POST http://127.0.0.1:8080/shock -H 'content-type: application/json' -d '{"name": "taste-swap"}'`
    - `curl http://127.0.0.1:8080/` tells how it goes
    """
    from simulator import live as lives

    with told():
        specs = [PolicySpec.parse(text) for text in policies or ["adaptive", "linucb:alpha=1.5"]]
        name = _world(world)

    async def go() -> None:
        async with Service(url, api_key=api_key, timeout_s=10) as service:
            await service.wait_ready(wait)
            traffic = lives.Live(service, loop=loop, world=name, rate=rate, seed=seed, policies=specs)
            console.print(
                f"● {rate:g} recommendations/s to loop {loop} at {url}; control endpoint: http://{host}:{port}/docs\n"
                f"  curl -X POST http://{host}:{port}/shock -H 'content-type: application/json' "
                '-d \'{"name": "taste-swap"}\'\n  Ctrl-C stops it.',
                highlight=False,
                soft_wrap=True,
            )
            await lives.serve(traffic, host=host, port=port)
        console.print(f"stopped after {traffic.decisions:,} decisions, {traffic.failures.total():,} failures")

    run(go())


@app.command()
def worlds(
    seed: Annotated[int, typer.Option(min=0)] = 1,
    steps: Annotated[int, typer.Option(min=100, help="Visits that each figure is the mean of.")] = 10_000,
) -> None:
    """What there is to play, and what the best and a random choice earn there. Needs no service.

    Example: `rebound-sim worlds --seed 2`
    """
    with told():
        console.print(_worlds(seed, steps))
        console.print(_scenarios())


def run(work: Coroutine[Any, Any, T]) -> T:
    """Do it; errors of ours become one line and exit code 1, Ctrl-C and SIGTERM end it in order."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with told():
        try:
            return asyncio.run(work)
        except KeyboardInterrupt:
            errors.print("stopped")
            raise typer.Exit(130) from None


@contextmanager
def told() -> Iterator[None]:
    """Errors of ours, told to a person."""
    try:
        yield
    except SimulatorError as error:
        errors.print(f"[red]✗[/] {error}", highlight=False, soft_wrap=True)
        raise typer.Exit(1) from error


def _seeds(first: int | None, count: int | None) -> list[int]:
    start = 1 if first is None else first
    return list(range(start, start + (count or 1)))


def _shock(text: str) -> dict[str, Any]:
    name, at, share = text.partition("@")
    try:
        found = float(share) if at else 0.5
    except ValueError:
        found = -1.0
    if not 0 < found < 1:
        raise UnknownName(f"cannot read the shock {text!r}; write it as taste-swap@0.5, a share of the run")
    return {"name": name, "share": found}


def _world(name: str) -> str:
    if name not in WORLDS:
        raise UnknownName(f"there is no world {name!r}; there are: {', '.join(WORLDS)}")
    return name


def _command() -> str:
    return shlex.join(["rebound-sim", *sys.argv[1:]])


def _worlds(seed: int, steps: int) -> Table:
    """Expected clicks per recommendation of the best choice and of a random one, over the `steps` from a shock on."""
    shown = Table("world", "shock", title="Worlds", title_justify="left", title_style="bold")
    shown.add_column("best possible", justify="right")
    shown.add_column("chance", justify="right")
    shown.caption = f"Expected clicks per recommendation, means over {steps:,} visits from the shock on; seed {seed}."
    for name, of_world in WORLDS.items():
        try:
            calm = of_world(seed)
        except Unplayable as error:
            shown.add_row(name, str(error), "", "", end_section=True)
            continue
        shocks = [shock for shock in SHOCKS[name].values() if shock.traffic == Traffic()]
        for world, shock in [(calm, None), *((calm.struck(shock, 0), shock) for shock in shocks)]:
            moments = (world.at(step) for step in range(steps))
            best, chance = np.mean([(moment.oracle, moment.random) for moment in moments], axis=0)
            last = shock is shocks[-1]
            label = "" if shock is None else shock.name
            shown.add_row("" if shock else name, label, f"{best:.4f}", f"{chance:.4f}", end_section=last)
    return shown


def _scenarios() -> Table:
    """The bundled ones, for `rebound-sim arena --scenario`."""
    from simulator.scenario import bundled, load

    shown = Table("scenario", "about", "steps", "seeds", title="Scenarios", title_justify="left", title_style="bold")
    for name in bundled():
        found = load(name)
        shown.add_row(name, found.about, f"{found.steps:,}", f"{len(found.seeds)}")
    return shown
