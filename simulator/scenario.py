"""Scenario files: the world, shocks, policies and seeds of an arena, so that a run can be repeated.

about = "Every customer's tastes change at the half."
world = "petshop"
steps = 40_000
seeds = [1, 2, 3]
policies = ["popularity", "linucb:alpha=1.5"]
shocks = [{ name = "taste-swap", share = 0.5 }]
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Self

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from simulator.arena import ArenaPlan
from simulator.contestants import parse_contestants, parse_swap
from simulator.errors import UsageError
from simulator.shocks import find_shock
from simulator.world import THERE_ARE, WORLDS

BUNDLED = files("simulator") / "scenarios"


class _Closed(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ShockAt(_Closed):
    """A shock and its time: a step ≥ 1, or a share of the run in (0, 1)."""

    name: str
    step: Annotated[int | None, Field(ge=1)] = None
    share: Annotated[float | None, Field(gt=0, lt=1)] = None

    @model_validator(mode="after")
    def _one_time(self) -> Self:
        if (self.step is None) == (self.share is None):
            raise ValueError("give either `step` (such as 20000) or `share` (such as 0.5)")
        return self

    @property
    def at(self) -> int | float:
        """Return the time in the form of an `ArenaPlan`."""
        return self.step if self.step is not None else self.share or 0.0


class Scenario(_Closed):
    """All settings of a run but those of the service."""

    about: str = ""
    world: str = "petshop"
    steps: Annotated[int, Field(ge=100)] = 20_000
    seeds: Annotated[list[Annotated[int, Field(ge=0, lt=2**63)]], Field(min_length=1, max_length=100)] = [1]
    policies: Annotated[list[str], Field(min_length=1)]
    swap: str | None = None
    shocks: list[ShockAt] = []
    window: Annotated[int, Field(ge=1, le=1000)] = 16
    history: Annotated[int, Field(ge=1000)] = 200_000

    @field_validator("world")
    @classmethod
    def _world(cls, world: str) -> str:
        if world not in WORLDS:
            raise ValueError(f"there is no world {world!r}; {THERE_ARE}")
        return world

    @field_validator("seeds")
    @classmethod
    def _seeds(cls, seeds: list[int]) -> list[int]:
        if len(set(seeds)) < len(seeds):
            raise ValueError("a seed is repeated; it would give the same run")
        return seeds

    @field_validator("policies")
    @classmethod
    def _policies(cls, policies: list[str]) -> list[str]:
        try:
            parse_contestants(policies, None)
        except UsageError as error:
            raise ValueError(str(error)) from None
        return policies

    @field_validator("swap")
    @classmethod
    def _swap(cls, swap: str | None) -> str | None:
        try:
            if swap is not None:
                parse_swap(swap)
        except UsageError as error:
            raise ValueError(str(error)) from None
        return swap

    @model_validator(mode="after")
    def _shocks(self) -> Self:
        for place, shock in enumerate(self.shocks):
            try:
                find_shock(self.world, shock.name)
            except UsageError as error:
                raise ValueError(f"shocks.{place}.name: {error}") from None
            if shock.step is not None and shock.step >= self.steps:
                raise ValueError(f"shocks.{place}.step: {shock.step} is not within the {self.steps} steps of the run")
        return self

    @classmethod
    def of(cls, fields: Mapping[str, Any], *, where: str) -> Scenario:
        """Check the fields and make a scenario.

        Args:
            where: the name of the scenario in error messages.

        Raises:
            UsageError: names each wrong field and what it should be.
        """
        try:
            return cls.model_validate(fields)
        except ValidationError as error:
            wrong = "; ".join(_message(one) for one in error.errors())
            raise UsageError(f"{where}: {wrong}") from None

    def plan(self, *, keep: bool = False) -> ArenaPlan:
        """Return the settings in the form that the arena takes."""
        return ArenaPlan(
            parse_contestants(self.policies, self.swap),
            world=self.world,
            steps=self.steps,
            seeds=self.seeds,
            shocks=[(shock.name, shock.at) for shock in self.shocks],
            window=self.window,
            history=self.history,
            keep=keep,
        )


def bundled() -> list[str]:
    """Return the names of the scenarios that are installed with the simulator."""
    return sorted(file.name.removesuffix(".toml") for file in BUNDLED.iterdir() if file.name.endswith(".toml"))


def load(name: str, changes: Mapping[str, Any] | None = None) -> Scenario:
    """Load a scenario by its name, from a .toml file, or from the report.json of a run.

    Args:
        changes: fields that replace those of the scenario.

    Raises:
        UsageError: there is no such scenario, or a field is wrong.
    """
    return Scenario.of({**_fields(name), **(changes or {})}, where=name)


def _fields(name: str) -> Mapping[str, Any]:
    path = BUNDLED / f"{name}.toml" if name in bundled() else Path(name)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"there is no scenario {name!r} ({error}); give a file, or one of: {', '.join(bundled())}"
        ) from None
    try:
        found = orjson.loads(text) if path.name.endswith(".json") else {"scenario": tomllib.loads(text)}
    except (tomllib.TOMLDecodeError, orjson.JSONDecodeError) as error:
        raise UsageError(f"{name} cannot be read: {error}") from None
    fields = found.get("scenario") if isinstance(found, dict) else None
    if not isinstance(fields, dict):
        raise UsageError(f"{name} is no report of an arena: it holds no scenario")
    return fields


def _message(error: Mapping[str, Any]) -> str:
    """Write one error of pydantic, with the field first."""
    place: Sequence[Any] = error["loc"]
    field = ".".join(str(part) for part in place)
    if error["type"] == "extra_forbidden":
        model = ShockAt if place[0] == "shocks" else Scenario
        return f"{field}: there is no such field; there are: {', '.join(model.model_fields)}"
    if error["type"] == "missing":
        return f"{field}: is missing"
    text = error["msg"].removeprefix("Value error, ")
    text = text[0].lower() + text[1:]
    return f"{field}: {text}" if field else text
