"""A loop's settings: one decision problem, with its own catalogue, policies and log."""

from __future__ import annotations

import math
import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from service.funnel import NO_FUNNEL, Funnel
from service.limits import NO_CAPS, Budgets, Caps
from service.rules import NO_RULES, Rules

LOOP_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")

LARGEST = 1e100  # of a reward: scores, which may lie outside the range, are finite, too

# Strict: `true` and "1" are no numbers.
Finite = Annotated[float, Field(strict=True, allow_inf_nan=False)]


def _ordered(value: tuple[float, float]) -> tuple[float, float]:
    low, high = value
    if low >= high:
        raise ValueError("the lower end must be below the upper end")
    if max(-low, high) > LARGEST or not math.isfinite(1.0 / (high - low)):
        raise ValueError(f"the ends must lie within ±{LARGEST:g}, and the inverse of the width must be a finite number")
    return value


RewardRange = Annotated[tuple[Finite, Finite], AfterValidator(_ordered)]


class LoopChanges(BaseModel):
    """Settings of a loop, each checked by itself. Those that are left out keep their value."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    reward_range: RewardRange = Field((0.0, 1.0), description="rewards outside are refused")
    wait_time: Finite = Field(
        600.0, ge=0.001, le=7 * 86_400, description="seconds until a decision gets its default reward"
    )
    default_reward: Finite = Field(0.0, description="the reward of a decision that nobody reported on")
    aggregation: Literal["first", "sum", "max", "last"] = Field(
        "first", description="how several rewards become one; all but `first` are settled when the wait is over"
    )
    exploration_floor: Finite = Field(
        0.01, ge=0, le=1, description="probability mass spread evenly over the eligible candidates"
    )
    fit_schema: bool = Field(
        True, strict=True, description="whether a schema is fitted to the log where nobody declared one"
    )
    retention: int = Field(
        1_000_000, strict=True, ge=1000, le=10**9, description="events kept in the log, and activities kept in theirs"
    )
    ledger_time: Finite = Field(
        600.0,
        ge=0.001,
        le=30 * 86_400,
        description="seconds that a settled decision stays readable, after its wait time",
    )
    early_time: Finite = Field(
        60.0,
        ge=0,
        le=86_400,
        description="seconds that a report is kept whose decision is not there yet; 0: it is refused",
    )
    activity_kept: int = Field(
        50, strict=True, ge=1, le=500, description="activities kept of each user, the newest accepted"
    )
    activity_time: Finite = Field(
        30 * 86_400.0,
        ge=1,
        le=400 * 86_400,
        description="seconds after which a user's activity is forgotten, from the last that he sent",
    )
    reward_activity: bool = Field(
        False,
        strict=True,
        description="whether an item that got more than the default reward counts as activity of its user, of the type "
        "`reward`",
    )
    edges_kept: int = Field(
        100, strict=True, ge=1, le=1000, description="edges kept of each user, the heaviest; of these the newest"
    )
    strict: bool = Field(
        False,
        strict=True,
        description="refuse a request with a field that the declared schema cannot use; else it is used as far as it "
        "can be, and counted",
    )
    rules: Rules = Field(
        NO_RULES, description="filter, boost, pin, at_most: of every decision, beside the request's own"
    )
    funnel: Funnel = Field(
        NO_FUNNEL, description="sources that find the candidates of a decision in a large catalogue; {}: all are"
    )
    caps: Caps = Field(
        NO_CAPS, description="impressions, taken: what a user is not shown again; {}: nothing is counted"
    )
    budgets: Budgets = Field({}, description="item -> impressions, per (total or day): how often it is shown at all")


class LoopSettings(LoopChanges):
    """The settings of a loop, which fit together. They may change while it runs."""

    @model_validator(mode="after")
    def _default_in_range(self) -> LoopSettings:
        low, high = self.reward_range
        if not low <= self.default_reward <= high:
            raise ValueError(f"{self.default_reward:g} lies outside reward_range [{low:g}, {high:g}]; give both")
        return self

    @property
    def wait_ms(self) -> int:
        return round(self.wait_time * 1000)

    @property
    def ledger_ms(self) -> int:
        return round(self.ledger_time * 1000)

    @property
    def activity_ms(self) -> int:
        return round(self.activity_time * 1000)

    @property
    def activity_above(self) -> float | None:
        """The reward above which an item counts as activity of its user; None: none does."""
        return self.default_reward if self.reward_activity else None

    @property
    def early_ms(self) -> int:
        return round(self.early_time * 1000)
