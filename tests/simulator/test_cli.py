"""The command line teaches, and refuses what it cannot read before anything starts."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from simulator.cli import app

COMMANDS = ["arena", "load", "live", "demo"]


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
        (["arena", "Lin UCB"], "no kind"),
        (["arena", "--shock", "taste-swap@2"], "taste-swap@0.5"),
        (["arena", "--shock", "earthquake@0.5"], "taste-swap"),
        (["arena", "--swap", "linucb"], "popularity,linucb@0.25"),
        (["arena", "--world", "zoo"], "petshop"),
        (["load", "--policy", "alpha=1"], "linucb"),
        (["arena", "random", "--url", "http://127.0.0.1:1"], "rebound serve"),
    ],
)
def test_mistakes_are_told_in_one_line(arguments: list[str], hint: str) -> None:
    shown = CliRunner().invoke(app, arguments)
    assert shown.exit_code == 1
    assert hint in shown.stderr
    assert "Traceback" not in shown.output
