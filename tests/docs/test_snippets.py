"""Every command and snippet in the README and in docs/ works.

A block of `sh` is taken line by line. `curl` runs against a real service. What starts other things or takes long
(`make`, `docker compose`, `rebound`, `rebound-sim`) is parsed in full: targets, files, services, options and their
values must exist. Short ones run, the arena at a small size. A block of `console` shows what somebody saw: its
commands are parsed, not run.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
import typer.main
import yaml

from service.cli import app as rebound
from service.represent.schema import FeatureSchema
from simulator.cli import app as simulator
from tests.docs import commands as written
from tests.processes import Served

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^ *```(?P<language>\w+)\n(?P<text>.*?)^ *```$", re.DOTALL | re.MULTILINE)
INLINE = re.compile(r"`((?:make|rebound|rebound-sim|docker compose) [^`]+)`")
TARGETS = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
APPS = {"rebound": rebound, "rebound-sim": simulator}
RUN = {("rebound", "settings"), ("rebound", "audit"), ("rebound-sim", "worlds"), ("rebound-sim", "kinds")}
SMALL = {("rebound-sim", "arena"): ["--steps", "100", "--seeds", "1", "--history", "1000"]}
PLACEHOLDERS = {"NAME": "default", "PATH": "."}


def blocks(page: Path, *languages: str) -> list[str]:
    return [found["text"] for found in BLOCK.finditer(page.read_text()) if found["language"] in languages]


def commands(text: str) -> Iterator[str]:
    """The commands of a block, each on one line, without prompts, comments and what was printed."""
    shown = "$ " in text
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        line = line.strip()
        if shown and not line.startswith("$ "):
            continue
        if line and not line.startswith("#"):
            yield line.removeprefix("$ ")


def joined(text: str) -> list[str]:
    """Commands whose quotes go over several lines are put together."""
    found: list[str] = []
    for line in commands(text):
        if found and found[-1].count("'") % 2:
            found[-1] += " " + line
        else:
            found.append(line)
    return found


def every_command(*languages: str) -> list[Any]:
    return [
        pytest.param(page, command, id=f"{page.relative_to(ROOT)}: {command[:60]}")
        for page in PAGES
        for command in [line for text in blocks(page, *languages) for line in joined(text)]
    ]


INLINE_COMMANDS = [
    pytest.param(page, command, id=f"{page.relative_to(ROOT)}: {command[:60]}")
    for page in PAGES
    if page != written.PAGE  # a help names commands without what they need
    for command in dict.fromkeys(INLINE.findall(page.read_text()))
]


@pytest.mark.parametrize(("page", "command"), [*every_command("sh", "console"), *INLINE_COMMANDS])
def test_commands_can_be_parsed(page: Path, command: str) -> None:
    words = [PLACEHOLDERS.get(word, word) for word in shlex.split(command, comments=True)]
    while "=" in words[0]:  # a variable before the command
        words = words[1:]
    if words[0] in APPS:
        parse(words[0], words[1:])
    elif words[0] == "make":
        check_make(words[1:])
    elif words[:2] == ["docker", "compose"]:
        check_compose(words[2:])
    elif words[0] == "python":
        assert words[1] == "-m"
        assert (ROOT / (words[2].replace(".", "/") + ".py")).exists()
    else:
        assert words[0] in ("curl", ".venv/bin/pip"), f"how is {command!r} tested?"


def parse(name: str, words: list[str]) -> None:
    """Options and their values, by the command itself."""
    command: Any = typer.main.get_command(APPS[name])
    group = command.make_context(name, list(words))
    sub_name, sub, rest = command.resolve_command(group, [*group._protected_args, *group.args])
    sub.make_context(sub_name, rest, parent=group)


def check_make(words: list[str]) -> None:
    targets = [word for word in words if "=" not in word]
    assert set(targets) <= TARGETS, targets
    for word in words:
        if word.startswith("ARGS="):
            check_arguments(targets, shlex.split(word.removeprefix("ARGS=")))


def check_arguments(targets: list[str], arguments: list[str]) -> None:
    """Files of tests must exist; the tables' own options must parse."""
    if targets[0] in ("bench-policies", "bench-search"):
        table = typer.Typer(add_completion=False)
        table.command()(import_module("tests.benchmarks." + targets[0].removeprefix("bench-")).main)
        command: Any = typer.main.get_command(table)
        command.make_context(targets[0], list(arguments))
        return
    for argument in arguments:
        if argument.startswith("tests/"):
            assert (ROOT / argument.split("::")[0]).exists(), argument


