"""The models of explanations, and of requests that are only tried."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from service.api.schemas import Body, DecisionLedger, Id, IdOrCandidate, LoopName
from service.decide.explanation import Explanation
from service.serve.explainer import Answer, Refusal, Trial

PART: dict[str, JsonValue] = {"fields": ["persona", "category"], "context": "persona", "item": "category"}
EXAMPLE: dict[str, JsonValue] = {
    **{"refusal": None, "n": 2, "scale": "reward", "width": 0.99, "exact": True, "background": []},
    "candidates": [
        {
            **{"id": "sku-9", "score": 0.41, "bias": 0.1, "parts": [{**PART, "value": 0.29, "error": None}]},
            **{"item": 0.02, "user": 0.0, "sd": 0.05, "expected": 0.41, "reply_score": 0.46, "propensity": 0.995},
            **{"rules": [], "error": None},
        }
    ],
}


class PartReply(BaseModel):
    """What a field, or a pair of fields, adds to a score."""

    fields: list[str] = Field(description="a context field, an item field, or both in this order; none: all the rest")
    context: str | None = Field(description="the context field among them")
    item: str | None = Field(description="the item field among them")
    value: float
    error: float | None = Field(description="standard error; null: the value is exact")


class ExplainedReply(BaseModel):
    """One candidate: score = bias + the sum of parts + item + user."""

    id: str
    score: float = Field(description="before exploration, in the unit that `scale` names")
    bias: float = Field(description="what every candidate gets")
    parts: list[PartReply] = Field(description="at most 60, the largest first; those that add nothing are left out")
    item: float = Field(description="what the item has of its own, whatever its fields say")
    user: float = Field(description="what the user has of his own")
    sd: float | None = Field(description="how unsure the policy is of the score; null: its kind does not say")
    expected: float = Field(description="the score as a reward")
    reply_score: float = Field(description="as the reply of POST /recommend shows it")
    propensity: float = Field(description="probability of being drawn for the first place")
    rules: list[str] = Field(description="those that concern it")
    error: float | None = Field(description="standard error of `item` and `user`, the larger; null: they are exact")


class RefusalReply(BaseModel):
    code: str = Field(description="stable, for programs")
    why: str


class ExplanationReply(BaseModel):
    """Why candidates stand as they do, or why that cannot be told."""

    model_config = ConfigDict(json_schema_extra={"examples": [EXAMPLE]})

    refusal: RefusalReply | None = Field(description="why there is none; null: there is one")
    n: int = Field(0, description="candidates of the request")
    scale: str | None = Field(None, description="unit of score, bias, parts, item, user and sd: `reward` or `logit`")
    width: float | None = Field(
        None, description="how many sd are added to explore, on average; null: the kind explores in another way"
    )
    exact: bool | None = Field(None, description="false: the parts are Shapley values, estimated by sampling")
    background: list[str] = Field([], description="ids of the logged decisions that estimates compare with")
    candidates: list[ExplainedReply] = Field(
        [],
        description="what was shown, then the likeliest: at most 50; where parts are estimated 3, or 1 if several "
        "policies are tried",
    )

    @classmethod
    def of(cls, answer: Answer) -> ExplanationReply:
        """Write an explanation, or why there is none."""
        if isinstance(answer, Refusal):
            return cls(refusal=RefusalReply(code=answer.code, why=answer.why))
        return cls.model_validate({"refusal": None, **_written(answer)})


def _written(found: Explanation) -> dict[str, Any]:
    named = {name: getattr(found, name) for name in ("n", "scale", "width", "exact", "background")}
    fields = [name for name in ExplainedReply.model_fields if name != "parts"]
    candidates = [
        {name: getattr(one, name) for name in fields}
        | {"parts": [{name: getattr(part, name) for name in PartReply.model_fields} for part in one.parts]}
        for one in found.candidates
    ]
    return {**named, "candidates": candidates}


class ExplainedLedger(DecisionLedger):
    """A decision, its status, every report on it, and why it came out so."""

    explanation: ExplanationReply


class TryBody(Body):
    """A request that is only tried."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"user_id": "u17", "context": {"persona": "cat_connoisseur", "hour": 14}}]},
    )

    loop: LoopName | None = Field(None, description="default: `?loop=`, else `default`")
    user_id: Id | None = None
    context: dict[str, Any] | None = Field(None, description="any JSON object, as of POST /recommend")
    candidates: list[IdOrCandidate] | None = Field(None, description="default: the loop's catalogue")
    policies: list[str] | None = Field(
        None, description="at most 10 names, shadows included; default: the first 10 of the loop"
    )


class TriedReply(BaseModel):
    policy: str
    version: int
    share: float = Field(description="of the traffic; 0: a shadow, or an arm of an experiment")
    explanation: ExplanationReply


class TryReply(BaseModel):
    """What policies would do with a request. Nothing was stored, counted or learned."""

    loop: str
    user_id: str | None
    context: dict[str, Any] = Field(description="with what the service knows of the user, under `@user`")
    serves: str = Field(description="the policy that would serve this request")
    policies: list[TriedReply]

    @classmethod
    def of(cls, loop: str, user_id: str | None, trial: Trial) -> TryReply:
        """Write what was tried."""
        tried = [
            TriedReply(
                policy=one.policy, version=one.version, share=one.share, explanation=ExplanationReply.of(one.answer)
            )
            for one in trial.policies
        ]
        return cls(loop=loop, user_id=user_id, context=dict(trial.context), serves=trial.serves, policies=tried)


class LossReply(BaseModel):
    estimate: float
    low: float
    high: float


class ImportanceReply(BaseModel):
    """What a field, or the two of a pair beyond each by itself, tell the policy."""

    fields: list[str] = Field(description="a context field, an item field, or both in this order")
    context: str | None
    item: str | None
    loss: LossReply = Field(
        description="what is added to the mean squared error of the expected reward, a share of the reward range, when "
        "the values are permuted; 0 lies in the interval: nothing is shown"
    )


class PolicyExplanation(BaseModel):
    """Which fields and pairs of fields a policy predicts by."""

    version: int = Field(description="the newest of the policy, whose encoder and parameters were taken")
    kind: str
    encoder: str
    from_: str = Field(alias="from", description="position in the log of the first event that was learned")
    to: str = Field(description="of the last")
    events: int = Field(description="the newest 5 000 at most")
    held_out: int = Field(description="events that were predicted before they were learned")
    loss: float = Field(description="mean squared error of the expected reward, as a share of the reward range")
    confidence: float = Field(description="that all intervals hold at once")
    importance: list[ImportanceReply] = Field(description="the largest estimate first")


class FailedReply(BaseModel):
    code: str
    detail: str


class PolicyExplanationReply(BaseModel):
    id: str
    policy: str
    status: Literal["waiting", "running", "done", "failed", "cancelled"]
    created: float = Field(description="unix time, as the next two")
    started: float | None
    ended: float | None
    done: int = Field(description="events learned")
    total: int | None = Field(description="events to learn; null: not known yet")
    result: PolicyExplanation | None
    error: FailedReply | None
