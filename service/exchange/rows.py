"""One row of a file, checked: what every format is read into."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from service.errors import InvalidRequest
from service.loop import Finite
from service.records import PastEvent

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
Id = Annotated[str, Field(min_length=1, max_length=128)]


class _Row(BaseModel):
    """Strict: text is no number, and an unknown field is an error, so that a typing error does not lose data."""

    model_config = ConfigDict(strict=True, extra="forbid")

    decision_id: Id
    item_id: Id
    reward: Finite
    user_id: Id | None = None
    context: dict[str, Any] = {}
    features: dict[str, Any] | None = None
    propensity: Annotated[Finite, Field(gt=0, lt=1 + 1e-6)] | None = None  # sums of probabilities are rounded
    n: Annotated[int, Field(ge=1)] | None = None
    policy: Annotated[str, Field(max_length=64)] | None = None
    version: Annotated[int, Field(ge=0, lt=2**63)] = 0
    at: Annotated[Finite, Field(gt=-62135596800, lt=253402300800)] | None = None  # years 1 to 9999
    origin: str | None = None


def past_event(where: str, fields: Mapping[str, Any]) -> PastEvent:
    """Check a row. An event is known by its decision and its item, so the items of a slate are several events.

    Args:
        where: the row, for people.
        fields: those of `_Row`. Fields of value None are left out.

    Raises:
        InvalidRequest: names the row and the field.
    """
    try:
        row = _Row.model_validate({name: value for name, value in fields.items() if value is not None})
    except ValidationError as error:
        found = error.errors()[0]
        raise wrong(where, ".".join(map(str, found["loc"])), found["msg"]) from error
    for name in ("context", "features"):
        try:
            orjson.dumps({name: getattr(row, name)})
        except TypeError as error:  # an event must hold it
            raise wrong(where, name, f"cannot be written as JSON: {error}") from error
    return PastEvent(
        event_id=f"{row.decision_id}/{row.item_id}",
        user_id=row.user_id,
        context=row.context,
        item_id=row.item_id,
        features=row.features,
        reward=row.reward,
        propensity=row.propensity,
        at=row.at,
        decision_id=row.decision_id,
        n=row.n,
        policy=row.policy,
        version=row.version,
        origin=row.origin,
    )


def wrong(where: str, field: str, message: str) -> InvalidRequest:
    """Return the error of a field of a row."""
    return InvalidRequest(f"{where}, {field}" if field else where, message)


def moment(at: float) -> str:
    """Write unix seconds as ISO 8601, to the millisecond."""
    return (EPOCH + timedelta(milliseconds=round(1000 * at))).isoformat(timespec="milliseconds")


def seconds(where: str, field: str, said: Any) -> float | None:
    """Read ISO 8601 (UTC, unless it names another zone), or unix seconds.

    Raises:
        InvalidRequest: it is neither.
    """
    if said is None or isinstance(said, (int, float)):
        return None if said is None else float(said)
    try:
        found = datetime.fromisoformat(said)
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
    except (TypeError, ValueError, OverflowError) as error:
        raise wrong(where, field, f"{said!r:.60} is no time") from error
