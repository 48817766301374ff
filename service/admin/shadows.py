"""What is known of policies in the shadow, as people see it."""

from __future__ import annotations

from pydantic import BaseModel, Field
from redis.asyncio import Redis

from service.store import shadow_store
from service.store.keys import Keys


class IntervalReply(BaseModel):
    estimate: float
    low: float
    high: float


class ShadowEstimate(BaseModel):
    """An estimator's answer. Its intervals hold with 95 %, each, however often they are looked at."""

    reward: IntervalReply = Field(description="of a decision, had the shadow served")
    difference: IntervalReply = Field(description="that, less what served")


class ShadowRefusal(BaseModel):
    code: str = Field(description="few | thin_support | slates | gone | catalogue | outside")
    why: str


class ShadowStatus(BaseModel):
    """What a policy in the shadow would have got, beside what served."""

    says: str
    since: float = Field(description="unix time: decisions from then on count, of the newest 20 000 that were judged")
    why: str = Field(description="it began then")
    decisions: int = Field(description="judged and settled")
    every: int = Field(description="one decision in so many is judged")
    effective: float = Field(description="decisions that they count for")
    left_out: dict[str, int] = Field(description="reason -> decisions that could not be judged")
    served: IntervalReply | None = Field(description="reward of these decisions; null: too few")
    dr: ShadowEstimate | None = Field(description="doubly robust; its intervals are asymptotic. null: see `refusal`")
    ips: ShadowEstimate | None = Field(description="its intervals assume nothing; null: too few")
    snips: float | None = Field(description="reward by the self-normalized estimator")
    refusal: ShadowRefusal | None


async def shadows(redis: Redis, keys: Keys) -> dict[str, ShadowStatus]:
    """Return policy -> what is known of it, of those in the shadow."""
    found = await shadow_store.read_estimates(redis, keys)
    return {name: ShadowStatus.model_validate(said) for name, said in found.items()}
