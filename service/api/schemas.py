"""The models of requests and replies. Bodies are parsed by orjson, once, and validated by these models on every path.

`null` means "not given" wherever a field is optional. Ids may be sent as integers; they come back as text.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    GetPydanticSchema,
    Tag,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import core_schema

from service.admin.experiments import ExperimentReply
from service.admin.releases import ReleaseStatus
from service.admin.shadows import ShadowStatus
from service.admin.status import Alarm
from service.api.problems import ID, MANY, OBJECT, ONE, Problem
from service.loop import LOOP_NAME, Finite, LoopChanges, LoopSettings
from service.policies import KindInfo
from service.records import Event
from service.represent.learned import LearnedSchema
from service.represent.schema import FeatureSchema
from service.rules import Rules
from service.store.activity import Sent
from service.store.codec import read_retrieved
from service.store.edges import SentEdge

ID_LENGTH, LOOP_LENGTH = 128, 64


def _id_schema(*_: Any) -> core_schema.CoreSchema:
    """Take texts, and integers as their text. A float has lost what an id of many digits was, and is refused."""
    return core_schema.union_schema(
        [
            core_schema.str_schema(min_length=1, max_length=ID_LENGTH, strict=True),
            core_schema.no_info_after_validator_function(str, core_schema.int_schema(strict=True)),
        ],
        mode="left_to_right",  # a text is never tried as an integer: this is the hot path
        custom_error_type="invalid_id",
        custom_error_message=f"an id is a text of 1 to {ID_LENGTH} characters, or an integer",
    )


Id = Annotated[
    str,
    GetPydanticSchema(_id_schema),
    WithJsonSchema({"type": "string", "minLength": 1, "maxLength": ID_LENGTH}),
]
Name = Annotated[str, Field(pattern=f"^{LOOP_NAME.pattern}$", description="lower-case letters, digits, . _ -")]
LoopName = Annotated[str, Field(max_length=LOOP_LENGTH)]
Features = Annotated[dict[str, Any], BeforeValidator(lambda value: {} if value is None else value)]

BATCH = 1000
REQUESTS = 100  # of one POST /recommend/batch


def _without_nulls(given: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in given.items() if value is not None}


def _only_given(body: Any, part: str) -> Any:
    """Leave out what is null in a body, and in this part of it."""
    if not isinstance(body, dict):
        return body
    given = _without_nulls(body)
    if isinstance(given.get(part), dict):
        given[part] = _without_nulls(given[part])
    return given


class Body(BaseModel):
    """A request body; unknown fields are refused, so that a typing error does not pass for a default."""

    model_config = ConfigDict(extra="forbid")


def _example(**example: Any) -> ConfigDict:
    return ConfigDict(extra="forbid", json_schema_extra={"examples": [example]})


# ---- the hot routes


@dataclass(slots=True)
class Candidate:
    """An item that is eligible in this request, with features of its own if it has any."""

    # A dataclass, as there are many in one request: pydantic makes it faster than a model.
    __pydantic_config__ = ConfigDict(extra="forbid")

    id: Id
    features: dict[str, Any] | None = None


def _id_or_object(value: Any) -> str:
    return OBJECT if isinstance(value, (dict, Candidate)) else ID


IdOrCandidate = Annotated[
    Annotated[Id, Tag(ID)] | Annotated[Candidate, Tag(OBJECT)],
    Discriminator(_id_or_object),
]


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

    loop: LoopName | None = Field(None, description="default: `?loop=`, else `default`")
    user_id: Id | None = None
    context: dict[str, Any] | None = Field(None, description="any JSON object: user, device, session")
    candidates: list[IdOrCandidate] | None = Field(None, description="default: the loop's catalogue")
    exclude: list[Id] | None = Field(None, description="items not to be recommended to this user now")
    k: int | None = Field(None, strict=True, ge=1, description="how many items to recommend; default 1")
    rules: Rules | None = Field(None, description="filter, boost, pin, at_most: beside those of the loop")
    explain: bool | None = Field(None, strict=True, description="true: the reply says what chance each candidate had")
    decision_id: Id | None = Field(None, description="your own id; repeating it returns the stored decision unchanged")
    displayed: bool | None = Field(
        None,
        strict=True,
        description="default true. false: it is shown later, if at all; it teaches nothing until "
        "POST /decisions/{id}/display, or a report on it",
    )


class RecommendedItem(BaseModel):
    id: str
    score: float = Field(description="the policy's own estimate; comparable within one reply only")
    propensity: float = Field(description="the exact probability with which this item was drawn for its place")


class CandidateSource(BaseModel):
    """A source of the funnel that found a candidate."""

    source: str
    rank: int = Field(description="among the items that the source found, from 1")
    score: float = Field(description="of the source; comparable within one source only")


class CandidateChance(BaseModel):
    """What chance of the first place a candidate had."""

    id: str
    score: float
    propensity: float = Field(description="of the first place; 0: the rules kept it from there")
    rules: list[str] = Field(description="those that concern it")
    sources: list[CandidateSource] | None = Field(
        None, description="where the funnel had it from; null: no funnel narrowed the candidates"
    )


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
    explanation: list[CandidateChance] | None = Field(
        None,
        description="only where it was asked for: at most 1 000 candidates, the likeliest first; null: the policy or "
        "the catalogue has moved on since the decision",
    )


class RecommendBatch(Body):
    """Up to 100 requests, answered one by one."""

    model_config = _example(loop="default", requests=[{"user_id": "u17"}, {"user_id": "u18", "k": 3}])

    loop: LoopName | None = Field(None, description="the loop of every element that names none")
    requests: list[Any] = Field(
        min_length=1, max_length=REQUESTS, description="each as the body of POST /recommend; one may fail by itself"
    )


class RecommendBatchReply(BaseModel):
    results: list[RecommendReply | Problem] = Field(
        description="in the order of the requests, each as POST /recommend would answer it: a reply, or a problem"
    )


class Feedback(Body):
    """A client's report about one item of a decision."""

    model_config = _example(
        decision_id="01JBX8E9Z3T4V5W6X7Y8Z9A0B1", item_id="sku-9", reward=1.0, feedback_id="click-8812"
    )

    loop: LoopName | None = Field(
        None, description="default: `?loop=`, else the loop of a decision id that the service made, else `default`"
    )
    decision_id: Id
    item_id: Id | None = Field(None, description="default: the first item of the slate")
    reward: Finite
    feedback_id: Id | None = Field(
        None, description="your idempotency key, unique within the decision: a repeat changes nothing"
    )
    replaces: Id | None = Field(
        None,
        description="the `feedback_id` of a report that this one corrects, while the wait lasts; not with `first`",
    )


