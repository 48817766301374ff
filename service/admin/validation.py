"""What pydantic found wrong, as an error that names the field."""

from __future__ import annotations

from pydantic import ValidationError

from service.errors import InvalidRequest


def invalid(error: ValidationError, *, under: str = "", whole: str = "body") -> InvalidRequest:
    """Make the error of the first finding.

    Args:
        under: what stands before the field's path.
        whole: the field to name where several do not fit together.
    """
    first = error.errors()[0]
    path = ".".join([*([under] if under else []), *map(str, first["loc"])]) or whole
    return InvalidRequest(path, str(first["msg"]).removeprefix("Value error, "))
