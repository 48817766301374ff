"""The command `rebound`."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypeVar

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape

from service import logs
from service.settings import Settings, unknown_variables, without_password

if TYPE_CHECKING:
    from redis.asyncio import Redis as Connection

    from service.report.content import Report

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,  # they hold keys
    rich_markup_mode="markdown",
    help="""Online recommendation that keeps learning while the market shifts.

`rebound serve` runs everything on this machine. `rebound api` and `rebound learn` are its two kinds of process, for
containers, against one Redis (`REBOUND_REDIS_URL`); start as many of each as you like.

Every setting is also a variable `REBOUND_*`: `rebound settings` lists them.""",
)
console = Console()
errors = Console(stderr=True)

Host = Annotated[str | None, typer.Option(help="Address to listen on; another than loopback needs REBOUND_ADMIN_KEYS.")]
Port = Annotated[int | None, typer.Option(help="Port to listen on; 0: any free one.")]
TlsCert = Annotated[Path | None, typer.Option(help="PEM file of certificate and chain: the API speaks TLS.")]
TlsKey = Annotated[Path | None, typer.Option(help="PEM file of the certificate's private key.")]
Pulse = Annotated[int | None, typer.Option(hidden=True)]  # descriptor of a pipe to the supervisor
Reports = Annotated[
    list[Path] | None,
    typer.Option("--report", help="Write a report for people: a file .html or .png; may be repeated."),
]
Redis = Annotated[str | None, typer.Option("--redis", help="Redis URL; default: REBOUND_REDIS_URL.")]


def fail(*messages: str, code: int) -> NoReturn:
    """Say what is wrong, a line each, and exit."""
    for message in messages:
        errors.print(f"[red]✗[/] {escape(message)}", highlight=False, soft_wrap=True)
    raise typer.Exit(code)


def read_settings(**flags: Any) -> Settings:
    """Flags over environment over defaults; exits with a readable list of what is wrong."""
    try:
        wrong = unknown_variables()
        settings = Settings(**{name: value for name, value in flags.items() if value is not None})
    except ValidationError as error:
        wrong += [_readable(found) for found in error.errors()]
    if wrong:
        fail(*wrong, code=2)
    logs.configure(settings)
    return settings


def _readable(found: Any) -> str:
    name = "REBOUND_" + "_".join(map(str, found["loc"])).upper() + ": " if found["loc"] else ""
    return name + str(found["msg"]).removeprefix("Value error, ")


def need_redis(settings: Settings) -> str:
    """The URL of Redis; exits where none is given."""
    if settings.redis_url is None:
        fail("set REBOUND_REDIS_URL (redis://host:6379/0), or run `rebound serve`, which brings its own", code=2)
    return settings.redis_url


def _check_files(settings: Settings) -> None:
    """Exit where the file of keys, or the certificate, cannot be used, before anything is started."""
    from service.api.keys import InvalidKeys, KeyRing
    from service.run.tls import InvalidCertificate, server_context

    try:
        KeyRing.of(settings)
        server_context(settings)
    except (InvalidKeys, InvalidCertificate) as error:
        fail(str(error), code=2)


@app.command()
def serve(
    host: Host = None,
    port: Port = None,
    workers: Annotated[int | None, typer.Option(help="API worker processes.")] = None,
    data: Annotated[Path | None, typer.Option(help="Folder for the state; survives restarts and kill -9.")] = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
) -> None:
    """Run everything on this machine: Redis (unless REBOUND_REDIS_URL names one), API workers, learner.

    Ctrl-C stops it cleanly; the state in the data folder is there again at the next start.

    Example: `rebound serve --port 8000 --workers 2 --data .rebound`
    """
    from service.run.embedded import EmbeddedRedisError
    from service.run.supervisor import PortTaken
    from service.run.supervisor import serve as run

    settings = read_settings(host=host, port=port, workers=workers, data=data, tls_cert=tls_cert, tls_key=tls_key)
    _check_files(settings)

    def announce(url: str) -> None:
        state = without_password(settings.redis_url) if settings.redis_url else str(settings.data.resolve())
        console.print(
            f"[green]●[/] Rebound is ready at [bold]{escape(url)}[/]   "
            f"(documentation: {escape(url)}/docs, state: {escape(state)})",
            soft_wrap=True,
            highlight=False,
        )
        console.print(
            f"  curl {escape(url)}/recommend -H 'content-type: application/json' "
            """-d '{"user_id": "u1", "candidates": \\["a", "b", "c"]}'""",
            soft_wrap=True,
            highlight=False,
        )
        console.print("  Ctrl-C stops it.")

    try:
        run(settings, announce=announce)
    except (PortTaken, EmbeddedRedisError) as error:
        fail(str(error), code=1)


@app.command()
def api(
    host: Host = None,
    port: Port = None,
    redis: Redis = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    fd: Annotated[int | None, typer.Option(hidden=True)] = None,
    pulse: Pulse = None,
) -> None:
    """Run one API worker against Redis.

    Example: `REBOUND_REDIS_URL=redis://localhost:6379/0 rebound api --port 8000`
    """
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")  # before NumPy is imported: small products, many workers
    settings = read_settings(host=host, port=port, redis_url=redis, tls_cert=tls_cert, tls_key=tls_key)
    need_redis(settings)
    _check_files(settings)
    from service.api.app import create_app
    from service.run.worker import run_worker

    run_worker(settings, create_app(settings), fd=fd, pulse=pulse)


@app.command()
def learn(
    redis: Redis = None,
    check: Annotated[
        bool, typer.Option("--check", help="Only say whether a learner is at work (exit code 0 or 1).")
    ] = False,
    pulse: Pulse = None,
) -> None:
    """Run a learner against Redis. Several may run: each policy is learned by one, and another takes over if it dies.

    Example: `REBOUND_REDIS_URL=redis://localhost:6379/0 rebound learn`
    """
    settings = read_settings(redis_url=redis)
    url = need_redis(settings)
    if check:
        from service.run.health import learner_alive

        try:
            alive = learner_alive(url)
        except OSError as error:
            fail(f"Redis does not answer at {without_password(url)}: {error}", code=1)
        console.print("a learner is at work" if alive else "no learner has been heard of in the last 10 s")
        raise typer.Exit(0 if alive else 1)
    from service.learn import learner
    from service.run.pulse import beating

    work = beating(learner.run(settings), pulse)
    if sys.platform == "win32":
        asyncio.run(work)
    else:
        import uvloop

        uvloop.run(work)


@app.command()
def settings() -> None:
    """List every setting: its variable, its value here, and what it is for."""
    from rich.table import Table

    current = read_settings()
    table = Table("variable", "value", "meaning", title="Settings", title_justify="left")
    for name, field in Settings.model_fields.items():
        value = getattr(current, name)
        shown = without_password(value) if name == "redis_url" and value else str(value)
        table.add_row(f"REBOUND_{name.upper()}", escape(shown), field.description or "")
    console.print(table)


@app.command()
def key(
    name: Annotated[str, typer.Argument(help="Stands in the log of changes beside what was done with the key.")],
    role: Annotated[str, typer.Option(help="client or admin.")] = "client",
    loop: Annotated[list[str] | None, typer.Option(help="Only for this loop; may be repeated.")] = None,
) -> None:
    """Make a new random key, and print the entry for REBOUND_KEYS_FILE, which holds its digest. The key is shown once.

    To replace a key, add the new digest to the list, restart the workers, give the new key to the clients, and take the
    old digest off the list.

    Example: `rebound key shop-web --role client --loop shop`
    """
    import secrets
    from hashlib import sha256

    from service.api.keys import ENTRIES

    made = secrets.token_urlsafe(32)
    entry: dict[str, Any] = {"role": role, "sha256": [sha256(made.encode()).hexdigest()]}
    if loop:
        entry["loops"] = loop
    try:
        ENTRIES.validate_python({name: entry})
    except ValidationError as error:
        fail(*(f"{'.'.join(map(str, found['loc']))}: {found['msg']}" for found in error.errors()), code=2)
    errors.print(f"The key, which is shown only now: {made}", highlight=False, soft_wrap=True)
    lines = [f'["{name}"]', *(f"{field} = {_toml(value)}" for field, value in entry.items())]
    sys.stdout.write("\n".join(lines) + "\n")  # the entry alone: it may be redirected into the file


def _toml(value: str | list[str]) -> str:
    """Write a text, or a list of texts, that were checked to need no escapes."""
    return f'"{value}"' if isinstance(value, str) else f"[{', '.join(map(_toml, value))}]"


Url = Annotated[
    str | None,
    typer.Option(help="A running service, such as http://127.0.0.1:8000; its key: the first of REBOUND_ADMIN_KEYS."),
]
Data = Annotated[Path, typer.Option(help="Data folder of `rebound serve`, running or not.")]


@app.command()
def doctor(
    loop: Annotated[str | None, typer.Option(help="One loop only.")] = None,
    url: Url = None,
    redis: Redis = None,
    data: Data = Path(".rebound"),
    fields: Annotated[bool, typer.Option(help="Show what was seen of each field, too.")] = True,
) -> None:
    """Say in plain sentences what is wrong, with the service and with the data. Exit code 1: it needs a person.

    Example: `rebound doctor --url http://127.0.0.1:8000`, or `rebound doctor --data .rebound`
    """
    from service import doctor as doctors
    from service.admin.doctor import examine

    found = doctors.look(_source(url, redis, data), loop)
    findings = examine(found)
    doctors.show(console, found, findings, fields=fields)
    if any(finding.level == "bad" for finding in findings):
        raise typer.Exit(1)


schema_app = typer.Typer(no_args_is_help=True, help="Schemas: what the rows of a loop are made of.")
app.add_typer(schema_app, name="schema")


@schema_app.callback()
def schema() -> None:
    """Schemas: what the rows of a loop are made of."""


@schema_app.command()
def propose(
    loop: Annotated[str, typer.Option(help="Name of the loop.")] = "default",
    url: Url = None,
    redis: Redis = None,
    data: Data = Path(".rebound"),
) -> None:
    """Print the schema that a loop's data suggest, as JSON that `PUT /loops/{loop}` takes. Edit it first if you like.

    Example: `rebound schema propose --loop default > schema.json`
    """
    import orjson

    from service import doctor as doctors

    found = doctors.look(_source(url, redis, data), loop)
    profile = found.profiles.get(loop)
    if profile is None or not profile.events:
        fail(f"loop {loop!r} has no profile yet: a learner makes it from the first events on", code=1)
    sys.stdout.write(orjson.dumps({"schema": profile.proposal}, option=orjson.OPT_INDENT_2).decode() + "\n")


def _source(url: str | None, redis: str | None, data: Path) -> Any:
    """What to look into: a service's URL before a Redis before a data folder."""
    from service import doctor as doctors

    return doctors.Source(url=url, key=_first_key(), redis=read_settings(redis_url=redis).redis_url, data=data)


