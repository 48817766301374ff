"""The command line shows examples, and refuses mistakes before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from simulator.cli import app
from tests.processes import free_port

COMMANDS = ["arena", "load", "live", "demo", "worlds", "kinds"]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_examples(command: str) -> None:
    shown = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "120"})
    assert shown.exit_code == 0
    assert "Example" in shown.output
    assert f"rebound-sim {command}" in shown.output


def test_all_commands_are_listed() -> None:
    shown = CliRunner().invoke(app, ["--help"])
    assert all(command in shown.output for command in COMMANDS)


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["arena", "Lin UCB"], "rebound-sim kinds"),
        (["arena", "--shock", "taste-swap@2"], "taste-swap@0.5"),
        (["arena", "--shock", "earthquake@0.5"], "taste-swap"),
        (["arena", "--swap", "linucb"], "popularity,linucb@0.25"),
        (["arena", "--world", "zoo"], "petshop"),
        (["load", "--policy", "alpha=1"], "rebound-sim kinds"),
        (["load", "--policy", "linucb:alpha"], "linucb:alpha=1.5"),
        (["arena", "random", "--url", "http://127.0.0.1:1"], "rebound serve"),
        (["kinds", "--url", "http://127.0.0.1:1"], "rebound serve"),
        (["live", "--url", "http://127.0.0.1:1", "--wait", "0"], "rebound serve"),
    ],
)
def test_mistakes_are_told_in_one_line(arguments: list[str], hint: str) -> None:
    shown = CliRunner().invoke(app, arguments)
    assert shown.exit_code == 1
    assert hint in shown.stderr
    assert "Traceback" not in shown.output


@pytest.mark.parametrize("command", ["arena", "load", "live"])
def test_help_on_policies_asks_the_service(command: str) -> None:
    shown = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"})
    assert "GET /kinds" in shown.output


def test_kinds_are_listed(service: str) -> None:
    shown = CliRunner().invoke(app, ["kinds", "--url", service])
    assert shown.exit_code == 0, shown.output
    for text in ("linucb", "alpha=", "batch-trained", "yes"):
        assert text in shown.output


@pytest.mark.parametrize(
    "command",
    [["arena", "greedy"], ["load", "--policy", "greedy"], ["live", "--policy", "greedy", "--port", str(free_port())]],
)
def test_an_unknown_kind_is_told_with_those_of_the_service(service: str, command: list[str]) -> None:
    shown = CliRunner().invoke(app, [*command, "--url", service])
    assert shown.exit_code == 1
    assert "'greedy'; it has: " in shown.stderr
    assert "linucb" in shown.stderr


def test_every_port_that_compose_publishes_can_be_changed() -> None:
    lines = (Path(__file__).parents[2] / "docker-compose.yml").read_text().splitlines()
    published = [line for line in lines if line.strip().startswith("ports:")]
    assert any("${CONTROL_PORT:-8080}:8080" in line for line in published)
    assert [line for line in published if "${" not in line] == []
