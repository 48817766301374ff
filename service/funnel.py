"""A loop's funnel: which items of a large catalogue become the candidates of a decision (`retrieve/` finds them).

popular   items that were rewarded most for each time they were shown
fresh     items that were shown few times, the newest first
random    any items
covisited items that others took together with the user's last ones
ann       items whose vector lies nearest to one of the context
friends   items that friends of the user took lately
learned   items whose vector lies nearest to the user's, both learned from the log
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field, ValidationInfo, field_validator, model_validator

from service.rules import CLOSED, Path

MOST_SOURCES = 8
MOST = 1000  # candidates


class SourceSetting(BaseModel):
    """One source and how many items it may give."""

    model_config = CLOSED

    source: Literal["popular", "fresh", "random", "ann", "covisited", "friends", "learned"]
    quota: Annotated[int, Field(strict=True, ge=1, le=MOST)] = Field(description="items that it gives at most")
    item_field: Path | None = Field(None, validate_default=True, description="ann: of the items, a list of numbers")
    context_field: Path | None = Field(
        None, validate_default=True, description="ann: of the context, a list of as many numbers"
    )

    @field_validator("item_field", "context_field")
    @classmethod
    def _of_ann(cls, value: str | None, info: ValidationInfo) -> str | None:
        source = info.data.get("source")
        if source == "ann" and value is None:
            raise ValueError("the source `ann` needs it")
        if source not in ("ann", None) and value is not None:
            raise ValueError(f"the source `{source}` has no such field")
        return value


class Funnel(BaseModel):
    """The sources of a loop; none: every item is a candidate."""

    model_config = CLOSED

    sources: Annotated[tuple[SourceSetting, ...], Field(max_length=MOST_SOURCES)] = ()
    cut: Annotated[int, Field(strict=True, ge=1, le=MOST)] = Field(
        200, description="candidates at most; a catalogue that is no larger is not narrowed"
    )

    @model_validator(mode="after")
    def _no_source_twice(self) -> Funnel:
        seen = [(one.source, one.item_field, one.context_field) for one in self.sources]
        if twice := [name for at, (name, *_) in enumerate(seen) if seen[at] in seen[:at]]:
            raise ValueError(f"the source `{twice[0]}` stands twice")
        return self

    def __bool__(self) -> bool:
        return bool(self.sources)

    @property
    def follows_activity(self) -> bool:
        """Whether a source needs to know what users did."""
        return any(one.source == "covisited" for one in self.sources)

    @property
    def embeds(self) -> bool:
        """Whether a source uses learned embeddings."""
        return any(one.source == "learned" for one in self.sources)


NO_FUNNEL = Funnel()