@app.command()
def backup(
    file: Annotated[Path, typer.Argument(help="File to write; it appears whole or not at all.")],
    loop: Annotated[list[str] | None, typer.Option(help="Only this loop; may be repeated.")] = None,
    redis: Redis = None,
    data: Data = Path(".rebound"),
) -> None:
    """Write loops, with all that they decided and learned, into one file. The service may go on meanwhile.

    The file shows one moment. It holds what users did, so only you may read it.

    Example: `rebound backup shop.backup --loop shop --data .rebound`
    """
    from service import backup as backups

    with _told(), backups.redis_of(read_settings(redis_url=redis).redis_url, data) as url:
        copied = backups.backup(url, file, loop, console)
        console.print(backups.table(copied))
        console.print(f"[green]✓[/] {escape(str(file))}, {file.stat().st_size / 1e6:,.1f} MB", highlight=False)


@app.command()
def restore(
    file: Annotated[Path, typer.Argument(help="A file that `rebound backup` wrote.")],
    loop: Annotated[str | None, typer.Option(help="Only this loop of the backup.")] = None,
    into: Annotated[str | None, typer.Option(help="Another name for that loop.")] = None,
    redis: Redis = None,
    data: Data = Path(".rebound"),
) -> None:
    """Make the loops of a backup again, in a service that may be running. A loop that is there is never overwritten.

    Deadlines of decisions move by the age of the backup, as nobody could report meanwhile.

    Example: `rebound restore shop.backup --loop shop --into shop-of-monday`
    """
    from service import backup as backups

    with _told(), backups.redis_of(read_settings(redis_url=redis).redis_url, data) as url:
        console.print(backups.table(backups.restore(url, file, loop, into, console)))
        console.print("[green]✓[/] restored")


