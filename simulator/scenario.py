"""An arena from a file: world, shocks, policies and seeds, so that a run can be had again.

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

from simulator.arena import Plan
from simulator.contestants import parse_contestants, parse_swap
from simulator.errors import UnknownName
from simulator.shocks import find_shock
from simulator.world import WORLDS

BUNDLED = files("simulator") / "scenarios"


class _Closed(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ShockAt(_Closed):
    """A shock, and when: at a step, or at a share of the run. Either way some steps come before it."""

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
        """As a `Plan` takes it."""
        return self.step if self.step is not None else self.share or 0.0


class Scenario(_Closed):
    """All that decides what a run brings, beside the service."""

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
            raise ValueError(f"there is no world {world!r}; there are: {', '.join(WORLDS)}")
        return world

    @field_validator("seeds")
    @classmethod
    def _seeds(cls, seeds: list[int]) -> list[int]:
        if len(set(seeds)) < len(seeds):
            raise ValueError("a seed stands twice; it would bring the same run")
        return seeds

    @field_validator("policies")
    @classmethod
    def _policies(cls, policies: list[str]) -> list[str]:
        try:
            parse_contestants(policies, None)
        except UnknownName as error:
            raise ValueError(str(error)) from None
        return policies

    @field_validator("swap")
    @classmethod
    def _swap(cls, swap: str | None) -> str | None:
        try:
            if swap is not None:
                parse_swap(swap)
        except UnknownName as error:
            raise ValueError(str(error)) from None
        return swap

    @model_validator(mode="after")
    def _shocks(self) -> Self:
        for place, shock in enumerate(self.shocks):
            try:
                find_shock(self.world, shock.name)
            except UnknownName as error:
                raise ValueError(f"shocks.{place}.name: {error}") from None
            if shock.step is not None and shock.step >= self.steps:
                raise ValueError(f"shocks.{place}.step: {shock.step} is not within the {self.steps} steps of the run")
        return self

    @classmethod
    def of(cls, fields: Mapping[str, Any], *, where: str) -> Scenario:
        """Checked; `where` is what errors call it.

        Raises:
            UnknownName: each field that is wrong, and what it should be.
        """
        try:
            return cls.model_validate(fields)
        except ValidationError as error:
            wrong = "; ".join(_told(one) for one in error.errors())
            raise UnknownName(f"{where}: {wrong}") from None

    def plan(self, *, keep: bool = False) -> Plan:
        """What the arena plays."""
        return Plan(
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
    """The names of the scenarios that come along."""
    return sorted(file.name.removesuffix(".toml") for file in BUNDLED.iterdir() if file.name.endswith(".toml"))


def load(name: str, changes: Mapping[str, Any] | None = None) -> Scenario:
    """The scenario of a name, of a .toml file, or of the report.json of a run; `changes` replace its fields.

    Raises:
        UnknownName: there is none, or it is wrong; says what and where.
    """
    return Scenario.of({**_fields(name), **(changes or {})}, where=name)


def _fields(name: str) -> Mapping[str, Any]:
    path = BUNDLED / f"{name}.toml" if name in bundled() else Path(name)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        what = f"there is no scenario {name!r} ({error})"
        raise UnknownName(f"{what}; give a file, or one of: {', '.join(bundled())}") from None
    try:
        found = orjson.loads(text) if path.name.endswith(".json") else {"scenario": tomllib.loads(text)}
    except (tomllib.TOMLDecodeError, orjson.JSONDecodeError) as error:
        raise UnknownName(f"{name} cannot be read: {error}") from None
    fields = found.get("scenario") if isinstance(found, dict) else None
    if not isinstance(fields, dict):
        raise UnknownName(f"{name} is no report of an arena: it holds no scenario")
    return fields


def _told(error: Mapping[str, Any]) -> str:
    """One error of pydantic, with the field first."""
    place: Sequence[Any] = error["loc"]
    field = ".".join(str(part) for part in place)
    if error["type"] == "extra_forbidden":
        model = ShockAt if place[0] == "shocks" else Scenario
        return f"{field}: there is no such field; there are: {', '.join(model.model_fields)}"
    if error["type"] == "missing":
        return f"{field}: is missing"
    said = error["msg"].removeprefix("Value error, ")
    said = said[0].lower() + said[1:]
    return f"{field}: {said}" if field else said
