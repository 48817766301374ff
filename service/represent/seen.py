"""Chooses fields for the values that a log holds: levels, numbers, sets, vectors, and what can teach nothing."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.represent.json_paths import is_vector, leaves, level_of
from service.represent.learned import AnyLearned, Bend, Components, Levels, Line, Words

Array = NDArray[Any]

MAX_LEVELS = 24  # columns of a field
FEW = 12  # distinct integers that are still codes
KNOTS = (0.02, 0.27, 0.5, 0.73, 0.98)
GRID = (0.002, 0.05, 0.15, 0.3, 0.5, 0.7, 0.85, 0.95, 0.998)
MAX_COMPONENTS = 16


def fields_of(
    rows: Sequence[Mapping[str, Any]], times: Array, ids: Sequence[str] | None = None
) -> tuple[dict[str, AnyLearned], dict[str, str]]:
    """Choose the fields of one side.

    Args:
        rows: N JSON objects.
        times: (N,) seconds.
        ids: (N,) the items' ids, if the objects are features of items.

    Returns:
        The fields by name, and the reason for each path that is left out.
    """
    columns: dict[str, list[Any]] = {}
    for at, row in enumerate(rows):
        for path, value in leaves(row)[0]:
            columns.setdefault(path, [None] * len(rows))[at] = value
    fields: dict[str, AnyLearned] = {}
    left_out: dict[str, str] = {}
    for path, values in sorted(columns.items()):
        chosen = _fields_of_path(path, values, times, ids)
        if isinstance(chosen, str):
            left_out[path] = chosen
        else:
            for name, field in chosen:
                fields[name] = field
    return fields, left_out


def _fields_of_path(
    path: str, values: Sequence[Any], times: Array, ids: Sequence[str] | None
) -> str | list[tuple[str, AnyLearned]]:
    seen = [(at, value) for at, value in enumerate(values) if value is not None]
    kinds = Counter(type(value) for _, value in seen)
    n = len(seen)
    vectors = [tuple(value) for _, value in seen if isinstance(value, list) and is_vector(value)]
    if len(vectors) > n / 2:
        return _vector(path, vectors)
    if kinds[list] > n / 2:
        counts = Counter(
            level_of(word) for _, value in seen for word in (value if isinstance(value, list) else [value])
        )
        words = [word for word, count in counts.most_common(MAX_LEVELS) if count >= max(3, 0.01 * n)]
        return [(path, Words(path=path, levels=sorted(words)))] if words else "no word is frequent"
    seen = [(at, value) for at, value in seen if not isinstance(value, list)]
    texts = [level_of(value) for _, value in seen]
    counts = Counter(texts)
    if len(counts) < 2 and n == len(values):
        return "constant"
    numeric = kinds[str] == 0 and kinds[bool] == 0
    whole = numeric and all(float(value).is_integer() for _, value in seen if isinstance(value, (int, float)))
    if ids is None:
        if len(counts) > 20 and len(counts) > 0.5 * n and not numeric:
            return "new in most requests"
    elif len(counts) > MAX_LEVELS and not numeric and _as_good_as_id(texts, [ids[at] for at, _ in seen]):
        return "as good as the item's id"
    if numeric and not (whole and len(counts) <= FEW):
        v = np.array([float(value) for _, value in seen])
        if ids is None and len(counts) > 0.9 * n and n > 20:
            with np.errstate(invalid="ignore"):
                order = np.corrcoef(np.argsort(np.argsort(v)), np.arange(n))[0, 1]
            if abs(order) > 0.95:
                return "a clock or a counter"
            if whole and np.abs(v).max() > 1e6:
                return "new in most requests"
        return _number(path, v)
    frequent = [level for level, count in counts.most_common(MAX_LEVELS) if count >= max(3, 0.01 * n)]
    if not frequent:
        return "no value is frequent"
    others = sum(counts[level] for level in frequent) < sum(counts.values())
    return [(path, Levels(path=path, levels=sorted(frequent), others=others))]


def _as_good_as_id(texts: Sequence[str], ids: Sequence[str]) -> bool:
    return len(set(texts)) > 0.9 * len(set(ids))


def _number(path: str, v: Array) -> str | list[tuple[str, AnyLearned]]:
    grid = np.unique(np.quantile(v, GRID))
    if len(grid) < 2:
        return "constant"
    found: list[tuple[str, AnyLearned]] = [(path, Line(path=path, quantiles=grid.tolist()))]
    knots = np.unique(np.quantile(v, KNOTS))
    if len(knots) > 2:
        found.append((path + " bent", Bend(path=path, knots=knots.tolist())))
    return found


def _vector(path: str, seen: Sequence[tuple[float, ...]]) -> str | list[tuple[str, AnyLearned]]:
    size = Counter(len(value) for value in seen).most_common(1)[0][0]
    distinct = np.array(sorted({value for value in seen if len(value) == size}), dtype=np.float64)  # (N, size)
    mean = distinct.mean(axis=0)
    _, lengths, axes = np.linalg.svd(distinct - mean, full_matrices=False)
    power = lengths**2
    if not power.sum() > 0:
        return "constant"
    r = min(MAX_COMPONENTS, int(np.searchsorted(np.cumsum(power) / power.sum(), 0.95)) + 1)
    # Mean square 1 together: a vector weighs as much as a text.
    scale = math.sqrt(len(distinct) / power[:r].sum())
    signs = np.sign(axes[np.arange(r), np.abs(axes[:r]).argmax(axis=1)])
    scaled = axes[:r] * (signs * scale)[:, None]
    return [(path, Components(path=path, mean=mean.round(6).tolist(), axes=scaled.round(6).tolist()))]