@app.command("export")
def export_log(
    path: Annotated[Path, typer.Argument(help="A new folder, for Parquet; or a new file that ends in .dsjson.")],
    loop: Annotated[str, typer.Option(help="Name of the loop.")] = "default",
    redis: Redis = None,
    data: Data = Path(".rebound"),
) -> None:
    """Write a loop's log for other tools: Parquet for DuckDB, Polars and Spark, or DSJSON for Vowpal Wabbit.

    A folder gets the tables `events`, `decisions` and `activity`, by day, and `policies`. The service may go on
    meanwhile. It appears whole or not at all, and only you may read it, for it holds what users did. `rebound backup`
    is what restores a loop.

    Parquet needs an extra: `pip install 'rebound[parquet]'`.

    Examples: `rebound export shop-log --loop shop`, `rebound export shop.dsjson --loop shop`
    """
    from service import backup as backups
    from service import transfer

    with _told(), backups.redis_of(read_settings(redis_url=redis).redis_url, data) as url:
        done = transfer.export_log(url, loop, path, errors)
    left_out = "".join(f"; left out: {count:,} {why}" for why, count in done.left_out.items())
    what = "with all candidates" if path.suffix == ".dsjson" else "decisions"
    activity = f", {done.activity:,} activities" if done.activity else ""
    console.print(
        f"[green]✓[/] {escape(str(path))}: {done.events:,} events, {done.decisions:,} {what}{activity}{left_out}",
        highlight=False,
        soft_wrap=True,
    )


