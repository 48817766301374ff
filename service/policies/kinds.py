"""Finds the kinds of policies: those of this package, and those that installed packages offer as entry points."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from pkgutil import iter_modules
from typing import Any, TypeAlias

import structlog
from pydantic import BaseModel, ConfigDict, Field

from service.layout import Layout
from service.policies.base import Array, Params, Policy, Scorer

GROUP = "rebound.policies"  # of the entry points; each value is a Policy class

PolicyClass: TypeAlias = type[Policy[Any]]

log = structlog.get_logger()


class KindInfo(BaseModel):
    """Description of one kind of policy, for `GET /kinds`."""

    model_config = ConfigDict(frozen=True)

    kind: str = Field(description="Name of the kind, as `POST /policies` takes it.")
    summary: str = Field(description="First sentence of the class's docstring.")
    batch_trained: bool = Field(description="Whether it learns in trainings only.")
    comparable: bool = Field(description="Whether change detection can compare it with a copy that forgets.")
    params: dict[str, Any] = Field(description="JSON Schema of its parameters, each with a description.")


def describe(policy: PolicyClass) -> KindInfo:
    """Describe one kind.

    Raises:
        ValueError: the class has no docstring of its own.
    """
    doc = inspect.cleandoc(policy.__doc__ or "")
    if not doc:
        raise ValueError("the class has no docstring")
    first = re.split(r"(?<=\.)\s|\n\n", doc, maxsplit=1)[0]
    return KindInfo(
        kind=policy.kind,
        summary=" ".join(first.split()),
        batch_trained=policy.batch_trained,
        comparable=policy.comparable,
        params=policy.Params.model_json_schema(),
    )


def discover() -> dict[str, PolicyClass]:
    """Find all kinds, by name: this package's in the order of its files, then those of installed packages.

    An entry point that cannot be used is logged as an error and left out, so that it does not stop the service.
    """
    kinds: dict[str, PolicyClass] = {}
    for policy in _of_this_package():
        if policy.kind in kinds:
            raise ValueError(f"two policies are called {policy.kind!r}: {kinds[policy.kind]} and {policy}")
        kinds[policy.kind] = policy
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: (_package(entry), entry.name)):
        try:
            policy = _load(entry)
            if policy.kind in kinds:
                raise ValueError(f"the kind {policy.kind!r} exists already, in {kinds[policy.kind].__module__}")
        except (Exception, SystemExit) as error:
            log.error(
                "policy of an installed package left out",
                package=_package(entry),
                entry_point=f"{entry.name} = {entry.value}",
                reason=f"{type(error).__name__}: {error}",
            )
        else:
            kinds[policy.kind] = policy
    return kinds


def _of_this_package() -> Iterator[PolicyClass]:
    """Find the concrete classes with a `kind` of their own, in every module of this package."""
    for module in iter_modules([str(Path(__file__).parent)]):
        name = f"{__package__}.{module.name}"
        for member in vars(import_module(name)).values():
            if not (isinstance(member, type) and issubclass(member, Policy) and member.__module__ == name):
                continue
            if "kind" in vars(member) and not inspect.isabstract(member):
                yield member


def _load(entry: EntryPoint) -> PolicyClass:
    """Import the class of an entry point and check what can be checked without an instance.

    Raises:
        Exception: the package does not import; what it raised.
        TypeError, ValueError: the entry point is no usable policy class; the message tells why.
    """
    policy = entry.load()
    if not (isinstance(policy, type) and issubclass(policy, Policy)):
        raise TypeError("not a subclass of service.policies.Policy")
    if inspect.isabstract(policy):
        raise TypeError(f"lacks {', '.join(sorted(policy.__abstractmethods__))}")
    kind = vars(policy).get("kind")
    if not isinstance(kind, str) or not re.fullmatch(r"[a-z][a-z0-9_-]*", kind):
        raise ValueError(f"its `kind` is {kind!r}, expected lower-case letters, digits, _ and -")
    if not issubclass(policy.Params, Params):
        raise TypeError("its `Params` is not a subclass of service.policies.Params")
    describe(policy)
    return policy


def _package(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist is not None else "unknown"


KINDS: dict[str, PolicyClass] = discover()


def columns_for(kind: str, d: int, layout: Layout | None) -> int:
    """Return how many of the d columns of a row a kind is given: all, or those of the layer that all items share.

    Raises:
        KeyError: there is no such kind.
    """
    return d if layout is None or KINDS[kind].on_layers is not None else layout.shared


def new_policy(kind: str, d: int, layout: Layout | None, params: Params, *, seed: int) -> Policy[Any]:
    """Make a policy for rows of d columns that has learned nothing.

    Raises:
        KeyError: there is no such kind.
    """
    policy = KINDS[kind]
    if layout is None:
        return policy(d, params, seed=seed)
    if policy.on_layers is None:
        return policy(layout.shared, params.on_fitted_rows(), seed=seed)
    made: Policy[Any] = policy.on_layers(layout, params, seed=seed)
    return made


def new_scorer(kind: str, snapshot: Mapping[str, Array], d: int, layout: Layout | None, params: Params) -> Scorer:
    """Make the serving half of a policy that `new_policy` made, from one of its snapshots.

    Raises:
        KeyError: there is no such kind.
        ValueError: an array is missing, has the wrong shape, or is not finite.
    """
    policy, columns = KINDS[kind], columns_for(kind, d, layout)
    if layout is None:
        return policy.scorer(snapshot, d=columns, params=params)
    if policy.on_layers is None:
        return policy.scorer(snapshot, d=columns, params=params.on_fitted_rows())
    made: Scorer = policy.on_layers.scorer(snapshot, d=columns, params=params)
    return made


def describe_kinds() -> list[KindInfo]:
    """Describe all kinds, in the order of `KINDS`."""
    return [describe(policy) for policy in KINDS.values()]
