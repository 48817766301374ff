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

from simulator.client import ServiceClient
from simulator.contestants import PolicySpec
from simulator.errors import InvalidExperiment, SimulatorError, UsageError
from simulator.progress import Stages
from simulator.shocks import SHOCKS
from simulator.world import PLACES, THERE_ARE, WORLDS, TrafficEffect
from simulator.world.shapes import SHAPES, STUDY, neighbours

if TYPE_CHECKING:
    from collections.abc import Iterator

T = TypeVar("T")

# Output to a file or a pipe need not fit a screen.
console = Console(width=None if Console().is_terminal else 140)
errors = Console(stderr=True)

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="Simulate users for Rebound: worlds with known click rates, shocks that change them, reports.\n\n"
    "`demo` starts a service of its own, `worlds` needs none. All other commands talk to a running service "
    "(`rebound serve`), over HTTP.",
)

Url = Annotated[str, typer.Option(envvar="REBOUND_SIM_URL", help="Address of the service.")]
ApiKey = Annotated[
    str | None,
    typer.Option(envvar="REBOUND_SIM_API_KEY", help="An admin's key, if the service has keys.", show_default=False),
]
Out = Annotated[Path, typer.Option(help="Folder for reports; each report gets a new folder in it.")]
ASK_KINDS = "`rebound-sim kinds` lists the kinds (GET /kinds)."
WorldName = Annotated[str, typer.Option("--world", help=THERE_ARE[0].upper() + THERE_ARE[1:] + ".")]
LOCAL = "http://127.0.0.1:8000"


@app.command()
def demo(
    quick: Annotated[bool, typer.Option("--quick", help="Take 3,000 steps only.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Determines every random number.")] = 1,
    out: Out = Path("runs"),
) -> None:
    """Start a service, compare policies through a shock and a swap, write a report, stop the service.

    Example: `rebound-sim demo --quick`
    """
    from simulator.demo import arena_plan, run_demo

    execute(run_demo(console, arena_plan(quick=quick, seed=seed), out=out, command=_command()))