@app.command("import")
def import_log(
    path: Annotated[Path, typer.Argument(help="A folder or file of Parquet, or a file .dsjson, .npz or .csv.")],
    loop: Annotated[str, typer.Option(help="Name of the loop.")] = "default",
    redis: Redis = None,
    data: Data = Path(".rebound"),
) -> None:
    """Append the events of a file to a loop's log: every policy of the loop learns from them.

    It takes what `rebound export` writes, DSJSON of other loggers, and the layout of the Open Bandit Pipeline: arrays
    (`.npz`) or a table (`.csv`) of action, reward, pscore and features. The file is checked as a whole first: one with
    a fault changes nothing. Cut off, it may be run again: what is there already changes nothing.

    Examples: `rebound import shop-log --loop shop-2`, `rebound import women.csv --loop open-bandit`
    """
    from service import backup as backups
    from service import transfer

    with _told(), backups.redis_of(read_settings(redis_url=redis).redis_url, data) as url:
        done = transfer.import_log(url, loop, path, errors)
    known = done.events - done.new
    console.print(
        f"[green]✓[/] {done.new:,} events imported" + (f"; {known:,} were there before" if known else ""),
        highlight=False,
    )


items_app = typer.Typer(no_args_is_help=True)
app.add_typer(items_app, name="items")


@items_app.callback()
def items() -> None:
    """Items: a loop's catalogue, from a file and into a file."""


Served = Annotated[str, typer.Option("--url", help="A running service; its key: the first of REBOUND_ADMIN_KEYS.")]


@items_app.command("import")
def import_items(
    file: Annotated[Path, typer.Argument(help="JSON lines; or Parquet, if its name ends in .parquet.")],
    loop: Annotated[str, typer.Option(help="Name of the loop.")] = "default",
    url: Served = "http://127.0.0.1:8000",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only check the file; no service is needed.")] = False,
) -> None:
    """Put the items of a file into a loop's catalogue, in batches of 1 000. Items that are there are replaced.

    A line of JSON is what `POST /items` takes: `{"id": "sku-9", "features": {"category": "toy", "price": 4.5}}`. A
    table of Parquet has a column `id`, and a column for each field, or one, `features`, with a JSON object as text;
    it needs an extra: `pip install 'rebound[parquet]'`.

    The file is checked as a whole first: one with a fault changes nothing, and row and field are named. Cut off, it
    may be run again. Items that the file lacks stay; `DELETE /items/{id}` removes one.

    Examples: `rebound items import products.parquet --loop shop`, `rebound items import products.jsonl --dry-run`
    """
    from service import transfer

    with _told():
        if dry_run:
            count = transfer.check_items(file, errors)
            console.print(f"[green]✓[/] {count:,} items, each as it should be; nothing was changed", highlight=False)
            return
        count, missing = transfer.import_items(transfer.Service(url, _first_key(), loop), file, errors)
    console.print(f"[green]✓[/] {count:,} items imported", highlight=False)
    if missing:
        console.print(f"[yellow]•[/] not served yet by {escape(', '.join(sorted(missing)))}", highlight=False)


@items_app.command("export")
def export_items(
    file: Annotated[Path, typer.Argument(help="A new file: JSON lines; or Parquet, if its name ends in .parquet.")],
    loop: Annotated[str, typer.Option(help="Name of the loop.")] = "default",
    url: Served = "http://127.0.0.1:8000",
) -> None:
    """Write a loop's catalogue into a file that `rebound items import` takes, sorted by id.

    It appears whole or not at all. It is read a page of 1 000 items at a time: what changes meanwhile may be missing
    or be there.

    Example: `rebound items export products.jsonl --loop shop`
    """
    from service import transfer

    with _told():
        count = transfer.export_items(transfer.Service(url, _first_key(), loop), file, errors)
    console.print(f"[green]✓[/] {escape(str(file))}: {count:,} items", highlight=False, soft_wrap=True)


