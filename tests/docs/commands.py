"""Writes docs/cli.md from the commands themselves: `python -m tests.docs.commands`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer.main

from service.cli import app as rebound
from simulator.cli import app as simulator

PAGE = Path(__file__).parents[2] / "docs/cli.md"
HEAD = """# Commands

What `--help` says, in one page. `make docs` writes it anew.
"""


def page() -> str:
    """Write the page."""
    parts = [HEAD]
    for name, app in (("rebound", rebound), ("rebound-sim", simulator)):
        parts += [f"\n## {name}\n", *(part for part in sections(name, typer.main.get_command(app)))]
    return "\n".join(parts)


def sections(name: str, command: Any) -> Iterator[str]:
    """Write a section for a command, or for each command of a group."""
    if hasattr(command, "commands"):
        for inner in sorted(command.commands):
            if not command.commands[inner].hidden:
                yield from sections(f"{name} {inner}", command.commands[inner])
        return
    yield f"### {name}\n\n{said(command.help)}\n"
    shown = [param for param in command.params if not getattr(param, "hidden", False) and param.name != "help"]
    if shown:
        yield "| option | default | meaning |\n|---|---|---|\n" + "".join(row(param) for param in shown)


def said(text: str | None) -> str:
    """Join the lines of each paragraph of a help text; leave examples in their back-ticks."""
    return "\n\n".join(" ".join(part.split()) for part in re.split(r"\n\s*\n", (text or "").replace("\b", "").strip()))


def row(param: Any) -> str:
    """Write a line of the table."""
    names = " ".join(param.opts) if param.param_type_name == "option" else param.name.upper()
    default = param.default
    shown = "" if default is None or callable(default) or default is False or default == () else f"`{default}`"
    meaning = said(getattr(param, "help", None)).replace("|", "∣")
    return f"| `{names}` | {shown} | {meaning} |\n"


if __name__ == "__main__":
    PAGE.write_text(page())
