"""A loop's settings: one decision problem, with its own catalogue, policies and log."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator

LOOP_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")

Finite = Annotated[float, Field(allow_inf_nan=False)]


def _ordered(value: tuple[float, float]) -> tuple[float, float]:
    if value[0] >= value[1]:
        raise ValueError("the lower end must be below the upper end")
    return value


class LoopSettings(BaseModel):
    """What may differ from loop to loop, and may change while it runs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    reward_range: Annotated[tuple[Finite, Finite], AfterValidator(_ordered)] = Field(
        (0.0, 1.0), description="rewards outside are refused"
    )
    wait_time: float = Field(600.0, gt=0, le=7 * 86_400, description="seconds until a decision gets its default reward")
    default_reward: Finite = Field(0.0, description="the reward of a decision that nobody reported on")
    aggregation: Literal["first", "sum", "max", "last"] = Field(
        "first", description="how several rewards become one; all but `first` are settled when the wait is over"
    )
    exploration_floor: float = Field(
        0.01, ge=0, le=1, description="probability mass spread evenly over the eligible candidates"
    )
    retention: int = Field(1_000_000, ge=1000, description="events kept in the log")
    ledger_time: float = Field(
        600.0, gt=0, le=30 * 86_400, description="seconds that a settled decision stays readable, after its wait time"
    )

    @field_validator("default_reward")
    @classmethod
    def _default_in_range(cls, value: float, info: ValidationInfo) -> float:
        low, high = info.data.get("reward_range", (value, value))
        if not low <= value <= high:
            raise ValueError(f"{value:g} lies outside reward_range [{low:g}, {high:g}]")
        return value

    @property
    def wait_ms(self) -> int:
        return round(self.wait_time * 1000)

    @property
    def ledger_ms(self) -> int:
        return round(self.ledger_time * 1000)