def _first_key() -> str | None:
    """The key for a URL. It is a variable, never an option: other users of the machine see a process's options."""
    keys = read_settings().admin_keys
    return keys[0].get_secret_value() if keys else None


@contextmanager
def _told() -> Iterator[None]:
    """Say in a line what went wrong, and exit with 1."""
    from service.errors import ReboundError
    from service.run.embedded import EmbeddedRedisError

    try:
        yield
    except ReboundError as error:
        fail(error.detail, code=1)
    except (EmbeddedRedisError, OSError) as error:
        fail(str(error), code=1)


letters_app = typer.Typer(no_args_is_help=True)
app.add_typer(letters_app, name="dead-letters")


@letters_app.callback()
def dead_letters() -> None:
    """Dead letters: events that a policy could not learn."""


Policy = Annotated[str | None, typer.Option(help="One policy only.")]


@letters_app.command("list")
def list_letters(
    loop: Annotated[str, typer.Option(help="Name of the loop.")] = "default",
    policy: Policy = None,
    redis: Redis = None,
    data: Data = Path(".rebound"),
) -> None:
    """List the events that policies could not learn, and why.

    Example: `rebound dead-letters list --loop shop --data .rebound`
    """
    from rich.table import Table

    from service.admin.dead_letters import dead_letters as listed

    table = Table("policy", "position", "why")
    for found in _on_redis(redis, data, lambda connection: listed(connection, loop, policy)):
        table.add_row(escape(found.policy), found.position, escape(found.why))
    console.print(table if table.rows else "[green]✓[/] no dead letters")


@letters_app.command("retry")
def retry_letters(
    loop: Annotated[str, typer.Option(help="Name of the loop.")] = "default",
    policy: Policy = None,
    position: Annotated[list[str] | None, typer.Option(help="Only this one; may be repeated.")] = None,
    redis: Redis = None,
    data: Data = Path(".rebound"),
) -> None:
    """Have policies learn their dead letters once more, now that what was wrong is mended.

    They are learned at the end of the log. What fails again is listed again.

    Example: `rebound dead-letters retry --loop shop --policy linucb`
    """
    from service.admin.dead_letters import retry

    retried = _on_redis(redis, data, lambda connection: retry(connection, loop, policy, position))
    console.print(f"[green]✓[/] {retried:,} to be learned once more")


users_app = typer.Typer(no_args_is_help=True)
app.add_typer(users_app, name="users")


@users_app.callback()
def users() -> None:
    """Users: what is kept of one, and his erasure."""


UserId = Annotated[str, typer.Argument(help="The user's id, as in requests.")]


@users_app.command("export")
def export_user(
    user: UserId,
    loop: Annotated[str, typer.Option(help="Name of the loop.")] = "default",
    redis: Redis = None,
    data: Data = Path(".rebound"),
) -> None:
    """Print all that is kept of a user, a line of JSON each: his state, activity, edges, decisions, events of the log.

    Example: `rebound users export u17 --loop shop > u17.ndjson`
    """
    import orjson

    from service.admin.users import all_of_user, lines_of

    async def write(connection: Connection) -> None:
        async for page in all_of_user(connection, loop, user):
            for line in lines_of(page):
                sys.stdout.write(orjson.dumps(line).decode() + "\n")

    _on_redis(redis, data, write)


@users_app.command("erase")
def erase_user(
    user: UserId,
    loop: Annotated[str, typer.Option(help="Name of the loop.")] = "default",
    redis: Redis = None,
    data: Data = Path(".rebound"),
) -> None:
    """Erase a user from a loop: what is kept of him, and what policies learned from it. A learner does it.

    `rebound users erasures` says how far it is.

    Example: `rebound users erase u17 --loop shop`
    """
    from service.admin.users import erase_user as ask

    made = _on_redis(redis, data, lambda connection: ask(connection, loop, user, by="rebound users erase"))
    console.print(f"[green]✓[/] erasure {made.id} is queued", highlight=False)


@users_app.command("erasures")
def list_erasures(
    loop: Annotated[str, typer.Option(help="Name of the loop.")] = "default",
    redis: Redis = None,
    data: Data = Path(".rebound"),
) -> None:
    """List the erasures of a loop, newest first: how far each is, what was deleted, and what remains.

    Example: `rebound users erasures --loop shop`
    """
    from rich.table import Table

    from service.admin.users import list_erasures as listed

    table = Table("erasure", "step", "decisions", "activity", "edges", "events", "waits for", "remains")
    for one in _on_redis(redis, data, lambda connection: listed(connection, loop)):
        counts = (f"{one.decisions:,}", f"{one.activity:,}", f"{one.edges:,}", f"{one.events:,}")
        table.add_row(one.id, one.step, *counts, escape(", ".join(one.waits_for)), escape("; ".join(one.remains)))
    console.print(table if table.rows else "no erasures")


