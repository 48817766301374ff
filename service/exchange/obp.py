"""Logs in the layout of the Open Bandit Pipeline (Saito et al. 2021, arXiv:2008.07146).

An `.npz` file holds arrays of B rounds and m actions: `action` (B,), `reward` (B,), `pscore` (B,), and perhaps
`position` (B,), `context` (B, d) and `action_context` (m, e). A `.csv` file has these as columns, or those of the Open
Bandit Dataset (`item_id`, `click`, `propensity_score`, `timestamp`); all other columns are the context.
"""

from __future__ import annotations

import csv
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.exchange.rows import past_event, seconds, wrong
from service.records import PastEvent

LARGEST_ARRAYS = 4 << 30  # bytes of all arrays of a file
LONGEST_FIELD = 1 << 20  # characters
NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?")
NEEDED = ("action", "reward", "pscore")
AXES = {"action": 1, "reward": 1, "pscore": 1, "position": 1, "context": 2, "action_context": 2}
NAMES = {"item_id": "action", "click": "reward", "propensity_score": "pscore", "timestamp": "at", "": "round"}


def read_arrays(path: Path) -> Iterator[tuple[str, PastEvent]]:
    """Read the rounds of an `.npz` file: (round for people, event). Their numbers are their ids.

    Raises:
        InvalidRequest: the file is damaged, too large, or lacks an array; names round and field.
    """
    arrays = _arrays(path)
    rounds, context = len(arrays["action"]), arrays.get("context")
    items = arrays.get("action_context")
    n = None if items is None else len(items)
    for number in range(rounds):
        where = f"round {number}"
        action = arrays["action"][number].item()
        if n is not None and not (isinstance(action, int) and 0 <= action < n):
            raise wrong(where, "action", f"{action!r} is none of the {n} rows of action_context")
        said: dict[str, Any] = {} if context is None else {"features": context[number].tolist()}
        if "position" in arrays:
            said["position"] = arrays["position"][number].item()
        yield (
            where,
            past_event(
                where,
                {
                    "decision_id": str(number),
                    "item_id": str(action),
                    "context": said,
                    "features": None if items is None else {"features": items[action].tolist()},
                    "reward": float(arrays["reward"][number]),
                    "propensity": float(arrays["pscore"][number]),
                    "n": n,
                },
            ),
        )


def _arrays(path: Path) -> dict[str, NDArray[Any]]:
    try:
        with zipfile.ZipFile(path) as packed:
            size = sum(one.file_size for one in packed.infolist())
        if size > LARGEST_ARRAYS:
            raise wrong(
                path.name, "", f"its arrays take {size / 2**30:.1f} GiB, and {LARGEST_ARRAYS >> 30} are allowed"
            )
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: np.asarray(file[name]) for name in AXES if name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, MemoryError) as error:
        raise wrong(path.name, "", f"cannot be read: {error}") from error
    for name in NEEDED:
        if name not in arrays:
            raise wrong(path.name, name, "there is no such array")
    rounds = len(np.atleast_1d(arrays["action"]))
    for name, array in arrays.items():
        if array.ndim != AXES[name] or (name != "action_context" and len(array) != rounds):
            raise wrong(path.name, name, f"has the shape {array.shape}; there are {rounds} rounds")
        if name != "action" and array.dtype.kind not in "biuf":
            raise wrong(path.name, name, f"holds {array.dtype}, and numbers are needed")
        if name in ("context", "action_context") and not np.isfinite(array).all():
            raise wrong(f"{path.name} row {int(np.argwhere(~np.isfinite(array))[0, 0])}", name, "is not finite")
    return arrays


def read_table(path: Path) -> Iterator[tuple[str, PastEvent]]:
    """Read the rounds of a `.csv` file with a head: (line for people, event). A column `round` holds their ids.

    Raises:
        InvalidRequest: names line and field.
    """
    csv.field_size_limit(LONGEST_FIELD)
    with path.open(encoding="utf-8-sig", newline="") as file:
        lines = csv.DictReader(file, strict=True, restkey="(more)", restval=None)
        try:
            names = [NAMES.get(name, name) for name in lines.fieldnames or ()]
            for name in NEEDED:
                if names.count(name) != 1:
                    raise wrong("line 1", name, "is not one column of the head")
            for number, row in enumerate(lines):
                where = f"line {lines.line_num}"
                yield where, past_event(where, _fields(where, number, row))
        except (csv.Error, UnicodeDecodeError) as error:
            raise wrong(f"after line {lines.line_num}", "", f"cannot be read: {error}") from error


def _fields(where: str, number: int, row: dict[str, Any]) -> dict[str, Any]:
    if "(more)" in row or None in row.values():
        raise wrong(where, "", f"has {'more' if '(more)' in row else 'fewer'} fields than the head")
    said = {NAMES.get(name, name): value for name, value in row.items()}
    at = said.pop("at", None)
    return {
        "decision_id": said.pop("round", str(number)),
        "item_id": said.pop("action"),
        "reward": _number(where, "reward", said.pop("reward")),
        "propensity": _number(where, "pscore", said.pop("pscore")),
        "at": seconds(where, "timestamp", at),
        "context": {name: _value(value) for name, value in said.items()},
    }


def _number(where: str, name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise wrong(where, name, f"{text!r:.60} is no number") from error


def _value(text: str) -> str | float:
    """Return a number where the text is written as one. `007` and `nan` are texts."""
    return float(text) if NUMBER.fullmatch(text) and abs(float(text)) < np.inf else text
