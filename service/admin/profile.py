"""What a loop has seen of its data, for `GET /loops/{loop}/profile`, `rebound doctor` and `rebound schema propose`."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from redis.asyncio import Redis

from service.errors import NotFound
from service.records import LoopRecord
from service.represent import notices
from service.represent.field_profile import FieldProfile, Window
from service.represent.learned import LearnedSchema
from service.represent.misfits import Side
from service.represent.profile import QUANTILES, Profile
from service.represent.proposal import proposed_schema
from service.represent.stored import is_left_to_the_service, stored_encoder
from service.store import encoders, loop_store, profile_store
from service.store.codec import unpack
from service.store.keys import Keys
from service.store.profile_store import ProfileRecord

MOST_SHOWN = 12  # levels of a field in a reply


class Example(BaseModel):
    """One value, and when it was seen."""

    at: float = Field(description="unix seconds")
    value: str = Field(description="as JSON, cut to 80 characters")


class Notice(BaseModel):
    """Something in the data that keeps it from being learned."""

    code: str = Field(description=" | ".join(notices.CODES))
    side: Literal["context", "item"] | None = Field(description="null: it is about the loop")
    path: str | None = Field(description="of the field; null: it is about the loop or a side")
    count: int = Field(description="values, requests or items at fault since it began")
    first: Example | None
    last: Example | None
    means: str = Field(description="what is wrong, and what it does to learning")
    do: str = Field(description="what to do")
    needs_person: bool = Field(description="false: the service has dealt with it by itself")


class FieldWindow(BaseModel):
    """A summary of up to 256 consecutive values."""

    types: dict[str, float] = Field(description="JSON type -> share")
    low: float | None = Field(description="of the numbers")
    high: float | None
    levels: dict[str, float] = Field(description="the most frequent -> share")


class FieldReply(BaseModel):
    """What was seen at one path."""

    side: Literal["context", "item"]
    path: str = Field(description="names joined with dots")
    kind: Literal["levels", "number", "vector", "set", "boolean", "left_out"] = Field(
        description="what it is good for; `left_out`: it can teach nothing"
    )
    reason: Literal["constant", "new_each_time", "clock", "same_as_id", "rare_levels", "empty"] | None = Field(
        description="why it is left out"
    )
    values: int = Field(description="seen, without null")
    missing: float = Field(description="share of records, since it first came, that lack it or say null")
    types: dict[str, int] = Field(description="JSON type -> how often; a list of numbers is a vector, any other a set")
    distinct: int = Field(description="different values; within 2 % beyond 128")
    new: float = Field(description="share of values that were new when they came")
    levels: dict[str, int] = Field(description="the most frequent values -> how often, at least")
    quantiles: dict[str, float] = Field(description="of the numbers")
    size: int | None = Field(description="of the vectors")
    time_correlation: float = Field(description="of the numbers with the time: near 1 for a clock")
    first: Example | None
    last: Example | None
    at_first: FieldWindow | None = Field(description="the first 256 values; null before them")
    newest: FieldWindow = Field(description="the newest 256")


class RewardsReply(BaseModel):
    """How the rewards lie in their range."""

    range: tuple[float, float] = Field(description="the loop's `reward_range`")
    quantiles: dict[str, float]
    mean: float | None = Field(description="of the newest 1024")
    first: Example | None
    last: Example | None


class ItemsReply(BaseModel):
    """The items that were shown."""

    distinct: int = Field(description="about, beyond 1024")
    with_features: float = Field(description="share of them, in [0, 1]")
    same_pairs: int = Field(description="pairs with the same features, among at most 1024 items")
    example: tuple[str, str] | None = Field(description="such a pair")


class UsersReply(BaseModel):
    """The users who asked."""

    distinct: int = Field(description="about, beyond 1024")
    requests: int = Field(description="that named a user")
    seen_once: float = Field(description="share of users, in [0, 1]")


class LearnedReply(BaseModel):
    """The newest schema that was fitted to the log."""

    model_config = ConfigDict(validate_by_name=True, validate_by_alias=True)

    encoder: str = Field(description="version of its encoder")
    events: int = Field(description="that the log held when it was fitted")
    columns: int = Field(description="of a row")
    feature_schema: dict[str, Any] = Field(
        alias="schema", description="as `PUT /loops/{loop}` takes it: edit it, or fix it as it is"
    )


class ProfileReply(BaseModel):
    """The data of a loop as the learner has seen it, up to an entry of the log."""

    loop: str
    events: int = Field(description="counted; each entry of the log counts once")
    position: str = Field(description="of the last one, in the log")
    requests: int = Field(description="decisions whose context was counted")
    items_shown: int
    first_at: float | None = Field(description="unix time of the first event")
    last_at: float | None
    bytes: int = Field(description="of the profile")
    left_out: dict[str, int] = Field(description="side -> values for which there was no room (200 fields a side)")
    fields: list[FieldReply]
    rewards: RewardsReply
    items: ItemsReply
    users: UsersReply
    notices: list[Notice] = Field(description="those that need a person come first")
    proposal: dict[str, Any] = Field(description="a schema of the fields that can teach something: edit it, PUT it")
    learned: LearnedReply | None = Field(description="null: none was fitted yet, or a person declared one")


async def read_profile(redis: Redis, name: str) -> ProfileReply:
    """Return what a loop has seen of its data.

    Raises:
        NotFound: there is no such loop.
        NewerFormat: a newer version wrote the profile.
    """
    loop = await loop_store.read_loop(redis, name)
    record = await profile_store.read_profile(redis, Keys(name, loop.id))
    learned = await _learned(redis, loop)
    return await asyncio.to_thread(_reply, loop, record, learned)


async def _learned(redis: Redis, loop: LoopRecord) -> LearnedReply | None:
    if loop.newest is None or loop.declared is not None:
        return None
    keys, version = Keys(loop.name, loop.id), loop.newest["encoder"]
    schemas = await encoders.read_schemas(redis, keys, [version])
    try:
        encoder = stored_encoder(version, schemas.get(version))
    except ValueError:  # it is no longer kept, or of another version of this service
        return None
    if not isinstance(encoder.schema, LearnedSchema):
        return None
    events = await encoders.fitted_on(redis, keys)
    said = encoder.schema.model_dump(mode="json")
    return LearnedReply(encoder=version, events=events, columns=encoder.d, feature_schema=said)


async def read_proposal(redis: Redis, name: str) -> dict[str, Any]:
    """Return the schema that a loop's data suggest, as `PUT /loops/{loop}` takes it.

    Raises:
        NotFound: there is no such loop, or it has no events yet.
    """
    reply = await read_profile(redis, name)
    if not reply.events:
        raise NotFound(f"loop {name!r} has seen no events yet, so there is nothing to propose", code="no_events")
    return reply.proposal


def _reply(loop: LoopRecord, record: ProfileRecord, learned: LearnedReply | None) -> ProfileReply:
    try:
        profile = Profile.load(unpack(record.state)) if record.state else Profile()
    except ValueError:  # of another version, or garbled: the learner makes it anew from the log
        profile = Profile()
    fits = is_left_to_the_service(loop.schema, declared=loop.declared, fits=loop.settings.fit_schema)
    found = notices.notices_of(profile, reward_range=loop.settings.reward_range, fits=fits)
    newest = profile.newest_rewards()
    sides: tuple[Side, ...] = ("context", "item")
    return ProfileReply(
        loop=loop.name,
        events=profile.events,
        position=record.position,
        requests=profile.records("context"),
        items_shown=profile.records("item"),
        first_at=profile.first_at,
        last_at=profile.last_at,
        bytes=len(record.state or b""),
        left_out={side: profile.left_out(side)[0] for side in sides},
        fields=[_field(profile, field) for side in sides for _, field in sorted(profile.fields[side].items())],
        rewards=RewardsReply(
            range=loop.settings.reward_range,
            quantiles=_quantiles(profile.rewards.at(QUANTILES)),
            mean=float(newest.mean()) if len(newest) else None,
            first=_example(profile.first_reward),
            last=_example(profile.last_reward),
        ),
        items=ItemsReply(
            distinct=profile.items,
            with_features=profile.items_with_features(),
            same_pairs=profile.same_items()[2],
            example=profile.a_same_pair(),
        ),
        users=UsersReply(distinct=profile.users, requests=profile.with_user, seen_once=profile.users_once()),
        notices=[Notice.model_validate(notice, from_attributes=True) for notice in found],
        proposal=proposed_schema(profile).model_dump(mode="json"),
        learned=learned,
    )


def _field(profile: Profile, field: FieldProfile) -> FieldReply:
    kind = profile.kind_of(field.side, field.path)
    return FieldReply(
        side=field.side,
        path=field.path,
        kind=kind.type,
        reason=kind.reason,
        values=field.values,
        missing=profile.missing(field),
        types=field.types,
        distinct=field.count_distinct(),
        new=profile.new(field),
        levels=dict(field.levels.most_frequent(MOST_SHOWN)) if kind.type in ("levels", "set", "boolean") else {},
        quantiles=_quantiles(field.quantiles.at(QUANTILES)) if kind.type == "number" else {},
        size=kind.size or None,
        time_correlation=field.moments.correlation,
        first=_example(field.first_example),
        last=_example(field.last_example),
        at_first=None if field.first is None else _window(field.first),
        newest=_window(field.newest()),
    )


def _quantiles(found: list[float]) -> dict[str, float]:
    return {f"{share:g}": value for share, value in zip(QUANTILES, found, strict=False)}


def _example(found: Any) -> Example | None:
    return None if found is None else Example(at=found.at, value=found.value)


def _window(window: Window) -> FieldWindow:
    return FieldWindow(types=window.types, low=window.low, high=window.high, levels=dict(window.levels))
