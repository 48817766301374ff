"""Contestants of an arena, as written on the command line.

A policy is written as `linucb:alpha=1.5`, a swap as `popularity,linucb@0.25`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from simulator.errors import UsageError


@dataclass(frozen=True)
class PolicySpec:
    """A kind of policy and its parameters."""

    kind: str
    params: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> PolicySpec:
        """Read `kind` or `kind:param=value,param=value`. A value is JSON, or else a string.

        Raises:
            UsageError: the text has another form.
        """
        kind, _, rest = text.strip().partition(":")
        params = {}
        for part in rest.split(",") if rest else []:
            name, equals, value = part.partition("=")
            if not equals or not name.strip():
                raise UsageError(f"cannot read {text!r}; write a policy as linucb or linucb:alpha=1.5,ridge=2")
            params[name.strip()] = _value(value.strip())
        if not re.fullmatch(r"[a-z][a-z0-9_-]*", kind):
            raise UsageError(f"{kind!r} cannot name a kind of policy; `rebound-sim kinds` lists the service's")
        return cls(kind, params)

    def __str__(self) -> str:
        """Write it so that `parse` reads the same policy."""
        params = ",".join(f"{name}={_text(value)}" for name, value in self.params.items())
        return f"{self.kind}:{params}" if params else self.kind


@dataclass(frozen=True)
class Contestant:
    """One loop of the arena: the policy that serves first, and perhaps a successor.

    Args:
        swap_at: share of the run after which the successor serves, in (0, 1).
    """

    label: str
    policy: PolicySpec
    successor: PolicySpec | None = None
    swap_at: float = 0.0

    @property
    def policies(self) -> tuple[PolicySpec, ...]:
        return (self.policy,) if self.successor is None else (self.policy, self.successor)


def parse_contestants(policies: Sequence[str], swap: str | None) -> list[Contestant]:
    """Read one contestant for each policy, and one more for `swap`.

    A label is the kind of the policy; it includes the parameters where two policies are of one kind.

    Raises:
        UsageError: a text has another form, or a policy is repeated.
    """
    specs = [PolicySpec.parse(text) for text in policies]
    kinds = [spec.kind for spec in specs]
    labels = [spec.kind if kinds.count(spec.kind) == 1 else str(spec) for spec in specs]
    if len(set(labels)) < len(labels):
        raise UsageError("a policy is repeated; give one of the two other parameters")
    contestants = [Contestant(label, spec) for label, spec in zip(labels, specs, strict=True)]
    return [*contestants, parse_swap(swap)] if swap else contestants


def parse_swap(text: str) -> Contestant:
    """Read `first,second@share`: the second replaces the first at this share of the run.

    Until then the second learns without serving.

    Raises:
        UsageError: the text has another form.
    """
    pair, _, share = text.rpartition("@")
    names = re.split(r",(?![^,:]*=)", pair)  # a comma before `name=value` belongs to a policy's parameters
    if len(names) != 2 or not re.fullmatch(r"0?\.\d+", share):
        raise UsageError(f"cannot read the swap {text!r}; write it as popularity,linucb@0.25")
    first, second = map(PolicySpec.parse, names)
    if first.kind == second.kind:
        raise UsageError("a swap needs policies of two kinds")
    return Contestant("swapped", first, second, float(share))


def _value(text: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return text


def _text(value: Any) -> str:
    """Write a value so that `_value` reads the same one."""
    return value if isinstance(value, str) and _value(value) == value else orjson.dumps(value).decode()