class FeedbackBatch(Body):
    """Up to 1000 reports, answered one by one."""

    loop: LoopName | None = Field(None, description="the loop of every element that names none")
    feedback: list[Any] = Field(min_length=1, max_length=BATCH)


def _one_or_many(value: Any) -> str:
    return MANY if isinstance(value, FeedbackBatch) or (isinstance(value, dict) and "feedback" in value) else ONE


FeedbackBody = Annotated[
    Annotated[Feedback, Tag(ONE)] | Annotated[FeedbackBatch, Tag(MANY)],
    Discriminator(_one_or_many),
]


class FeedbackReply(BaseModel):
    status: Literal["accepted", "duplicate", "late", "early"]


class DisplayReply(BaseModel):
    status: Literal["displayed", "early"] = Field(
        description="early: it waits for its decision, which is not there yet"
    )


class FeedbackResult(BaseModel):
    status: Literal["accepted", "duplicate", "late", "early", "rejected"]
    code: str | None = Field(None, description="of a rejected element")
    detail: str | None = None


class FeedbackBatchReply(BaseModel):
    results: list[FeedbackResult] = Field(description="in the order of the request")


# ---- items, events, activity


class Item(Body):
    model_config = _example(id="sku-9", features={"category": "Cat Toy", "price": 4.5})

    id: Id
    features: Features = Field(default_factory=dict)


