"""What a loop says about its features: the declared fields, their crosses, and how many columns the rest may share.

    {"context": {"persona": {"type": "categorical", "levels": ["a", "b"]},
                 "hour": {"type": "numeric", "min": 0, "max": 23}},
     "item": {"category": {"type": "categorical", "levels": ["x", "y"]}, "taste": {"type": "vector", "size": 16}},
     "crosses": [["persona", "category"]], "hash_dims": 31}

Each kind of field writes one value into its own columns, with length ≤ 1, and leaves them at zero when the value is
missing or null.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from functools import cached_property
from itertools import pairwise
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator

MAX_COLUMNS = 4096  # beside the bias
MAX_STRING = 256

Name = Annotated[str, StringConstraints(min_length=1, max_length=MAX_STRING)]


class _Closed(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class _Declared(_Closed, ABC):
    """One declared field."""

    @cached_property
    @abstractmethod
    def columns(self) -> list[str]:
        """What each of its columns holds, as a suffix to the field's name."""

    @abstractmethod
    def write(self, value: Any, out: NDArray[Any]) -> None:
        """Write `value` into `out` (len(columns),), which holds zeros; its length is ≤ 1 afterwards.

        Raises:
            ValueError: the value is not of this field's type.
        """


class Categorical(_Declared):
    """One-hot over the levels; a string that is none of them has a column of its own, so it differs from missing."""

    type: Literal["categorical"]
    levels: list[Annotated[str, StringConstraints(max_length=MAX_STRING)]] = Field(min_length=1, max_length=256)

    @field_validator("levels")
    @classmethod
    def _unique(cls, levels: list[str]) -> list[str]:
        for a, b in pairwise(sorted(levels)):
            if a == b:
                raise ValueError(f"level {a!r} is listed twice")
        return levels

    @cached_property
    def _position(self) -> dict[str, int]:
        return {level: i for i, level in enumerate(self.levels)}

    @cached_property
    def columns(self) -> list[str]:
        return [*(f"={level}" for level in self.levels), "=<other>"]

    def write(self, value: Any, out: NDArray[Any]) -> None:
        out[self._position.get(string(value), len(self.levels))] = 1.0


class Numeric(_Declared):
    """v = (value - min) / (max - min), clipped to [0, 1], as the pair (v, 1 - v).

    The pair spans every line over [min, max], and missing, (0, 0), is no point on it.
    """

    type: Literal["numeric"]
    min: float
    max: float

    @model_validator(mode="after")
    def _ordered(self) -> Numeric:
        if not 0 < self.max - self.min < math.inf:
            raise ValueError(f"max ({self.max}) must be greater than min ({self.min}), by a finite amount")
        return self

    @cached_property
    def columns(self) -> list[str]:
        return ["[max]", "[min]"]

    def write(self, value: Any, out: NDArray[Any]) -> None:
        v = (min(max(number(value), self.min), self.max) - self.min) / (self.max - self.min)
        out[0], out[1] = v, 1.0 - v


class Vector(_Declared):
    """`size` numbers as they are given, shortened to length 1 where they are longer."""

    type: Literal["vector"]
    size: int = Field(ge=1, le=256)

    @cached_property
    def columns(self) -> list[str]:
        return [f"[{i}]" for i in range(self.size)]

    def write(self, value: Any, out: NDArray[Any]) -> None:
        if not isinstance(value, (list, tuple)) or len(value) != self.size:
            found = f"{len(value)} values" if isinstance(value, (list, tuple)) else type(value).__name__
            raise ValueError(f"expected a list of {self.size} numbers, got {found}")
        v = [number(x) for x in value]
        peak = max(1.0, max(v), -min(v))  # first scaled by the peak: squares of huge numbers would overflow
        length = math.hypot(*(x / peak for x in v))
        out[:] = np.array(v) / peak / max(length, 1.0 / peak)


AnyField = Annotated[Categorical | Numeric | Vector, Field(discriminator="type")]


class FeatureSchema(_Closed):
    """A loop's features. The empty schema hashes everything into 31 columns.

    `crosses` are pairs (context field, item field). `hash_dims` columns, 0 to 4096, are shared by all undeclared
    fields; with 0 they are ignored.
    """

    context: dict[Name, AnyField] = {}
    item: dict[Name, AnyField] = {}
    crosses: list[tuple[str, str]] = []
    hash_dims: int = Field(default=31, ge=0, le=MAX_COLUMNS)

    @model_validator(mode="after")
    def _consistent(self) -> FeatureSchema:
        for cross in self.crosses:
            for side, name, declared in zip(("context", "item"), cross, (self.context, self.item), strict=True):
                if name not in declared:
                    raise ValueError(f"cross {list(cross)}: {name!r} is not a declared {side} field")
            if self.crosses.count(cross) > 1:
                raise ValueError(f"cross {list(cross)} is listed twice")
        if self.d - 1 > MAX_COLUMNS:
            raise ValueError(f"the schema has {self.d - 1} columns; at most {MAX_COLUMNS} are allowed")
        return self

    @property
    def d(self) -> int:
        """Columns of an encoded row: the bias, the declared fields, their crosses, the hashed ones."""
        fields = sum(len(field.columns) for field in (*self.context.values(), *self.item.values()))
        crosses = sum(len(self.context[c].columns) * len(self.item[i].columns) for c, i in self.crosses)
        return 1 + fields + crosses + self.hash_dims


def string(value: Any) -> str:
    """`value` if it is a string of at most 256 characters; else ValueError."""
    if not isinstance(value, str):
        raise ValueError(f"expected a string, got {type(value).__name__}")
    if len(value) > MAX_STRING:
        raise ValueError(f"a string of {len(value)} characters; at most {MAX_STRING} are allowed")
    return value


def number(value: Any) -> float:
    """`value` as a finite float; else ValueError (a bool is no number)."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"expected a number, got {type(value).__name__}")
    try:
        v = float(value)
    except OverflowError:  # an integer beyond the floats
        v = math.inf
    if not math.isfinite(v):
        raise ValueError("expected a finite number")
    return v
