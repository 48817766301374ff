"""What goes over the wire. Bodies are parsed by orjson, once, and validated by these models on every path."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from service.decide.features import FeatureSchema
from service.loop import LOOP_NAME, LoopSettings

Id = Annotated[str, Field(min_length=1, max_length=128)]
Name = Annotated[str, Field(pattern=f"^{LOOP_NAME.pattern}$", description="lower-case letters, digits, . _ -")]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Features = dict[str, Any]

BATCH = 1000


class Body(BaseModel):
    """A request body; unknown fields are refused, so that a typing error does not pass for a default."""

    model_config = ConfigDict(extra="forbid")


def _example(**example: Any) -> ConfigDict:
    return ConfigDict(extra="forbid", json_schema_extra={"examples": [example]})


# ---- the hot routes


class Candidate(Body):
    """An item that is eligible in this request, with features of its own if it has any."""

    id: Id
    features: Features | None = None


class RecommendRequest(Body):
    """Every field is optional."""

    model_config = _example(
        loop="default",
        user_id="u17",
        context={"persona": "cat_connoisseur", "hour": 14},
        candidates=["sku-1", {"id": "sku-9", "features": {"category": "Cat Toy", "price": 4.5}}],
        exclude=["sku-3"],
        k=1,
    )

    loop: str = "default"
    user_id: Id | None = None
    context: Features = Field(default_factory=dict, description="any JSON object: user, device, session")
    candidates: list[Id | Candidate] | None = Field(None, description="default: the loop's catalogue")
    exclude: list[Id] = Field(default_factory=list, description="items not to be recommended to this user now")
    k: int = Field(1, ge=1, description="how many items to recommend")
    decision_id: Id | None = Field(None, description="your own id; repeating it returns the stored decision unchanged")


class RecommendedItem(BaseModel):
    id: str
    score: float = Field(description="the policy's own estimate; comparable within one reply only")
    propensity: float = Field(description="the exact probability with which this item was drawn for its place")


class RecommendReply(BaseModel):
    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "decision_id": "01JBX8E9Z3T4V5W6X7Y8Z9A0B1",
                    "loop": "default",
                    "policy": "adaptive",
                    "version": 42,
                    "items": [{"id": "sku-9", "score": 0.41, "propensity": 0.9902}],
                    "degraded": False,
                }
            ]
        }
    )

    decision_id: str
    loop: str
    policy: str
    version: int
    items: list[RecommendedItem]
    degraded: bool = Field(description="true: answered from memory, the store does not answer")


class Feedback(Body):
    """A client's report about one item of a decision."""

    model_config = _example(
        decision_id="01JBX8E9Z3T4V5W6X7Y8Z9A0B1", item_id="sku-9", reward=1.0, feedback_id="click-8812"
    )

    loop: str = "default"
    decision_id: Id
    item_id: Id | None = Field(None, description="default: the first item of the slate")
    reward: Finite
    feedback_id: Id | None = Field(None, description="your idempotency key: a repeat changes nothing")


class FeedbackBatch(Body):
    """Up to 1000 reports, answered one by one."""

    loop: str = Field("default", description="the loop of every element that names none")
    feedback: list[Any] = Field(min_length=1, max_length=BATCH)


class FeedbackReply(BaseModel):
    status: Literal["accepted", "duplicate", "late"]


class FeedbackResult(BaseModel):
    status: Literal["accepted", "duplicate", "late", "rejected"]
    code: str | None = Field(None, description="of a rejected element")
    detail: str | None = None


class FeedbackBatchReply(BaseModel):
    results: list[FeedbackResult] = Field(description="in the order of the request")


# ---- items, events


class Item(Body):
    model_config = _example(id="sku-9", features={"category": "Cat Toy", "price": 4.5})

    id: Id
    features: Features = Field(default_factory=dict)


class ItemFeatures(Body):
    features: Features = Field(default_factory=dict)


class ItemBatch(Body):
    items: list[Item] = Field(min_length=1, max_length=BATCH)

    @model_validator(mode="after")
    def _once(self) -> ItemBatch:
        seen: set[str] = set()
        for item in self.items:
            if item.id in seen:
                raise ValueError(f"item {item.id!r} stands twice in one request")
            seen.add(item.id)
        return self


