"""The types of field that a schema can declare: categorical, numeric, vector.

Each type writes one value into columns of its own, with length ≤ 1. The columns stay zero where the value is missing,
null or unusable.
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

from service.represent.misfits import Reason

MAX_STRING = 256  # characters of a text, of a name and of a level
MAX_LEVELS = 4096
MAX_SIZE = 4096  # numbers of a vector


# Of every model of a schema: immutable, without unknown members, NaN and infinities.
CLOSED = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Declared(BaseModel, ABC):
    """One declared field."""

    model_config = CLOSED

    @cached_property
    @abstractmethod
    def columns(self) -> list[str]:
        """The meaning of each column, as a suffix to the field's name."""

    @abstractmethod
    def write(self, value: Any, out: NDArray[Any]) -> Reason | None:
        """Write `value` into `out` (len(columns),), which holds zeros. Its length is ≤ 1 afterwards.

        Args:
            value: any JSON value but null.

        Returns:
            The reason why the value could not be used as it is; None if it could.
        """


class Categorical(Declared):
    """One-hot over the levels. A value that is none of them has the column `<other>`, so it differs from a missing one.

    Numbers and booleans are taken as their JSON text: 1 and 1.0 as "1", true as "true".
    """

    type: Literal["categorical"]
    levels: list[Annotated[str, StringConstraints(max_length=MAX_STRING)]] = Field(min_length=1, max_length=MAX_LEVELS)

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

    def write(self, value: Any, out: NDArray[Any]) -> Reason | None:
        if isinstance(value, str):
            text = value
        elif isinstance(value, bool):
            text = "true" if value else "false"
        else:
            v = number(value)
            if isinstance(v, str):
                return v
            text = str(int(value)) if isinstance(value, int) or v.is_integer() else repr(v)
        level = self._position.get(text)
        if level is not None:
            out[level] = 1.0
            return None
        out[-1] = 1.0
        return "unknown_level" if len(text) <= MAX_STRING else "overlong"


class Numeric(Declared):
    """v = (value - min) / (max - min), clipped to [0, 1], as the pair (v, 1 - v).

    The pair spans every line over [min, max]. A missing value is (0, 0), which is no point on such a line.
    """

    type: Literal["numeric"]
    min: Annotated[float, Field(strict=True)]  # neither a boolean nor a text is a number
    max: Annotated[float, Field(strict=True)]

    @model_validator(mode="after")
    def _ordered(self) -> Numeric:
        if not 0 < self.max - self.min < math.inf:
            raise ValueError(f"max ({self.max}) must be greater than min ({self.min}), by a finite amount")
        return self

    @cached_property
    def columns(self) -> list[str]:
        return ["[max]", "[min]"]

    def write(self, value: Any, out: NDArray[Any]) -> Reason | None:
        v = number(value)
        if isinstance(v, str):
            return v
        clipped = min(max(v, self.min), self.max)
        # Clipped first, the ratio lies in [0, 1] for the smallest width and the largest value.
        out[0] = share = (clipped - self.min) / (self.max - self.min)
        out[1] = 1.0 - share
        return None if clipped == v else "out_of_range"


class Vector(Declared):
    """`size` numbers as they are given, shortened to length 1 where they are longer."""

    type: Literal["vector"]
    size: int = Field(strict=True, ge=1, le=MAX_SIZE)

    @cached_property
    def columns(self) -> list[str]:
        return [f"[{i}]" for i in range(self.size)]

    def write(self, value: Any, out: NDArray[Any]) -> Reason | None:
        if not isinstance(value, (list, tuple)):
            return "wrong_type"
        if len(value) != self.size:
            return "wrong_size"
        v: list[float] = []
        for element in value:
            x = number(element)
            if isinstance(x, str):
                return x
            v.append(x)
        peak = max(1.0, max(v), -min(v))  # scale by the peak first: squares of huge numbers would overflow
        length = math.hypot(*(x / peak for x in v))
        out[:] = np.array(v) / peak / max(length, 1.0 / peak)
        return None


AnyField = Annotated[Categorical | Numeric | Vector, Field(discriminator="type")]


def number(value: Any) -> float | Literal["wrong_type", "not_finite"]:
    """Return `value` as a finite float, or the reason why it is none. A boolean is no number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return "wrong_type"
    try:
        v = float(value)
    except OverflowError:  # an integer beyond the floats
        return "not_finite"
    return v if math.isfinite(v) else "not_finite"
