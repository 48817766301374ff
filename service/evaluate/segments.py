"""Divides decisions by a field of their context, so that each part can be judged by itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import fields

import numpy as np

from service.evaluate.estimators import Evidence
from service.policies import Array
from service.records import Features
from service.represent.json_paths import leaves, level_of

MOST = 10  # levels that are a segment of their own; all others are one together


def segments_of(contexts: Sequence[Features], field: str) -> list[str]:
    """Name the segment of each decision: `field = level`, `no field`, or `other field` beyond the `MOST` frequent ones.

    Args:
        field: dotted path in the context, such as `device.os`.
    """
    found = [dict(leaves(context)[0]).get(field) for context in contexts]
    levels = [None if value is None else level_of(value) for value in found]
    counts = Counter(level for level in levels if level is not None)
    frequent = set(sorted(counts, key=lambda level: (-counts[level], level))[:MOST])

    def name(level: str | None) -> str:
        if level is None:
            return f"no {field}"
        return f"{field} = {level}" if level in frequent else f"other {field}"

    return [name(level) for level in levels]


def divided(evidence: Evidence, segments: Sequence[str]) -> Mapping[str, Evidence]:
    """Return segment -> its evidence, in the order of the names.

    Args:
        segments: of each decision (B,).
    """
    names = np.array(segments, dtype=object)
    return {name: _part(evidence, names == name) for name in sorted(set(segments))}


def _part(evidence: Evidence, which: Array) -> Evidence:
    return Evidence(**{field.name: getattr(evidence, field.name)[which] for field in fields(Evidence)})
