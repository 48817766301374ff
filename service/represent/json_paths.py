"""JSON objects as dotted paths, and the values at their ends as levels and numbers.

{"user": {"likes": ["a", "b"]}, "age": 41} has the paths `user.likes` and `age`. A list of numbers is one vector, a list
of anything else a set. Text of a level is canonical: 1, 1.0 and "1" are one level.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from service.represent.fields import MAX_STRING

MAX_DEPTH = 5  # objects around a value, the outermost among them
ITEM_ID = "@item"  # the path of an item's id, beside its features
MAX_LEAVES = 400  # of one object; further ones are left out

Type = Literal["null", "boolean", "integer", "number", "text", "vector", "set"]
TYPES: tuple[Type, ...] = ("null", "boolean", "integer", "number", "text", "vector", "set")

_LARGEST_EXACT = 1 << 53
BEGINNINGS = frozenset("0123456789+-.")  # of texts that may be numbers


def leaves(features: Mapping[str, Any], most: int = MAX_LEAVES) -> tuple[list[tuple[str, Any]], int]:
    """Flatten a JSON object.

    Args:
        features: any JSON object.
        most: values that are taken.

    Returns:
        (path, value) in the object's order, and how many values were left out: beyond `most`, or within more than five
        objects. A value is a scalar, null or a list. A path has at most 256 characters. An empty object has no value.
    """
    if len(features) <= most and not any(isinstance(value, dict) for value in features.values()):  # most are flat
        return [(path[:MAX_STRING], value) for path, value in features.items()], 0
    found: list[tuple[str, Any]] = []
    left_out = _collect("", features, 1, found, most)
    return found, left_out


def _collect(prefix: str, features: Mapping[str, Any], depth: int, found: list[tuple[str, Any]], most: int) -> int:
    left_out = 0
    for name, value in features.items():
        path = f"{prefix}{name}"
        if isinstance(value, dict):
            if depth < MAX_DEPTH:
                left_out += _collect(f"{path[:MAX_STRING]}.", value, depth + 1, found, most)
            else:
                left_out += bool(value)
        elif len(found) < most:
            found.append((path[:MAX_STRING], value))
        else:
            left_out += 1
    return left_out


def value_at(features: Mapping[str, Any], path: str) -> Any:
    """Return the value at a dotted path as `leaves` names it; None where there is none, or an object."""
    found: Any = features.get(path)
    if found is None and "." in path:
        found = features
        for name in path.split("."):
            found = found.get(name) if isinstance(found, dict) else None
    return None if isinstance(found, dict) else found


def type_of(value: Any) -> Type:
    """Return the type of a value that `leaves` found."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int):
        return "integer"
    if isinstance(value, float):
        return "number"
    if isinstance(value, str):
        return "text"
    return "vector" if is_vector(value) else "set"


def is_vector(values: Any) -> bool:
    """Whether a list holds numbers, at least one, and nothing else."""
    return bool(values) and set(map(type, values)) <= {int, float}


def level_of(value: Any) -> str:
    """Return the canonical text of a scalar, of at most 256 characters: 1, 1.0 and "1" have the same.

    A text that is an integer with leading zeros keeps them: they tell codes apart. Anything that is no scalar has the
    text of its Python value, cut.
    """
    if isinstance(value, str):
        return value[:MAX_STRING]
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return "null"
    if isinstance(value, int) and abs(value) <= _LARGEST_EXACT:
        return str(value)
    if isinstance(value, (int, float)):
        number = number_of(value)
        if number is None:
            return "beyond the floats"
        return str(int(number)) if number.is_integer() and abs(number) <= _LARGEST_EXACT else repr(number)
    return repr(value)[:MAX_STRING]


def number_of(value: Any) -> float | None:
    """Return a scalar as a finite number, also a text that is one; None if it is none. A boolean is no number."""
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, str):
        if not value or value[0] not in BEGINNINGS or len(value) > 32 or "_" in value:
            return None
    elif not isinstance(value, (int, float)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