def check_compose(words: list[str]) -> None:
    services, profiles = COMPOSE["services"], {p for s in COMPOSE["services"].values() for p in s.get("profiles", [])}
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word == "--profile":
            assert following in profiles, following
        if word == "--scale":
            assert following.split("=")[0] in services, following


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with Served(tmp_path_factory.mktemp("docs") / "data") as served:
        yield served


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_commands_run(page: Path, served: Served, tmp_path: Path) -> None:
    """In the order of the page, on one service for all pages."""
    for number, scenario in enumerate(blocks(page, "toml")):
        tomllib.loads(scenario)
        if not number:
            (tmp_path / "mine.toml").write_text(scenario)
    played: set[tuple[str, ...]] = set()  # options of an arena
    for command in [line for text in blocks(page, "sh") for line in joined(text)]:
        words = [PLACEHOLDERS.get(word, word) for word in shlex.split(command, comments=True)]
        options = tuple(word for word in words if word.startswith("--"))
        if tuple(words[:2]) in SMALL and options in played:
            continue  # it is parsed, and one of its sort was played
        played.add(options)
        if page.name == "CONTRIBUTING.md" and "mine" in command:
            continue  # tests/policies runs this policy; this service does not have it
        line = runnable(words, served)
        if line is None:
            continue
        done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=120, env=environment())
        assert done.returncode == 0, (command, done.stdout[-2000:], done.stderr[-2000:])


def environment() -> dict[str, str]:
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "NO_COLOR": "1"}


def runnable(words: list[str], served: Served) -> list[str] | None:
    """The command as it can be run here, at a small size; None for one that is parsed only."""
    here = (words[0], words[1] if len(words) > 1 else "")
    if words[0] == "curl":
        if any(":8080" in word for word in words):
            return None
        return [
            "curl",
            "-sS",
            "--fail-with-body",
            *(w.replace("localhost:8000", f"127.0.0.1:{served.port}") for w in words[1:]),
        ]
    if here in SMALL:
        if any(word.startswith("runs/") for word in words):
            return None
        policies = [] if len(words) > 4 and not words[4].startswith("-") else ["popularity"]  # none of those that train
        return [*words, *policies, *SMALL[here], "--url", served.url]
    if here in RUN:
        more = {
            ("rebound", "audit"): ["--data", str(served.data)],
            ("rebound-sim", "kinds"): ["--url", served.url],
            ("rebound-sim", "worlds"): ["--steps", "100"],
        }
        return [*words, *more.get(here, [])]
    return None


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_json_and_python_can_be_read(page: Path) -> None:
    for text in blocks(page, "json"):
        orjson.loads(text)
    for text in blocks(page, "python"):
        compile(text, str(page), "exec")


def test_the_schema_of_the_docs_is_a_schema() -> None:
    [schema] = blocks(ROOT / "docs/api.md", "json")
    FeatureSchema.model_validate_json(schema)


def test_the_readmes_policy_is_the_one_that_is_tested() -> None:
    [policy] = blocks(ROOT / "README.md", "python")
    assert policy == (ROOT / "tests/policies/example_package/rebound_greedy.py").read_text()


def test_the_page_of_commands_says_what_the_commands_say() -> None:
    assert written.PAGE.read_text() == written.page(), "run: make docs"


@pytest.mark.slow
def test_the_shop_of_the_tutorial_learns(served: Served) -> None:
    tutorial = ROOT / "docs/tutorial.md"
    [catalogue] = [shlex.split(line) for line in joined("\n".join(blocks(tutorial, "sh"))) if "/items " in line]
    with httpx.Client(base_url=served.url, timeout=30) as client:
        client.delete("/loops/default").raise_for_status()  # other pages left items in it
        client.put("/loops/default", json={}).raise_for_status()
        client.post("/items", json=orjson.loads(catalogue[-1])).raise_for_status()
        client.post("/policies", json={"kind": "adaptive"}).raise_for_status()
        client.post("/policies/adaptive/activate").raise_for_status()
    [shop] = blocks(tutorial, "python")
    env = {**environment(), "SHOP_URL": served.url, "SHOP_VISITS": "1000"}
    done = subprocess.run([sys.executable, "-c", shop], capture_output=True, text=True, timeout=120, env=env)
    bought = [float(share) for share in re.findall(r": ([\d.]+) bought", done.stdout)]
    assert len(bought) == 10, done.stderr[-2000:]
    learned, back = (sum(bought[at : at + 2]) / 2 for at in (3, 8))
    assert learned > 0.5 > bought[5], "it learns, and the season changes"
    assert back > bought[5] + 0.1, "it comes back"


def test_links_lead_somewhere() -> None:
    for page in [*PAGES, ROOT / "CHANGELOG.md", ROOT / "SECURITY.md"]:
        for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), (page.name, target)