class ItemPage(BaseModel):
    items: list[Item]
    version: int = Field(description="of the catalogue")
    next: str | None = Field(description="pass as `after` for the next page; null: this was the last")


class Changed(BaseModel):
    """A change, and which workers serve it already: all live ones, unless `missing` names some."""

    epoch: int
    adopted: bool
    workers: int
    missing: list[str]


class ImportedEvent(Body):
    """One row of a historical log."""

    model_config = _example(
        event_id="2026-10-01/17",
        user_id="u17",
        context={"persona": "cat_connoisseur"},
        item_id="sku-9",
        reward=1,
        propensity=0.02,
        at="2026-10-01T09:12:00Z",
    )

    event_id: Id = Field(description="a repeated import of this id changes nothing")
    user_id: Id | None = None
    context: Features = Field(default_factory=dict)
    item_id: Id
    features: Features | None = Field(None, description="default: the catalogue's")
    reward: Finite
    propensity: float | None = Field(None, gt=0, le=1, allow_inf_nan=False)
    at: datetime | None = Field(None, description="ISO 8601 or unix seconds; events are learned in the order sent")


class EventBatch(Body):
    events: list[ImportedEvent] = Field(min_length=1, max_length=BATCH)


class ImportReply(BaseModel):
    imported: int
    duplicates: int


# ---- loops, policies, traffic


class LoopBody(LoopSettings):
    """A loop's settings and feature schema; what is left out keeps its value, or its default in a new loop."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "wait_time": 600,
                    "exploration_floor": 0.01,
                    "schema": {
                        "context": {
                            "persona": {"type": "categorical", "levels": ["cat_connoisseur", "new_puppy_parent"]}
                        },
                        "item": {"category": {"type": "categorical", "levels": ["Cat Toy", "Dog Food"]}},
                        "crosses": [["persona", "category"]],
                    },
                }
            ]
        },
    )

    feature_schema: FeatureSchema | None = Field(None, alias="schema")

    @field_validator("default_reward")
    @classmethod
    def _default_in_range(cls, value: float, info: ValidationInfo) -> float:
        return value  # checked against the loop's own range, which need not be in this body


class LoopReply(BaseModel):
    loop: str
    settings: LoopSettings
    feature_schema: dict[str, Any] = Field(serialization_alias="schema")
    features: int = Field(description="d, the length of an encoded row")
    encoder: str = Field(description="version of the encoder")
    catalogue: int = Field(description="version of the catalogue")
    epoch: int
    traffic: dict[str, float]


class PolicyBody(Body):
    model_config = _example(name="linucb-bold", kind="linucb", params={"alpha": 1.5})

    name: Name
    kind: str
    params: dict[str, Any] = Field(default_factory=dict)


class Alarm(BaseModel):
    number: int = Field(description="from 1")
    at: float = Field(description="unix time of the event that gave it away")
    events: int = Field(description="events that the policy had learned by then")
    position: str = Field(description="of that event in the log")
    reaction: Literal["reset", "succession", "recall", "none"] = Field(
        description="reset: all that it had learned was forgotten; succession: all but the last few thousand events; "
        "recall: it goes on from what it knew before an earlier alarm; none: it learns in trainings only"
    )


class PolicyReply(BaseModel):
    name: str
    kind: str
    params: dict[str, Any]
    version: int = Field(description="0: it has published nothing yet and would serve uniformly")
    events: int = Field(description="events learned")
    lag: int = Field(description="events in the log that it has still to learn")
    bytes: int = Field(description="of its learned state and newest snapshot")
    share: float = Field(description="of the traffic; 0 = shadow: it learns, it does not serve")
    pinned: int | None = Field(description="the version that a rollback fixed")
    kept_versions: list[int] = Field(description="versions that a rollback can go to, oldest first")
    published: float | None = Field(description="unix time of the newest version")
    alarms: list[Alarm] = Field(description="changes of the world that it noticed: the newest 100, oldest first")
    summary: dict[str, Any] | None = Field(None, description="what the policy tells of its learned state")


class PolicyList(BaseModel):
    policies: list[PolicyReply]
    kinds: list[str] = Field(description="kinds that POST /policies can make")


class Rollback(Body):
    version: int = Field(ge=1)


Traffic = dict[Name, Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]]