@app.command()
def arena(
    policies: Annotated[
        list[str] | None,
        typer.Argument(
            help=f"Each gets a loop of its own; such as linucb:alpha=1.5. {ASK_KINDS}", show_default="those of the demo"
        ),
    ] = None,
    swap: Annotated[
        str | None,
        typer.Option(
            help="One more loop, whose policy is swapped under traffic: popularity,linucb@0.25 swaps after a quarter.",
            show_default=False,
        ),
    ] = None,
    shock: Annotated[
        list[str] | None,
        typer.Option(
            help=f"A shock and its time as a share of the run: taste-swap@0.5. May be repeated. One of: "
            f"{', '.join(dict.fromkeys(name for of_world in SHOCKS.values() for name in of_world))}; or none.",
            show_default="the first that changes the world's tastes, at 0.5",
        ),
    ] = None,
    scenario: Annotated[
        str | None,
        typer.Option(
            help="A scenario: a TOML file, a report.json to repeat, or a name (`rebound-sim worlds` lists them). Other "
            "options replace its fields.",
            show_default=False,
        ),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Recommendations for each policy, at least 100.", show_default="20000")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="The first seed.", show_default="1")] = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, max=100, help="Number of runs; each takes the next seed.", show_default="1")
    ] = None,
    history: Annotated[
        int | None, typer.Option(help="Random impressions for batch-trained policies.", show_default="200000")
    ] = None,
    window: Annotated[
        int | None, typer.Option(help="Requests in flight for each policy, up to 1000.", show_default="16")
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the loops in the service, for `rebound audit`.")] = False,
    world: Annotated[
        str | None, typer.Option(help=THERE_ARE[0].upper() + THERE_ARE[1:] + ".", show_default="petshop")
    ] = None,
    url: Url = LOCAL,
    api_key: ApiKey = None,
    out: Out = Path("runs"),
) -> None:
    """Compare policies with the same users, steps and draws; write a report.

    Examples:

    - `rebound-sim arena`
    - `rebound-sim arena adaptive linucb:alpha=1.5 --seeds 5`
    - `rebound-sim arena linucb popularity --shock bestseller-collapse@0.3 --shock catalogue-churn@0.6`
    - `rebound-sim arena linucb --swap popularity,linucb@0.25 --shock none`
    - `rebound-sim arena --scenario s5-seasonality --seeds 1`
    - `rebound-sim arena --scenario runs/20260131-120000/report.json`
    """
    from simulator.arena import run_arena
    from simulator.report import new_folder, write
    from simulator.scenario import Scenario, load
    from simulator.summary import summarise, table

    with reporting_errors():
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
            of_tastes = [
                shock for shock in SHOCKS[_world(world or "petshop")].values() if shock.traffic == TrafficEffect()
            ]
            shocks = [{"name": shock.name, "share": 0.5} for shock in of_tastes[:1]]
            defaults = {"policies": load("demo").policies, "shocks": shocks}
            chosen = Scenario.of({**defaults, **changes}, where="arena")
        else:
            chosen = load(scenario, changes)
        plan = chosen.plan(keep=keep)

    async def go() -> None:
        started = datetime.now().astimezone()
        async with ServiceClient(url, api_key=api_key) as client:
            await client.wait_ready(1)
            with Stages(console) as stages:
                result = await run_arena(client, plan, stages)
        report = summarise(result, command=_command(), started=started)
        report["scenario"] = chosen.model_dump(mode="json", exclude_none=True)
        files = write(new_folder(out), report)
        console.print(table(report))
        for file in files:
            console.print(f"  {file}", highlight=False, soft_wrap=True)
        if keep:
            loops = [trajectory.loop for run in result.runs for trajectory in run.trajectories]
            for number, loop in enumerate(loops):
                console.print(f"  {'loops kept:' if number == 0 else '           '} {loop}", highlight=False)

    execute(go())


@app.command()
def load(
    rate: Annotated[float, typer.Option(min=0.1, help="Recommendations per second (Poisson).")] = 200,
    seconds: Annotated[float, typer.Option(min=1, help="Seconds during which new requests start.")] = 20,
    feedback: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the recommendations that get feedback.")
    ] = 0.5,
    policy: Annotated[
        str, typer.Option(help=f"The policy that serves; such as linucb:alpha=1.5. {ASK_KINDS}")
    ] = "adaptive",
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds after which a request has failed.")] = 10,
    seed: Annotated[int, typer.Option(min=0)] = 1,
    url: Url = LOCAL,
    api_key: ApiKey = None,
    out: Out = Path("runs"),
) -> None:
    """Test the service under open-loop load; latency counts from the intended start, failures included.

    Example: `rebound-sim load --rate 500 --seconds 30`
    """
    import orjson

    from simulator.load import LoadPlan, run_load, table
    from simulator.report import new_folder

    with reporting_errors():
        plan = LoadPlan(PolicySpec.parse(policy), rate=rate, seconds=seconds, feedback=feedback, seed=seed)

    async def go() -> None:
        async with ServiceClient(url, api_key=api_key, timeout_s=timeout, connections=4096) as client:
            await client.wait_ready(1)
            with Stages(console) as stages:
                figures = await run_load(client, plan, stages)
        file = new_folder(out) / "load.json"
        file.write_bytes(orjson.dumps({"command": _command(), **figures}, option=orjson.OPT_INDENT_2))
        console.print(table(figures))
        console.print(f"  {file}", highlight=False, soft_wrap=True)

    execute(go())


@app.command()
def live(
    rate: Annotated[float, typer.Option(min=0.1, max=5000, help="Recommendations per second (Poisson).")] = 50,
    loop: Annotated[str, typer.Option(help="The loop; created if absent.")] = "petshop",
    policies: Annotated[
        list[str] | None,
        typer.Option(
            "--policy",
            help=f"Created if absent; the first one serves, others learn without serving. May be repeated. {ASK_KINDS}",
            show_default="adaptive, linucb:alpha=1.5",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0)] = 1,
    world: WorldName = "petshop",
    host: Annotated[str, typer.Option(help="Address of the control endpoint.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the control endpoint.")] = 8080,
    wait: Annotated[float, typer.Option(min=0, help="Seconds to wait for the service.")] = 60,
    url: Url = LOCAL,
    api_key: ApiKey = None,
) -> None:
    """Send traffic until Ctrl-C. A control endpoint fires shocks.

    Examples:

    - `rebound-sim live --rate 100`
    - `curl -X POST http://127.0.0.1:8080/shock -H 'content-type: application/json' -d '{"name": "taste-swap"}'`
    - `curl http://127.0.0.1:8080/` shows the state of the traffic
    """
    from simulator.control import serve
    from simulator.traffic import TrafficGenerator

    with reporting_errors():
        specs = [PolicySpec.parse(text) for text in policies or ["adaptive", "linucb:alpha=1.5"]]
        name = _world(world)

    async def go() -> None:
        async with ServiceClient(url, api_key=api_key, timeout_s=10) as client:
            await client.wait_ready(wait)
            generator = TrafficGenerator(client, loop=loop, world=name, rate=rate, seed=seed, policies=specs)
            console.print(
                f"● {rate:g} recommendations/s to loop {loop} at {url}; control endpoint: http://{host}:{port}/\n"
                f"  curl -X POST http://{host}:{port}/shock -H 'content-type: application/json' "
                '-d \'{"name": "taste-swap"}\'\n  Ctrl-C stops it.',
                highlight=False,
                soft_wrap=True,
            )
            await serve(generator, host=host, port=port)
        console.print(f"stopped after {generator.decisions:,} decisions, {generator.failures.total():,} failures")

    execute(go())


