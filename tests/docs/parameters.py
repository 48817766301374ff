"""Writes the tables of parameters in docs/policies.md from the kinds themselves: `python -m tests.docs.parameters`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import orjson

from service.policies import KINDS, Params, PolicyClass

PAGE = Path(__file__).parents[2] / "docs/policies.md"
EVERY_KIND = "every kind"  # the name of the table of the parameters that all kinds share
REGION = re.compile(r"(<!-- parameters: (?P<name>[^>]+) -->\n)(?P<table>.*?)(<!-- end -->)", re.DOTALL)


def own_kinds() -> dict[str, PolicyClass]:
    """Find the kinds of this project, without those of installed packages."""
    return {kind: policy for kind, policy in KINDS.items() if policy.__module__.startswith("service.policies.")}


def table(name: str) -> str:
    """Write the table of a kind's parameters: its own, and shared ones with a default of its own.

    Raises:
        KeyError: no kind has this name.
    """
    shared = Params.model_json_schema()["properties"]
    properties = shared if name == EVERY_KIND else KINDS[name].Params.model_json_schema()["properties"]
    rows = ["| parameter | default | range | meaning |", "|---|---|---|---|"]
    for parameter, schema in properties.items():
        if name == EVERY_KIND or shared.get(parameter, {}).get("default", ...) != schema["default"]:
            cells = (f"`{parameter}`", f"`{orjson.dumps(schema['default']).decode()}`", bounds(schema))
            rows.append(f"| {' | '.join(cells)} | {schema['description'].replace('|', '∣')} |")
    return "\n".join([*rows, ""])


def bounds(schema: dict[str, Any]) -> str:
    """Write a range as people read it, such as "above 0, up to 1"; empty if there is none."""
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    found = [bounds(part) for part in schema.get("anyOf", ()) if part["type"] != "null"]
    for key, word in (
        ("minimum", "from"),
        ("exclusiveMinimum", "above"),
        ("maximum", "up to"),
        ("exclusiveMaximum", "below"),
    ):
        if key in schema:
            found.append(f"{word} {schema[key]:,.10g}".replace(",", " "))
    if schema.get("type") == "array":
        items = schema.get("items") or schema["prefixItems"][0]
        size, most = schema["minItems"], schema["maxItems"]
        found.append(f"{size if size == most else f'{size} to {most}'} numbers, each {bounds(items)}")
    if schema.get("multipleOf"):
        found.append(f"multiples of {schema['multipleOf']}")
    return ", ".join(found)


def rewritten(page: str) -> str:
    """Return the page with every table of parameters written anew."""
    return REGION.sub(lambda region: region[1] + table(region["name"]) + region[4], page)


if __name__ == "__main__":
    PAGE.write_text(rewritten(PAGE.read_text()))
