"""`rebound explain`: asks a running service why a decision came out as it did, and shows it as a table."""

from __future__ import annotations

import urllib.parse
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from service.over_http import call

MOST_CANDIDATES = 4  # columns of the table
MOST_PARTS = 15  # lines of the table

Found = Mapping[str, Any]  # as GET /decisions/{id}?explain=true answers


def ask(url: str, key: str | None, loop: str | None, decision: str) -> Found:
    """Return a decision with its explanation.

    Raises:
        ReboundError: the service refuses.
        OSError: the service does not answer.
    """
    query = urllib.parse.urlencode({"explain": "true", **({} if loop is None else {"loop": loop})})
    path = f"{url.rstrip('/')}/decisions/{urllib.parse.quote(decision, safe='')}?{query}"
    found: Found = call("GET", path, key)
    return found


def show(console: Console, found: Found) -> None:
    """Print who chose what, and for each of the first candidates what its score is made of."""
    decision, why = found["decision"], found["explanation"]
    shown = [item["id"] for item in decision["items"]]
    user = "" if decision["user_id"] is None else f" for user {decision['user_id']}"
    _say(console, f"{decision['policy']} (version {decision['version']}) chose {', '.join(shown)}{user}")
    if why["refusal"] is not None:
        console.print(f"[red]✗[/] not explained: {escape(why['refusal']['why'])}", highlight=False, soft_wrap=True)
        return
    candidates = why["candidates"][:MOST_CANDIDATES]
    table = Table("", *(escape(one["id"]) + (" (shown)" if one["id"] in shown else "") for one in candidates))
    table.add_row("every candidate", *(_signed(one["bias"]) for one in candidates))
    for context, item in _largest(candidates):
        table.add_row(escape(_named(context, item)), *(_part(one["parts"], context, item) for one in candidates))
    table.add_row("the item itself", *(_signed(one["item"]) for one in candidates))
    table.add_row("the user himself", *(_signed(one["user"]) for one in candidates), end_section=True)
    table.add_row(f"score ({why['scale']})", *(f"{one['score']:.4g}" for one in candidates))
    if why["scale"] == "logit":
        table.add_row("reward expected", *(f"{one['expected']:.4g}" for one in candidates))
    if all(one["sd"] is not None for one in candidates):
        table.add_row("how unsure", *(f"± {one['sd']:.2g}" for one in candidates))
    table.add_row("chance of the first place", *(f"{100 * one['propensity']:.3g} %" for one in candidates))
    console.print(table)
    if any(len(one["parts"]) > MOST_PARTS for one in candidates):
        _say(console, f"smaller parts are left out; --json prints all, of {len(why['candidates'])} candidates")
    if why["width"]:
        _say(console, f"to explore, {why['width']:.3g} times “how unsure” counts in a candidate's favour")
    if not why["exact"]:
        _say(console, f"estimates, by comparison with {len(why['background'])} logged requests; ± is a standard error")
    _say(console, f"{why['n']:,} candidates, of which {len(candidates)} are listed")


def _largest(candidates: Sequence[Found]) -> list[tuple[str | None, str | None]]:
    """Return the fields and pairs that matter most to any of the candidates, the largest first."""
    sizes: dict[tuple[str | None, str | None], float] = {}
    for one in candidates:
        for part in one["parts"]:
            pair = (part["context"], part["item"])
            sizes[pair] = max(sizes.get(pair, 0.0), abs(part["value"]))
    return sorted(sizes, key=lambda pair: -sizes[pair])[:MOST_PARTS]


def _named(context: str | None, item: str | None) -> str:
    if context is None and item is None:
        return "all smaller ones"
    names = [*([] if context is None else [f"{context} (request)"]), *([] if item is None else [f"{item} (item)"])]
    return " × ".join(names)


def _part(parts: Sequence[Found], context: str | None, item: str | None) -> str:
    part = next((part for part in parts if (part["context"], part["item"]) == (context, item)), None)
    if part is None:
        return ""
    error = "" if part["error"] is None else f" ± {part['error']:.1g}"
    return _signed(part["value"]) + error


def _signed(value: float) -> str:
    return f"{value:+.4f}" if value else "0"


def _say(console: Console, sentence: str) -> None:
    console.print(escape(sentence), highlight=False, soft_wrap=True)
