"""Who takes part, as written on the command line: `linucb:alpha=1.5`, or `popularity,linucb@0.25` for a swap."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import orjson

from simulator.errors import UnknownName

BATCH_TRAINED = frozenset({"embedding_mlp"})  # kinds that learn from a history, once


@dataclass(frozen=True)
class PolicySpec:
    """A kind of policy and its parameters."""

    kind: str
    params: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> PolicySpec:
        """`kind` or `kind:param=value,param=value`; a value is JSON, or else a string.

        Raises:
            UnknownName: it is not written like that.
        """
        kind, _, rest = text.strip().partition(":")
        params = {}
        for part in rest.split(",") if rest else []:
            name, equals, value = part.partition("=")
            if not equals or not name.strip():
                raise UnknownName(f"cannot read {text!r}; write a policy as linucb or linucb:alpha=1.5,ridge=2")
            params[name.strip()] = _value(value.strip())
        if not re.fullmatch(r"[a-z][a-z0-9_-]*", kind):
            raise UnknownName(f"{kind!r} is no kind of policy; try random, popularity, linucb or embedding_mlp")
        return cls(kind, params)

    def __str__(self) -> str:
        params = ",".join(f"{name}={value}" for name, value in self.params.items())
        return f"{self.kind}:{params}" if params else self.kind


@dataclass(frozen=True)
class Contestant:
    """One loop of the arena: the policy that serves it, and perhaps another that takes over on the way."""

    label: str
    policy: PolicySpec
    successor: PolicySpec | None = None
    swap_at: float = 0.0  # share of the run

    @property
    def policies(self) -> tuple[PolicySpec, ...]:
        return (self.policy,) if self.successor is None else (self.policy, self.successor)

    @property
    def needs_history(self) -> bool:
        return any(policy.kind in BATCH_TRAINED for policy in self.policies)


def parse_contestants(policies: list[str], swap: str | None) -> list[Contestant]:
    """One loop a policy, and one more for `swap`. A label is the kind, or all of it where two are of one kind.

    Raises:
        UnknownName: something cannot be read, or stands twice.
    """
    specs = [PolicySpec.parse(text) for text in policies]
    kinds = [spec.kind for spec in specs]
    labels = [spec.kind if kinds.count(spec.kind) == 1 else str(spec) for spec in specs]
    if len(set(labels)) < len(labels):
        raise UnknownName("a policy stands twice; give one of them other parameters")
    contestants = [Contestant(label, spec) for label, spec in zip(labels, specs, strict=True)]
    return [*contestants, parse_swap(swap)] if swap else contestants


def parse_swap(text: str) -> Contestant:
    """`first,second@share`: the second takes over at this share of the run; until then it learns in the shadow.

    Raises:
        UnknownName: it is not written like that.
    """
    pair, _, share = text.rpartition("@")
    names = re.split(r",(?![^,:]*=)", pair)  # a comma before `name=value` belongs to a policy's parameters
    if len(names) != 2 or not re.fullmatch(r"0?\.\d+", share):
        raise UnknownName(f"cannot read the swap {text!r}; write it as popularity,linucb@0.25")
    first, second = map(PolicySpec.parse, names)
    if first.kind == second.kind:
        raise UnknownName("a swap needs policies of two kinds")
    return Contestant("swapped", first, second, float(share))


def _value(text: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return text
