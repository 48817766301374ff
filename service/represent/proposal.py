"""A schema as a person would write it, from a profile."""

from __future__ import annotations

import math
from typing import Any

from service.represent.fields import MAX_SIZE, MAX_STRING, AnyField, Categorical, Numeric, Vector
from service.represent.misfits import Side
from service.represent.profile import Kind, Profile
from service.represent.schema import FeatureSchema

MOST_COLUMNS = 360  # with the crosses
LARGEST = 512  # numbers of a vector that has a column for each


def proposed_schema(profile: Profile) -> FeatureSchema:
    """Propose a schema of the fields that can teach something; `PUT /loops/{loop}` takes it.

    Left out are fields that never vary, ids, clocks, and what the types of a schema cannot say (nested fields, sets):
    for those the hashed columns stay. Crosses are all pairs of a context field and an item field, the smallest first,
    while the row has at most 360 columns.
    """
    sides: dict[Side, dict[str, AnyField]] = {"context": {}, "item": {}}
    undeclared = False
    for side, fields in profile.fields.items():
        for path in sorted(fields):
            kind = profile.kind_of(side, path)
            field = _declared(kind)
            if kind.type == "left_out" or not _is_text(path):
                continue
            # A name with a dot is one of a nested field, or cannot be told from one.
            if field is None or "." in path:
                undeclared = True
            else:
                sides[side][path] = field
    hashed = undeclared or not sides["item"]  # items without features are told apart by their hashed ids
    found = FeatureSchema(context=sides["context"], item=sides["item"], hash_dims=31 if hashed else 0)
    return _crossed(found)


def _declared(kind: Kind) -> AnyField | None:
    """Return the field that a kind is declared as; None where there is none."""
    if kind.type in ("levels", "boolean"):
        levels = [level for level in kind.levels if level and len(level) <= MAX_STRING and _is_text(level)]
        return Categorical(type="categorical", levels=levels) if levels else None
    if kind.type == "number":
        low, high = _rounded(kind.quantiles[0], math.floor), _rounded(kind.quantiles[-1], math.ceil)
        return Numeric(type="numeric", min=low, max=high) if 0 < high - low < math.inf else None
    if kind.type == "vector" and 1 <= kind.size <= min(LARGEST, MAX_SIZE):
        return Vector(type="vector", size=kind.size)
    return None


def _is_text(text: str) -> bool:
    """Whether a text can be written as UTF-8, and names something."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return bool(text)


def _rounded(number: float, rounding: Any) -> float:
    """Round to three digits, outwards."""
    if number == 0 or not math.isfinite(number):
        return number
    digits = 2 - math.floor(math.log10(abs(number)))
    if not -300 < digits < 300:
        return number
    scale = 10.0 ** abs(digits)
    found = rounding(number * scale) / scale if digits > 0 else rounding(number / scale) * scale
    return float(found) if math.isfinite(found) else number


def _crossed(schema: FeatureSchema) -> FeatureSchema:
    pairs = sorted(
        (len(c.columns) * len(i.columns), name, other)
        for name, c in schema.context.items()
        for other, i in schema.item.items()
    )
    crosses, d = [], schema.d
    for columns, name, other in pairs:
        if d - 1 + columns > MOST_COLUMNS:
            break
        crosses.append((name, other))
        d += columns
    return FeatureSchema.model_validate({**schema.model_dump(), "crosses": crosses})