T = TypeVar("T")


def _on_redis(redis: str | None, data: Path, work: Callable[[Connection], Awaitable[T]]) -> T:
    """Do something with the Redis that is named, or that of a data folder; errors in a line, with exit code 1."""
    from service import backup as backups
    from service.store.connection import connect

    async def do(url: str) -> T:
        async with connect(url, name="cli", timeout_s=30) as connection:
            return await work(connection)

    with _told(), backups.redis_of(read_settings(redis_url=redis).redis_url, data) as url:
        return asyncio.run(do(url))


@app.command()
def audit(
    loop: Annotated[str, typer.Option(help="Name of the loop.")] = "default",
    redis: Redis = None,
    data: Annotated[Path, typer.Option(help="Data folder of a running `rebound serve`.")] = Path(".rebound"),
    decisions: Annotated[int, typer.Option(help="Newest decisions to make again.", min=1)] = 1000,
    confidence: Annotated[float, typer.Option(help="Of the propensities' interval.", min=0.5, max=0.999999)] = 0.99,
) -> None:
    """Check the promises on real traffic: propensities, decisions bit for bit, states of users and of policies.

    Run it while the traffic rests: a policy that is learning moves on between two looks.

    Example: `rebound audit --loop default --data .rebound`
    """
    from service.run.embedded import EmbeddedRedis

    settings = read_settings(redis_url=redis)
    url = settings.redis_url or EmbeddedRedis(data).url
    console.print(f"auditing loop {escape(loop)} in {escape(without_password(url))}", highlight=False, soft_wrap=True)
    if not asyncio.run(_audit(url, loop, decisions, confidence)):
        raise typer.Exit(1)


async def _audit(url: str, loop: str, most: int, confidence: float) -> bool:
    from service.admin import audit as audits
    from service.errors import ReboundError
    from service.store.connection import connect

    connection = connect(url, name="audit", timeout_s=30)
    try:
        with console.status("propensities: the mean of 1 / (n p) over the log"):
            found = await audits.audit_propensities(connection, loop, confidence=confidence)
        for policy, result in found.items():
            line = (
                f"propensities of {policy}: {result.mean:.4f} ± {result.half_width:.4f} over {result.decisions} events"
            )
            _verdict(result.passed, line)
        with console.status("decisions: making them again"):
            again = await audits.audit_decisions(connection, loop, most=most)
        line = f"decisions made again: {again.same} the same bit for bit, {len(again.different)} different"
        _verdict(not again.different, line + (f", {again.gone} past checking" if again.gone else ""))
        with console.status("states of users: folding their activity again"):
            states = await audits.audit_states(connection, loop, most=most)
        if states.same + states.gone or states.different:
            checked = states.same + len(states.different)
            share = states.same / checked if checked else 1.0
            line = f"states folded again from the log of activity: {states.same} the same, "
            line += f"{len(states.different)} different (share {share:.6g})"
            _verdict(not states.different, line + (f", {states.gone} past checking" if states.gone else ""))
        with console.status("neighbourhoods: comparing their fields"):
            graph = await audits.audit_graph(connection, loop, most=most)
        if graph.same + graph.gone or graph.different:
            line = f"fields of neighbourhoods: {graph.same} the same, {len(graph.different)} different"
            _verdict(not graph.different, line + (f", {graph.gone} past checking" if graph.gone else ""))
        with console.status("learning: replaying the log"):
            learned = await audits.audit_learning(connection, loop)
        for policy, same in learned.items():
            _verdict(same, f"state of {policy}: {'the same' if same else 'not the same'} after a replay of the log")
    except ReboundError as error:
        errors.print(f"[red]✗[/] {escape(error.detail)}", highlight=False)
        return False
    finally:
        await connection.aclose()
    passed = all(r.passed for r in found.values()) and not again.different
    return passed and not states.different and not graph.different and all(learned.values())


@app.command(hidden=True)
def embed(loop: str, loop_id: str) -> None:
    """Train the embeddings of a loop, and publish them. The learner starts this."""
    url = need_redis(read_settings())
    os.nice(5)
    if not asyncio.run(_embed(url, loop, loop_id)):
        raise typer.Exit(3)  # `NOTHING` of service/learn/embedder.py


