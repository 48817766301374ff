"""Chooses the fields of a learned schema by what was seen of each path: levels, numbers, words, vectors."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from service.represent.json_paths import is_vector, leaves
from service.represent.learned import AnyLearned, Bend, Components, FormerUnit, Levels, Line, Words
from service.represent.misfits import Side
from service.represent.profile import QUANTILES, Kind, Profile

MAX_COMPONENTS = 14  # so that two vectors, their products with each other too, have room in a schema
SHARE = 0.95  # of the square of a vector's distance from the mean, that its components keep


def fields_of(
    profile: Profile, side: Side, rows: Sequence[Mapping[str, Any]]
) -> tuple[dict[str, AnyLearned], dict[str, str]]:
    """Choose the fields of one side.

    Args:
        profile: of the log.
        rows: JSON objects of the side, from which vectors get their components.

    Returns:
        The fields by name, and the reason for each path that is left out.
    """
    fields: dict[str, AnyLearned] = {}
    left_out: dict[str, str] = {}
    for path in sorted(profile.fields[side]):
        kind = profile.kind_of(side, path)
        if kind.type == "left_out":
            left_out[path] = str(kind.reason)
        elif kind.type == "number":
            fields.update(_number(path, kind))
        elif kind.type == "vector":
            components = _components(path, kind.size, rows)
            if components is None:
                left_out[path] = "constant"
            else:
                fields[path] = components
        elif kind.type == "set":
            fields[path] = Words(path=path, levels=sorted(kind.levels))
        else:
            others = profile.fields[side][path].count_distinct() > len(kind.levels)
            fields[path] = Levels(path=path, levels=sorted(kind.levels), others=others)
    return fields, left_out


def _number(path: str, kind: Kind) -> dict[str, AnyLearned]:
    """Return a number as a line and, where it has room for it, as a bent line."""
    quantiles = kind.quantiles
    values, first = np.unique(quantiles, return_index=True)
    if len(values) < 2:
        return {}
    places = 2.0 * np.array(QUANTILES)[first] - 1.0
    former = _former_unit(kind)
    found: dict[str, AnyLearned] = {
        path: Line(path=path, values=values.tolist(), places=places.tolist(), former=former)
    }
    knots = np.unique(quantiles[1:-1])
    if len(knots) > 2:
        found[path + " bent"] = Bend(path=path, knots=knots.tolist(), former=former)
    return found


def _former_unit(kind: Kind) -> FormerUnit | None:
    """Match the two units of a number by their summaries; None where it came in one unit."""
    if not kind.former_unit:
        return None
    values, first = np.unique(kind.former_unit, return_index=True)
    return FormerUnit(values=values.tolist(), as_now=np.array(kind.unit)[first].tolist())


def _components(path: str, size: int, rows: Sequence[Mapping[str, Any]]) -> Components | None:
    """Return the principal components of the different vectors seen, of mean square 1 together; None: all are one."""
    seen = Counter(
        tuple(value)
        for row in rows
        for its_path, value in leaves(row)[0]
        if its_path == path and isinstance(value, list) and len(value) == size and is_vector(value)
    )
    with np.errstate(over="ignore", invalid="ignore"):
        distinct = np.array(sorted(seen), dtype=np.float64).reshape(len(seen), size)
        mean = distinct.mean(axis=0) if len(seen) else np.zeros(size)
        away = distinct - mean
    if not np.isfinite(away).all() or not (away**2).sum() > 0:
        return None
    _, lengths, axes = np.linalg.svd(away, full_matrices=False)
    power = lengths**2
    r = min(MAX_COMPONENTS, int(np.searchsorted(np.cumsum(power) / power.sum(), SHARE)) + 1)
    scale = math.sqrt(len(distinct) / power[:r].sum())  # so a vector weighs as much as a text
    signs = np.sign(axes[np.arange(r), np.abs(axes[:r]).argmax(axis=1)])
    scaled = axes[:r] * (signs * scale)[:, None]
    return Components(path=path, mean=mean.round(6).tolist(), axes=scaled.round(6).tolist())