class BudgetReply(BaseModel):
    """The budget of an item."""

    impressions: int
    per: Literal["total", "day"]
    used: int = Field(description="impressions that were decided, of a budget a day those of today (UTC)")
    left: int


class OneItem(Item):
    budget: BudgetReply | None = Field(
        None, description="of `budgets` in the loop's settings; left out where it has none"
    )


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
    count: int = Field(description="items of the whole catalogue")
    version: int = Field(description="of the catalogue; a page shows one version, and the next may show a later one")
    next: str | None = Field(description="pass as `after` for the next page; null: this was the last")


class DeadLetterReply(BaseModel):
    policy: str = Field(description="the policy that could not learn it")
    position: str = Field(description="in the log")
    why: str


class DeadLetterList(BaseModel):
    dead_letters: list[DeadLetterReply] = Field(description="at most 1 000 a policy, in the order of the log")


class RetryBody(Body):
    model_config = _example(policy="linucb", positions=["1764201600000-0"])

    policy: str | None = Field(None, description="null: every policy of the loop")
    positions: list[str] | None = Field(None, max_length=1000, description="null: all that are listed")


class RetryReply(BaseModel):
    retried: int = Field(
        description="dead letters that were put into the log once more; those fail or are learned there"
    )


class Changed(BaseModel):
    """A change that was made. All live workers serve it, unless `missing` names some."""

    epoch: int
    adopted: bool
    workers: int
    missing: list[str]


class LedgerItem(BaseModel):
    """One item of a decision's slate."""

    id: str
    score: float
    propensity: float


class AssignmentReply(BaseModel):
    """Where a decision fell in an experiment."""

    experiment: str
    id: str
    version: int
    arm: str = Field(description="empty: it was left out, and served by the loop's traffic")
    share: float = Field(description="the chance of every unit to fall there")


class RetrievedRecord(BaseModel):
    """The candidates that a funnel found."""

    version: int = Field(description="of the counts that its sources were made from; 0: there were none")
    rows: list[int] = Field(
        description="places in the catalogue of the decision's version, by the ids in order, from 0"
    )
    embedding: int = Field(0, description="version of the learned embeddings; 0: there were none")

    @model_validator(mode="before")
    @classmethod
    def _stored(cls, stored: Any) -> Any:
        return read_retrieved(stored)._asdict()


class DecisionRecord(BaseModel):
    """A decision as it was stored, with everything that a replay of it needs."""

    v: int = Field(1, description="format of the record")
    decision_id: str
    loop: str
    at: datetime
    user_id: str | None
    context: dict[str, Any]
    candidates: list[tuple[str, dict[str, Any] | None]] | None = Field(
        description="pairs of id and own features; null: the catalogue"
    )
    exclude: list[str]
    catalogue: int = Field(description="version of the catalogue")
    n: int = Field(description="eligible candidates")
    k: int
    policy: str
    version: int
    encoder: str = Field(description="version of the encoder")
    exploration_floor: float
    seed: str
    items: list[LedgerItem]
    rules: dict[str, Any] | None = Field(None, description="of the loop and of the request")
    left: list[int] | None = Field(None, description="under rules: candidates for each place")
    experiment: AssignmentReply | None = Field(None, description="null: it took part in none")
    retrieved: RetrievedRecord | None = Field(None, description="what the funnel found; null: it narrowed nothing")
    seen: list[str] | None = Field(
        None,
        description="where the log of activity ended when the user's state was read, then his last items where a "
        "source asks for them; null: it was not read",
    )
    removed: dict[Literal["taken", "shown", "spent"], list[str]] | None = Field(
        None, description="items that limits allowed no more, by the sort of limit; null: none"
    )
    attempt: int = Field(0, description="decisions before it that met a limit when they were to be stored")