async def _embed(url: str, loop: str, loop_id: str) -> bool:
    from service.learn.embedder import train_embedding
    from service.store.connection import connect
    from service.store.keys import Keys

    async with connect(url, name="embed", timeout_s=30) as redis:
        return await train_embedding(redis, Keys(loop, loop_id))


@app.command(hidden=True)
def judge(loop: str, loop_id: str, evaluation: str, token: str) -> None:
    """Do an evaluation that was asked for over HTTP. The learner starts this."""
    url = need_redis(read_settings())
    os.nice(5)
    asyncio.run(_judge(url, loop, loop_id, evaluation, token))


async def _judge(url: str, loop: str, loop_id: str, evaluation: str, token: str) -> None:
    from service.admin.judge import run_evaluation
    from service.store.connection import connect
    from service.store.keys import Keys

    async with connect(url, name="judge", timeout_s=30) as redis:
        await run_evaluation(redis, Keys(loop, loop_id), evaluation, token)


def _verdict(good: bool, line: str) -> None:
    console.print(f"[{'green]✓' if good else 'red]✗'}[/] {line}", highlight=False)


@app.command()
def evaluate(
    loop: Annotated[str, typer.Option(help="Name of the loop.")] = "default",
    policy: Annotated[
        list[str] | None, typer.Option(help="A policy, or NAME@VERSION: as it is, not learning; may be repeated.")
    ] = None,
    kind: Annotated[
        list[str] | None, typer.Option(help="A kind of policy that would have learned along; may be repeated.")
    ] = None,
    params: Annotated[
        list[str] | None, typer.Option(help="JSON: parameters of the first --kind, the next of the second, and so on.")
    ] = None,
    estimator: Annotated[str, typer.Option(help="ips, clipped-ips, snips, dm, dr or switch-dr.")] = "ips",
    interval: Annotated[
        str, typer.Option(help="bootstrap: for one look; anytime: for as many as you like; bernstein: for small logs.")
    ] = "bootstrap",
    confidence: Annotated[
        float, typer.Option(help="That all differences lie in their intervals.", min=0.5, max=0.9999)
    ] = 0.95,
    segment: Annotated[
        str | None, typer.Option(help="Judge by a field of the context, too, such as device.os.")
    ] = None,
    decisions: Annotated[int, typer.Option(help="Newest decisions to judge.", min=1)] = 100_000,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with all figures.")] = False,
    report: Reports = None,
    url: Url = None,
    redis: Redis = None,
    data: Annotated[Path, typer.Option(help="Data folder of a running `rebound serve`.")] = Path(".rebound"),
) -> None:
    """Say whether another policy would have been better, from the log: with its uncertainty, or not at all and why.

    Each logged decision is weighed by how much more often the other policy would have chosen the same item. A kind
    (`--kind`) begins with nothing and learns along: it is judged before each decision, by what it knew then. A policy
    that exists (`--policy`) is judged by decisions after what it has learned from; name an older version for more.

    Only decisions whose candidates are still in the ledger can be judged. Set the loop's `ledger_time` to what you
    want to look back on, such as 30 days.

    With `--url` the service does it (`POST /evaluations`), and Ctrl-C cancels it.

    Exit code 1: every answer was refused.

    Examples:

    `rebound evaluate --kind linucb --params '{"alpha": 0.5}'`

    `rebound evaluate --loop home-page --policy linucb@120 --interval anytime --json`
    """
    import orjson

    from service import evaluation as evaluations
    from service.evaluate.comparison import INTERVALS
    from service.evaluate.estimators import ESTIMATORS
    from service.run.embedded import EmbeddedRedis

    _check_reports(report)
    _one_of("--estimator", estimator, list(ESTIMATORS))
    _one_of("--interval", interval, INTERVALS)
    if interval != "bootstrap" and estimator != "ips":
        fail(f"--interval {interval} goes with --estimator ips only", code=2)
    targets = [_existing(name) for name in policy or []]
    given = [_params(text) for text in params or []]
    if len(given) > len(kind or []):
        fail("there are more --params than --kind", code=2)
    for number, name in enumerate(kind or []):
        targets.append({"kind": name, "params": given[number] if number < len(given) else {}})
    if not targets:
        fail("name what to judge: --policy NAME, or --kind KIND", code=2)
    request = {
        "targets": targets,
        "estimator": estimator,
        "interval": interval,
        "confidence": confidence,
        "segment": segment,
        "decisions": decisions,
    }
    with _told():
        if url is not None:
            found = evaluations.evaluate_there(url, _source(url, redis, data).key, loop, request, errors)
        else:
            where = read_settings(redis_url=redis).redis_url or EmbeddedRedis(data).url
            found = evaluations.evaluate_here(where, loop, request, errors)
    if as_json:
        sys.stdout.write(orjson.dumps(found, option=orjson.OPT_INDENT_2).decode() + "\n")
    else:
        evaluations.show(console, loop, found)
    _report(report, lambda made: evaluations.report_of(loop, found, request, made))
    if all(answer["refusal"] is not None for answer in found["answers"]):
        raise typer.Exit(1)


