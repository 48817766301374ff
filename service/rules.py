"""Rules: what a shop says of a slate, whatever the policy thinks (`decide/stage.py` applies them).

filter    candidates must meet all of these conditions
boost     the odds of items that meet a condition are multiplied
pin       an item has a place of its own
at_most   so many items of one kind on a slate
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

MOST = 20  # rules of one sort
MOST_VALUES = 1000  # of one condition

Path = Annotated[str, Field(min_length=1, max_length=256)]
Scalar = bool | int | float | str
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
CLOSED = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class Condition(BaseModel):
    """What an item's field must be: one of some values, none of them, or a number between two.

    Values are compared as levels: 1, 1.0 and "1" are the same. Of a list one element is enough. An item that lacks the
    field meets `not_in` and nothing else.
    """

    model_config = CLOSED

    field: Path = Field(description="of the item's features; a dotted path reaches into objects")
    is_in: tuple[Scalar, ...] | None = Field(None, alias="in", min_length=1, max_length=MOST_VALUES)
    not_in: tuple[Scalar, ...] | None = Field(None, min_length=1, max_length=MOST_VALUES)
    min: Number | None = None
    max: Number | None = None

    @model_validator(mode="after")
    def _asks_one_thing(self) -> Condition:
        asked = [self.is_in is not None, self.not_in is not None, self.min is not None or self.max is not None]
        if sum(asked) != 1:
            raise ValueError("a condition has one of `in`, `not_in`, and `min` or `max`")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min ({self.min:g}) lies above max ({self.max:g})")
        return self

    def __str__(self) -> str:
        if self.is_in is not None:
            return f"`{self.field}` in {_listed(self.is_in)}"
        if self.not_in is not None:
            return f"`{self.field}` not in {_listed(self.not_in)}"
        ends = [f"{word} {end:g}" for word, end in (("from", self.min), ("to", self.max)) if end is not None]
        return f"`{self.field}` {' '.join(ends)}"


class Boost(Condition):
    """Multiplies the odds of the items that meet a condition; below 1 it buries them."""

    times: Annotated[float, Field(strict=True, ge=0.01, le=100)]


class Pin(BaseModel):
    """Gives an item a place of the slate, from 1 on. It stands at no other one."""

    model_config = CLOSED

    item: Annotated[str, Field(min_length=1, max_length=128)]
    place: Annotated[int, Field(strict=True, ge=1, le=1000)]


class AtMost(BaseModel):
    """Allows so many items on a slate that have the same value of a field. Items that lack it are not counted."""

    model_config = CLOSED

    field: Path
    items: Annotated[int, Field(strict=True, ge=1, le=1000)]


class Rules(BaseModel):
    """All rules of a decision."""

    model_config = CLOSED

    filter: Annotated[tuple[Condition, ...], Field(max_length=MOST)] = ()
    boost: Annotated[tuple[Boost, ...], Field(max_length=MOST)] = ()
    pin: Annotated[tuple[Pin, ...], Field(max_length=MOST)] = ()
    at_most: Annotated[tuple[AtMost, ...], Field(max_length=MOST)] = ()

    @model_validator(mode="after")
    def _no_place_and_item_twice(self) -> Rules:
        for what in ("place", "item"):
            pinned = [str(getattr(pin, what)) for pin in self.pin]
            if twice := {one for one in pinned if pinned.count(one) > 1}:
                raise ValueError(f"pin: {what} {min(twice)} stands twice")
        return self

    def __bool__(self) -> bool:
        return bool(self.filter or self.boost or self.pin or self.at_most)

    def and_those(self, other: Rules) -> Rules:
        """Return these rules and another's. Where both pin an item or a place, the other's pin counts."""
        if not self or not other:
            return self or other
        places, items = {pin.place for pin in other.pin}, {pin.item for pin in other.pin}
        kept = tuple(pin for pin in self.pin if pin.place not in places and pin.item not in items)
        return Rules(
            filter=self.filter + other.filter,
            boost=self.boost + other.boost,
            pin=kept + other.pin,
            at_most=self.at_most + other.at_most,
        )

    @cached_property
    def as_json(self) -> dict[str, Any]:
        """These rules as a client would send them; not to be changed."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_defaults=True)


NO_RULES = Rules()


def _listed(values: Sequence[Scalar]) -> str:
    shown = ", ".join(repr(value) for value in values[:5])
    return f"[{shown}{', …' if len(values) > 5 else ''}]"