class LedgerFeedback(BaseModel):
    """One report on a decision."""

    item_id: str
    reward: float
    feedback_id: str | None
    status: Literal["accepted", "late", "replaced"]
    at: float = Field(description="unix seconds")
    replaces: str | None = Field(None, description="the report that this one corrects")


class DecisionLedger(BaseModel):
    """A decision, its status, and every report on it."""

    decision: DecisionRecord
    status: Literal["undisplayed", "pending", "rewarded", "defaulted", "late"]
    deadline: float = Field(description="unix seconds; feedback after it is late, and so is a display")
    feedback: list[LedgerFeedback]


def _time(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("a boolean is no time")
    return value


def _in_utc(at: datetime) -> datetime:
    return at if at.tzinfo else at.replace(tzinfo=UTC)


Time = Annotated[datetime, BeforeValidator(_time), AfterValidator(_in_utc)]  # of no zone: UTC, wherever the server is


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

    event_id: Id = Field(
        description="a repeated import of this id changes nothing. The loop remembers as many ids as its `retention`"
    )
    user_id: Id | None = None
    context: Features = Field(default_factory=dict)
    item_id: Id
    features: Features | None = Field(None, description="default: the catalogue's")
    reward: Finite
    propensity: Finite | None = Field(None, gt=0, le=1)
    at: Time | None = Field(
        None,
        description="ISO 8601 (UTC, unless it names another zone) or unix seconds. Events are learned in the order of "
        "their times, so import the oldest first; without times, in the order sent",
    )


class EventBatch(Body):
    events: list[ImportedEvent] = Field(min_length=1, max_length=BATCH)


class ImportReply(BaseModel):
    imported: int
    duplicates: int


class ActivityElement(Body):
    """What a user did with an item."""

    user_id: Id
    item_id: Id
    type: str = Field(
        strict=True,
        pattern=r"^[a-z][a-z0-9_-]{0,31}$",
        description="view, click, cart, buy, or a word of your own: lower-case letters, digits, _ and -",
    )
    at: Time | None = Field(
        None,
        description="ISO 8601 (UTC, unless it names another zone) or unix seconds; default: now. A time to come counts "
        "as now",
    )
    activity_id: Id | None = Field(
        None, description="your idempotency key, unique within the user: a repeat changes nothing"
    )

    def sent(self) -> Sent:
        """Return it as the store takes it."""
        at = None if self.at is None else round(self.at.timestamp() * 1000)
        return Sent(self.user_id, self.item_id, self.type, at, self.activity_id)


class ActivityBatch(Body):
    """Up to 1000 activities, answered one by one."""

    model_config = _example(
        loop="default", activity=[{"user_id": "u17", "item_id": "sku-9", "type": "click", "activity_id": "c-8812"}]
    )

    loop: LoopName | None = Field(None, description="default: `?loop=`, else `default`")
    activity: list[Any] = Field(min_length=1, max_length=BATCH, description="each as ActivityElement")


class ElementResult(BaseModel):
    status: Literal["accepted", "duplicate", "rejected"]
    code: str | None = Field(None, description="of a rejected element")
    detail: str | None = None


class ElementsReply(BaseModel):
    results: list[ElementResult] = Field(description="in the order of the request")


Kind = Annotated[
    str,
    Field(
        strict=True,
        pattern=r"^[a-z][a-z0-9_-]{0,31}$",
        description="friend, follows, or a word of your own: lower-case letters, digits, _ and -",
    ),
]
MOST_WEIGHT = 1e6


class EdgeElement(Body):
    """That a user knows another."""

    user: Id = Field(alias="from", description="user who knows")
    to: Id = Field(description="user who is known; another one")
    kind: Kind = "friend"
    weight: Finite = Field(1.0, gt=0, le=MOST_WEIGHT, description="how much the other counts; the lightest go first")
    at: Time | None = Field(
        None,
        description="ISO 8601 (UTC, unless it names another zone) or unix seconds; default: now. A time to come counts "
        "as now. One that is older than what is kept changes nothing",
    )

    @model_validator(mode="after")
    def _no_loop(self) -> EdgeElement:
        if self.user == self.to:
            raise ValueError("an edge leads from a user to another one")
        return self

    def sent(self) -> SentEdge:
        """Return it as the store takes it."""
        at = None if self.at is None else round(self.at.timestamp() * 1000)
        return SentEdge(self.user, self.to, self.kind, self.weight, at)


class EdgeBatch(Body):
    """Up to 1000 edges, answered one by one."""

    model_config = _example(loop="default", edges=[{"from": "u17", "to": "u4", "kind": "friend", "weight": 2}])

    loop: LoopName | None = Field(None, description="default: `?loop=`, else `default`")
    edges: list[Any] = Field(min_length=1, max_length=BATCH, description="each as EdgeElement")


class EdgeDeleted(BaseModel):
    status: Literal["deleted"]


# ---- loops, policies, traffic


DECLARED, LEARNED = "<declared>", "<learned>"  # forms of a schema


def _form(schema: Any) -> str:
    """Return the form of a schema: one that has blocks is like those that the service learns."""
    return LEARNED if isinstance(schema, LearnedSchema) or "blocks" in schema else DECLARED


class LoopBody(LoopChanges):
    """A loop's settings and feature schema. A setting that is not given keeps its value, or its default at first."""

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

    feature_schema: (
        Annotated[
            Annotated[FeatureSchema, Tag(DECLARED)] | Annotated[LearnedSchema, Tag(LEARNED)], Discriminator(_form)
        ]
        | None
    ) = Field(None, alias="schema")

    @model_validator(mode="before")
    @classmethod
    def _given(cls, body: Any) -> Any:
        """Leave out what is null, among the settings and among the parts of the schema: it is not given."""
        return _only_given(body, "schema")


class ChangeReply(BaseModel):
    """An administrative change."""

    id: str
    at: float = Field(description="unix time, by the clock of Redis")
    by: str = Field(description="name of the key; `anybody` where no keys are set; or the command that made it")
    what: str
    before: Any = Field(description="null: there was nothing; {left_out} says the size of what is large")
    after: Any = Field(description="null: there is nothing now")


class ChangeList(BaseModel):
    changes: list[ChangeReply] = Field(description="newest first")
    next: str | None = Field(description="pass as `before` for the next page; null: this was the last")


class LoopList(BaseModel):
    loops: list[str]


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

    name: Name | None = Field(None, description="default: the kind")
    kind: str
    params: Features = Field(default_factory=dict)


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
    release: ReleaseStatus | None = Field(description="its newest release, in short")
    shadow: ShadowStatus | None = Field(description="what it would have got; null: it serves, or is too new")
    summary: dict[str, Any] | None = Field(None, description="what the policy tells of its learned state")


class PolicyList(BaseModel):
    policies: list[PolicyReply]
    kinds: list[str] = Field(description="kinds that POST /policies can make; GET /kinds says what they are")


class KindList(BaseModel):
    kinds: list[KindInfo]


# ---- releases


class GuardBody(Body):
    reward_drop: Finite = Field(
        0.02,
        gt=0,
        description="of a decision's mean reward, in its units: a step goes on when a larger one is excluded",
    )
    lag: int = Field(10_000, strict=True, ge=0, description="events that the policy may have still to learn")
    latency_ms: Finite | None = Field(None, gt=0, description="at most 5 % of its decisions may take longer")
    degraded: Finite | None = Field(None, ge=0, le=1, description="share of its decisions that may be degraded")


class ReleaseBody(Body):
    model_config = _example(steps=[0.01, 0.1, 0.5, 1], guard={"reward_drop": 0.02})

    steps: list[Annotated[Finite, Field(gt=0, le=1)]] = Field(
        default=[0.01, 0.1, 0.5, 1.0], min_length=1, max_length=20, description="shares of the traffic, rising"
    )
    guard: GuardBody = Field(default_factory=GuardBody)
    confidence: Finite = Field(0.95, ge=0.5, le=0.9999, description="that no step goes the wrong way")

    @model_validator(mode="before")
    @classmethod
    def _given(cls, body: Any) -> Any:
        """Leave out what is null, also in the guard: it is not given."""
        return _only_given(body, "guard")


class GroupSeen(BaseModel):
    events: int = Field(description="decisions of this step with their final rewards; of a slate each item")
    users: float = Field(description="how many of them count: one who has most of the decisions counts for little")
    reward: float | None = Field(description="mean of a decision")


class Range(BaseModel):
    estimate: float
    low: float
    high: float


class LookReply(BaseModel):
    at: float
    share: float
    course: Literal["go on", "wait", "go back"]
    why: str
    policy: GroupSeen = Field(description="the policy's users")
    others: GroupSeen
    difference: Range | None = Field(description="in reward, policy - others; holds at every look; null: too few users")
    lag: int = Field(description="events that the policy had still to learn")
    decisions: int = Field(description="that the policy answered since the release began, as the next two")
    slow: int = Field(description="those that took longer than the guard's latency")
    degraded: int


class StepTaken(BaseModel):
    at: float
    share: float
    why: str


class ReleaseReply(BaseModel):
    id: str
    policy: str
    by: str
    state: Literal["running", "done", "rolled_back", "cancelled"]
    why: str = Field(description="what the newest look said, or why it ended")
    share: float = Field(description="of the traffic, that the release gave last")
    step: int = Field(description="at which it stands or ended, from 1 on")
    steps: list[float]
    guard: GuardBody
    confidence: float
    before: dict[str, float] = Field(description="the traffic to which it goes back")
    created: float = Field(description="unix time, as all times here")
    begun: float = Field(description="when this step began")
    counting: bool = Field(description="decisions count; false: not every worker has adopted the step yet, or it ended")
    ended: float | None
    taken: list[StepTaken] = Field(description="changes of the traffic")
    looks: list[LookReply] = Field(
        description="oldest first, at most 50: the newest, and of those before it each that saw a tenth more events"
    )


class TrainingReply(BaseModel):
    position: str = Field(description="of the request to train, in the log")


# ---- evaluations


class TargetBody(Body):
    policy: Name | None = Field(None, description="a policy as it is, judged by what it has not learned")
    version: int | None = Field(None, strict=True, ge=1, description="of the policy; default: the newest")
    kind: str | None = Field(None, description="a kind of policy that would have learned along")
    params: Features = Field(default_factory=dict, description="of the kind")


class EvaluationBody(Body):
    model_config = _example(
        targets=[{"kind": "linucb", "params": {"alpha": 0.5}}, {"policy": "adaptive", "version": 9}]
    )

    targets: list[TargetBody] = Field(min_length=1, max_length=10)
    estimator: str = Field("ips", description="ips, clipped-ips, snips, dm, dr or switch-dr")
    interval: str = Field(
        "bootstrap", description="bootstrap: for one look; anytime: for as many as you like; bernstein: for small logs"
    )
    confidence: Finite = Field(0.95, ge=0.5, le=0.9999, description="that all differences lie in their intervals")
    decisions: int = Field(100_000, strict=True, ge=1, le=1_000_000, description="newest decisions to judge")
    segment: Annotated[str, Field(min_length=1, max_length=256)] | None = Field(
        None, description="a field of the context, such as `device.os`: its 10 most frequent levels are judged, too"
    )


class Refused(BaseModel):
    code: str
    why: str


class Foundation(BaseModel):
    decisions: int
    users: int
    effective: float = Field(description="sample size: (Σ w)² / Σ w², w being the weights")
    mean_weight: float = Field(description="1 is expected")
    unsupported: float = Field(description="share of the target's choices that could not be drawn")
    largest: list[float] = Field(description="weights")
    skewed: float = Field(description="skewness of weighted rewards / √decisions")


class Finding(BaseModel):
    verdict: str | None = Field(description="in plain words; null: refused")
    settled: bool = Field(description="0 lies outside the interval of the difference")
    refusal: Refused | None
    logged: Range | None = Field(description="reward of a decision of what served")
    estimate: Range | None = Field(description="reward of a decision of the target")
    difference: Range | None
    missing: int | None = Field(description="decisions more that would settle it, about")
    diagnostics: Foundation | None


class SegmentFinding(Finding):
    segment: str


class Answer(Finding):
    target: str
    left_out: dict[str, int] = Field(description="why -> decisions that were not judged")
    segments: list[SegmentFinding]


class PropensitiesFound(BaseModel):
    mean: float = Field(description="of 1 / (n p): 1 is expected")
    half_width: float
    passed: bool


class EvaluationResult(BaseModel):
    decisions: int = Field(description="in the log")
    confidence: float = Field(description="of each interval, so that all hold together")
    segment_confidence: float = Field(description="the same of the intervals of segments")
    propensities: dict[str, PropensitiesFound] = Field(description="policy -> check of what it logged")
    answers: list[Answer] = Field(description="best first, refused last")


class EvaluationFailed(BaseModel):
    code: str
    detail: str


class EvaluationReply(BaseModel):
    id: str
    status: Literal["waiting", "running", "done", "failed", "cancelled"]
    request: EvaluationBody
    created: float = Field(description="unix time, as the next two")
    started: float | None
    ended: float | None
    done: int = Field(description="decisions judged, over all targets")
    total: int | None = Field(description="decisions to judge; null: not known yet")
    result: EvaluationResult | None
    error: EvaluationFailed | None


class EvaluationList(BaseModel):
    evaluations: list[EvaluationReply] = Field(description="newest first; the newest 20 are kept")


class MarkBody(Body):
    """What happened."""

    model_config = _example(text="spring campaign", at=1764275400.0)

    text: str = Field(min_length=1, max_length=200, strict=True)
    at: Finite | None = Field(None, description="unix seconds; default: now")


# ---- experiments


class ArmBody(Body):
    policy: Name
    share: Finite = Field(ge=0.001, le=0.999, description="of the units that take part; those of all arms sum to 1")


class ExperimentBody(Body):
    model_config = _example(
        arms={"control": {"policy": "adaptive", "share": 0.5}, "linear": {"policy": "linucb", "share": 0.5}},
        guardrails={"reported": 0.05},
        minimum_effect=0.02,
    )

    arms: dict[str, ArmBody] = Field(description="2 to 10, one of them called `control`")
    learning: Literal["shared", "disjoint"] = Field(
        "shared", description="disjoint: an arm's policy does not learn from what another arm's users did"
    )
    unit: Literal["user", "session", "decision"] = Field(
        "user", description="what falls into an arm; a request without user_id is no user's, and takes no part"
    )
    session: str = Field(
        "session_id",
        min_length=1,
        max_length=256,
        description="field of the context that names the session; without it a request is of none, and takes no part",
    )
    metric: str = Field(
        "reward",
        description="reward: of an item shown; reported: share of items shown with feedback; shown: items of a unit",
    )
    guardrails: dict[str, Annotated[Finite, Field(gt=0, lt=1)]] = Field(
        default_factory=dict, description="metric -> drop that is tolerated, as a share of the control's mean"
    )
    minimum_effect: Finite = Field(
        0.05, ge=0.001, le=10, description="the smallest lift that matters, as a share of the control's mean"
    )
    confidence: Finite = Field(0.95, ge=0.5, le=0.9999, description="that the intervals hold, at every look at once")
    holdout: Finite = Field(0.0, ge=0, le=0.999, description="share of the units that is left to the loop's traffic")
    starts: Time | None = Field(None, description="ISO 8601 or unix seconds; default: now, or as it is")
    ends: Time | None = Field(None, description="null: until it is ended")


class ExperimentList(BaseModel):
    experiments: list[ExperimentReply] = Field(description="oldest first; at most 20 are kept")


class Ready(BaseModel):
    status: Literal["ready"]
    loops: int = Field(description="how many are loaded; their names are for those who have a key")


class Alive(BaseModel):
    status: Literal["ok"]


class Rollback(Body):
    version: int = Field(strict=True, ge=1)


Traffic = dict[Name, Annotated[Finite, Field(ge=0, le=1)]]


# ---- users


class UserActivity(BaseModel):
    number: int = Field(description="among all that was accepted of this user, from 1")
    at: float = Field(description="unix seconds")
    item_id: str
    type: str


class UserLoggedActivity(UserActivity):
    position: str = Field(description="in the log of activity, which is in the order of acceptance")


class UserEdge(BaseModel):
    to: str
    kind: str
    weight: float
    at: float = Field(description="unix seconds")


class UserTake(BaseModel):
    item_id: str
    at: float = Field(description="unix seconds")
    share: float = Field(description="of the largest reward, in (0, 1]")


class UserEvent(BaseModel):
    """An event of the log, but for the row that the encoder made of it."""

    position: str = Field(description="in the log")
    at: float = Field(description="unix seconds")
    decision_id: str
    item_id: str
    reward: float
    source: Literal["feedback", "default", "import"]
    context: dict[str, Any]
    features: dict[str, Any] | None = Field(description="of the item, as it was shown; null: they are not kept here")
    n: int | None = Field(description="candidates that were eligible; null: the import did not say")
    propensity: float | None
    policy: str | None
    version: int
    encoder: str | None = Field(description="version of the encoder of its row; null: the loop's first")
    slate_position: int | None = Field(description="among all items shown in the loop, from 0 on")

    @classmethod
    def of(cls, event: Event) -> UserEvent:
        """Show an event."""
        shown = {name: getattr(event, name) for name in cls.model_fields.keys() - {"at", "item_id"}}
        return cls(at=event.time, item_id=event.item, **shown)


class CountedItem(BaseModel):
    """An item, and when."""

    at: float = Field(description="unix seconds")
    item_id: str


class UserReply(BaseModel):
    user_id: str
    loop: str
    activity: list[UserActivity] = Field(description="that is kept, oldest first; on the first page only, as the next")
    state: dict[str, Any] = Field(description="what decisions see of it, in the context, under `@user`")
    edges: list[UserEdge] = Field(description="that leave him")
    known_by: list[str] = Field(description="users whose edges name him")
    graph: dict[str, Any] = Field(description="what decisions see of his neighbourhood, under `@graph`")
    took: list[UserTake] = Field(description="items that he rewarded, which those who know him are served by")
    shown: list[CountedItem] = Field(description="impressions that caps count, oldest first; on the first page only")
    taken: list[CountedItem] = Field(description="what he took, as caps see it; on the first page only")
    decisions: list[DecisionLedger] = Field(description="that the ledger holds, in no order")
    events: list[UserEvent] = Field(description="that the log holds, in its order, after all decisions")
    activity_log: list[UserLoggedActivity] = Field(description="all of it that the log holds, after all events")
    next: str | None = Field(description="pass as `after` for the next page; null: this was the last")


class ErasureReply(BaseModel):
    id: str
    digest: str = Field(description="of the user's id; the log of changes names it")
    by: str = Field(description="name of the key, or of the command")
    created: float = Field(description="unix seconds")
    step: Literal["decisions", "activity", "edges", "events", "traces", "learning", "search", "files", "done"] = Field(
        description="that a learner is at, or is to do next"
    )
    ended: float | None = Field(description="unix seconds; null: it goes on")
    decisions: int = Field(description="deleted from the ledger")
    activity: int = Field(description="activities deleted")
    edges: int = Field(0, description="edges deleted: his own, and those that named him")
    events: int = Field(description="deleted from the log")
    waits_for: list[str] = Field(
        description="policies, `the profile` and `the graph`, that have still to learn the log anew"
    )
    remains: list[str] = Field(description="where the id still stands, and what to do")


class ErasureList(BaseModel):
    erasures: list[ErasureReply] = Field(description="newest first; the newest 100 are kept")
