"""Limits: how often a user is shown an item (caps), and how often all users are (budgets).

Both count impressions: the items of the slates that were decided. What a limit allows no more is no candidate.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

MOST_CAPS = 5  # of impressions
MOST_BUDGETS = 1000  # of a loop
LONGEST_S = 400 * 86_400.0

Seconds = Annotated[float, Field(strict=True, ge=1, le=LONGEST_S, allow_inf_nan=False)]
CLOSED = ConfigDict(frozen=True, extra="forbid")


class ImpressionCap(BaseModel):
    """Allows so many impressions of an item for a user within a time."""

    model_config = CLOSED

    most: Annotated[int, Field(strict=True, ge=1, le=1000)]
    within: Seconds


class TakenCap(BaseModel):
    """Shows a user nothing that he took within a time: by an activity, or by a reward."""

    model_config = CLOSED

    activity: Annotated[tuple[Annotated[str, Field(min_length=1, max_length=32)], ...], Field(max_length=20)] = Field(
        (), description="types of activity"
    )
    reward_above: float | None = Field(
        None, strict=True, allow_inf_nan=False, description="a report of more than this; null: no report counts"
    )
    within: Seconds

    @model_validator(mode="after")
    def _names_something(self) -> TakenCap:
        if not self.activity and self.reward_above is None:
            raise ValueError("say what counts as taken: `activity`, `reward_above`, or both")
        return self


class Caps(BaseModel):
    """What is counted for each user."""

    model_config = CLOSED

    impressions: Annotated[tuple[ImpressionCap, ...], Field(max_length=MOST_CAPS)] = ()
    taken: TakenCap | None = None
    kept: int = Field(
        500, strict=True, ge=1, le=5000, description="items shown, and items taken, kept of each user, the newest"
    )

    def __bool__(self) -> bool:
        return bool(self.impressions) or self.taken is not None

    @property
    def count_decisions(self) -> bool:
        """Whether something is counted when a decision is stored."""
        return bool(self.impressions) or (self.taken is not None and self.taken.reward_above is not None)

    @property
    def ms(self) -> int:
        """For how long counters are kept after the last change, in milliseconds."""
        times = [cap.within for cap in self.impressions]
        if self.taken is not None:
            times.append(self.taken.within)
        return round(1000 * max(times, default=0.0))


class Budget(BaseModel):
    """Allows so many impressions of an item, in all or a day (UTC)."""

    model_config = CLOSED

    impressions: Annotated[int, Field(strict=True, ge=1, le=10**12)]
    per: Literal["total", "day"] = "total"


NO_CAPS = Caps()

Budgets = Annotated[dict[Annotated[str, Field(min_length=1, max_length=128)], Budget], Field(max_length=MOST_BUDGETS)]
