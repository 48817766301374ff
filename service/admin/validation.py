"""What is wrong with what an administrator sent, as an error that names the field."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from service.errors import InvalidRequest
from service.policies import KINDS


def invalid(error: ValidationError, *, under: str = "", whole: str = "body") -> InvalidRequest:
    """Make the error of the first finding.

    Args:
        under: what stands before the field's path.
        whole: the field to name where several do not fit together.
    """
    first = error.errors()[0]
    path = ".".join([*([under] if under else []), *map(str, first["loc"])]) or whole
    return InvalidRequest(path, str(first["msg"]).removeprefix("Value error, "))


def checked_params(kind: str, params: Mapping[str, Any]) -> dict[str, Any]:
    """Return a kind's parameters as JSON, with those that were not given.

    Raises:
        InvalidRequest: there is no such kind, or a parameter is wrong.
    """
    if kind not in KINDS:
        raise InvalidRequest("kind", f"there is no kind {kind!r}; there are {', '.join(sorted(KINDS))}")
    try:
        checked = KINDS[kind].Params.model_validate(params)
    except ValidationError as error:
        raise invalid(error, under="params") from error
    stored: dict[str, Any] = checked.model_dump(mode="json")
    return stored
