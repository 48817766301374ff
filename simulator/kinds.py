"""Kinds of policies, as the service describes them at `GET /kinds`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import orjson
from rich.table import Table

from simulator.contestants import PolicySpec
from simulator.errors import UsageError

BOUNDS = (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<"))


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of policy.

    Args:
        batch_trained: it learns from a history, in trainings, and from single rewards not at all.
        params: JSON Schema of its parameters, an object.
    """

    name: str
    summary: str = ""
    batch_trained: bool = False
    params: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, record: Mapping[str, Any]) -> Self:
        """Read one entry of the reply. `null` means "not given"; unknown fields are ignored.

        Raises:
            KeyError: the entry has no name.
        """
        return cls(
            name=str(record["kind"]),
            summary=record.get("summary") or "",
            batch_trained=bool(record.get("batch_trained")),
            params=record.get("params") or {},
        )


Kinds = Mapping[str, Kind]


def check_kinds(specs: Iterable[PolicySpec], kinds: Kinds) -> None:
    """Check that the service has the kind of every policy.

    Raises:
        UsageError: it lacks one; the message names all that it has.
    """
    for spec in specs:
        if spec.kind not in kinds:
            raise UsageError(f"the service has no kind of policy {spec.kind!r}; it has: {', '.join(sorted(kinds))}")


def table(kinds: Kinds) -> Table:
    """Lay out all kinds for the terminal, by name."""
    shown = Table("kind", "batch-trained", "summary", "parameters", title="Kinds of policies", title_justify="left")
    shown.title_style = "bold"
    shown.columns[0].no_wrap = True
    for name in sorted(kinds):
        kind = kinds[name]
        shown.add_row(name, "yes" if kind.batch_trained else "", kind.summary, "\n".join(parameters(kind.params)))
        shown.add_section()
    shown.caption = (
        "Write a policy as KIND or KIND:PARAMETER=VALUE,PARAMETER=VALUE; a parameter without a default is required."
    )
    shown.caption_justify = "left"
    return shown


def parameters(schema: Mapping[str, Any]) -> list[str]:
    """Describe each parameter of a JSON Schema in a line, such as `alpha=1.5  number, > 0`."""
    lines = []
    for name, found in (schema.get("properties") or {}).items():
        one = _resolved(found or {}, schema)
        default = f"={orjson.dumps(one['default']).decode()}" if "default" in one else ""
        lines.append(f"{name}{default}  {_type(one, schema)}".rstrip())
    return lines


def _type(one: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    """Describe the values that a schema allows, as far as its usual keywords go."""
    options = [_type(_resolved(option, schema), schema) for option in one.get("anyOf") or ()]
    if "enum" in one:
        options.append(" | ".join(map(str, one["enum"])))
    elif "const" in one:
        options.append(str(one["const"]))
    elif isinstance(one.get("type"), str):
        bounds = [f"{sign} {one[bound]}" for bound, sign in BOUNDS if one.get(bound) is not None]
        options.append(", ".join([one["type"], *bounds]))
    return " | ".join(option for option in options if option)


def _resolved(one: Mapping[str, Any], schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """Follow a reference to the definitions of the schema; its own keywords win."""
    name = str(one.get("$ref") or "").removeprefix("#/$defs/")
    return {**((schema.get("$defs") or {}).get(name) or {}), **one}