def _check_reports(paths: list[Path] | None) -> None:
    from service.report.write import ENDINGS

    for path in paths or []:
        if path.suffix not in ENDINGS:
            fail(f"--report {path}: expected a name that ends in {' or '.join(ENDINGS)}", code=2)


def _report(paths: list[Path] | None, tell: Callable[[str], Report]) -> None:
    """Write a report to each of these files.

    Args:
        tell: makes it, from when and by which command it was made.
    """
    if not paths:
        return
    import shlex
    from datetime import datetime

    from service.report.write import write

    words = [without_password(word) if "://" in word else word for word in sys.argv[1:]]
    made = f"Made on {datetime.now().astimezone():%Y-%m-%d %H:%M %Z} by: rebound {shlex.join(words)}"
    for path in paths:
        with _told():
            write(tell(made), path)
        errors.print(f"wrote {escape(str(path))}", highlight=False)


def _one_of(option: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        fail(f"{option}: there is no {value!r}; there are {', '.join(known)}", code=2)


def _existing(said: str) -> dict[str, Any]:
    name, at, version = said.partition("@")
    if at and not version.isdigit():
        fail(f"--policy {said}: expected NAME or NAME@VERSION, with a whole number", code=2)
    return {"policy": name, "version": int(version) if at else None}


def _params(text: str) -> dict[str, Any]:
    import orjson

    try:
        found = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        fail(f"--params {text}: {error}", code=2)
    if not isinstance(found, dict):
        fail(f"--params {text}: expected a JSON object", code=2)
    return found


@app.command()
def experiment(
    name: Annotated[str | None, typer.Argument(help="Of the experiment; left out: all.")] = None,
    loop: Annotated[str, typer.Option(help="Name of the loop.")] = "default",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with all figures.")] = False,
    report: Reports = None,
    redis: Redis = None,
    data: Data = Path(".rebound"),
) -> None:
    """Say what an experiment shows so far: which policy is better, or how many days it takes to know.

    Look as often as you like: the intervals hold at every look at once. `PUT /experiments/NAME` makes an experiment.

    Exit code 1: do not trust it, or a guard rail is broken.

    Example: `rebound experiment prices --loop shop --report prices.html`
    """
    import orjson

    from service import experiment as experiments

    _check_reports(report)
    if report and name is None:
        fail("--report: a report is of one experiment: name it", code=2)
    found = _on_redis(redis, data, lambda connection: experiments.look(connection, loop, name))
    if as_json:
        said = [one.model_dump(mode="json") for one in found]
        sys.stdout.write(orjson.dumps(said, option=orjson.OPT_INDENT_2).decode() + "\n")
    else:
        experiments.show(console, found)
    _report(report, lambda made: experiments.report_of(found[0], made))
    if any(one.code in ("mismatch", "broken") for one in found):
        raise typer.Exit(1)


@app.command()
def explain(
    decision: Annotated[str, typer.Argument(help="Id of a decision, as `POST /recommend` answered it.")],
    loop: Annotated[str | None, typer.Option(help="Its loop, if the id does not say it; default: `default`.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with all figures.")] = False,
    url: Served = "http://127.0.0.1:8000",
) -> None:
    """Say why a decision came out as it did: what each field, and each pair of fields, did for each candidate.

    Exit code 1: it cannot be told any more, for want of the version that made it.

    Example: `rebound explain 01JBX8E9Z3T4V5W6X7Y8Z9A0B1.0.shop`
    """
    import orjson

    from service import explain as explanations

    with _told():
        found = explanations.ask(url, _first_key(), loop, decision)
    if as_json:
        sys.stdout.write(orjson.dumps(found["explanation"], option=orjson.OPT_INDENT_2).decode() + "\n")
    else:
        explanations.show(console, found)
    if found["explanation"]["refusal"] is not None:
        raise typer.Exit(1)