@app.command()
def worlds(
    seed: Annotated[int, typer.Option(min=0)] = 1,
    steps: Annotated[int, typer.Option(min=100, help="Visits that each figure averages.")] = 10_000,
) -> None:
    """List worlds and scenarios, with the click rates of the best and of a random choice. Needs no service.

    Example: `rebound-sim worlds --seed 2`
    """
    with reporting_errors():
        console.print(_worlds(seed, steps))
        console.print(_shapes())
        console.print(_scenarios())


@app.command()
def kinds(url: Url = LOCAL, api_key: ApiKey = None) -> None:
    """List the kinds of policies that the service has, with their parameters.

    Example: `rebound-sim kinds --url http://127.0.0.1:8000`
    """
    from simulator.kinds import table

    async def go() -> None:
        async with ServiceClient(url, api_key=api_key, timeout_s=10) as client:
            console.print(table(await client.kinds()))

    execute(go())


def execute(work: Coroutine[Any, Any, T]) -> T:
    """Run a command. Print a SimulatorError and exit 1; on Ctrl-C or SIGTERM cancel the work and exit 130."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    with reporting_errors():
        try:
            return asyncio.run(work)
        except KeyboardInterrupt:
            errors.print("stopped")
            raise typer.Exit(130) from None
        finally:
            signal.signal(signal.SIGTERM, before)


@contextmanager
def reporting_errors() -> Iterator[None]:
    """Print a SimulatorError of the block and exit 1."""
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
        raise UsageError(f"cannot read the shock {text!r}; write it as taste-swap@0.5, a share of the run")
    return {"name": name, "share": found}


def _world(name: str) -> str:
    if name not in WORLDS:
        raise UsageError(f"there is no world {name!r}; {THERE_ARE}")
    return name


def _command() -> str:
    return shlex.join(["rebound-sim", *sys.argv[1:]])


def _worlds(seed: int, steps: int) -> Table:
    """Average the click rates of the best and of a random choice over the `steps` from each shock on."""
    shown = Table("world", "shock", title="Worlds", title_justify="left", title_style="bold")
    shown.add_column("best possible", justify="right")
    shown.add_column("chance", justify="right")
    shown.caption = f"Expected clicks per recommendation, means over {steps:,} visits from the shock on; seed {seed}."
    for name, of_world in PLACES.items():
        try:
            calm = of_world(seed)
        except InvalidExperiment as error:
            shown.add_row(name, str(error), "", "", end_section=True)
            continue
        shocks = [shock for shock in SHOCKS[name].values() if shock.traffic == TrafficEffect()]
        for world, shock in [(calm, None), *((calm.with_shock(shock, 0), shock) for shock in shocks)]:
            moments = (world.at(step) for step in range(steps))
            best, chance = np.mean([(moment.oracle, moment.random) for moment in moments], axis=0)
            last = shock is shocks[-1]
            label = "" if shock is None else shock.name
            shown.add_row("" if shock else name, label, f"{best:.4f}", f"{chance:.4f}", end_section=last)
    return shown


def _shapes() -> Table:
    """List the worlds in the shapes of data that users send."""
    shown = Table(title="Shapes of data", title_justify="left", title_style="bold")
    shown.add_column("world", no_wrap=True)
    shown.add_column("about")
    shown.add_column("neighbours")
    shown.caption = "With .declared behind its name a world is its declared reference."
    for name in STUDY:
        shown.add_row(name, SHAPES[name].about, ", ".join(neighbours(name)))
    return shown


def _scenarios() -> Table:
    """List the scenarios for `rebound-sim arena --scenario`."""
    from simulator.scenario import bundled, load

    shown = Table("scenario", "about", "steps", "seeds", title="Scenarios", title_justify="left", title_style="bold")
    for name in bundled():
        found = load(name)
        shown.add_row(name, found.about, f"{found.steps:,}", f"{len(found.seeds)}")
    return shown
