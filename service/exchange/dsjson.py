"""A loop's log as DSJSON, the lines of JSON that Vowpal Wabbit and Azure Personalizer log and learn from.

    vw --cb_explore_adf --dsjson -d shop.dsjson -q ::

Each event is a line: the candidates with their features, the one that was chosen, its propensity, and the negative
reward as a cost. Vowpal Wabbit passes over a line with a value that it cannot read, such as a list of texts, and takes
names that begin with `_` for its own. So it gets what it can use (`readable`), and the field `rebound`, which it does
not look at, holds the event as it was.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from service.exchange.rows import moment, past_event, seconds, wrong
from service.records import Event, Features, PastEvent

LONGEST_LINE = 64 << 20  # bytes
LARGEST = 1e30  # of a number: Vowpal Wabbit's are float32


def write_line(event: Event, candidates: Sequence[tuple[str, Features]] | None = None, *, origin: str = "") -> bytes:
    """Write an event with a propensity as a line.

    Args:
        origin: id of its loop.
        candidates: that the item was drawn from, each with its features; None: only the item is known.
    """
    assert event.propensity is not None, "an event without a propensity cannot be learned from"
    shown = [(event.item, event.features or {})] if candidates is None else candidates
    chosen = [item for item, _ in shown].index(event.item)
    line = {
        "_label_cost": 0.0 - event.reward,
        "_label_probability": min(event.propensity, 1.0),
        "_label_Action": chosen + 1,
        "_labelIndex": chosen,
        "Version": "1",
        "EventId": event.decision_id,
        "Timestamp": moment(event.time),
        "a": [chosen + 1],
        "p": [min(event.propensity, 1.0)],
        "c": {
            "user": {} if event.user is None else {"id": event.user},
            "context": _text(readable(event.context)),
            "_multi": [
                {"_tag": item, "item": {"id": item}, "features": _text(readable(found))} for item, found in shown
            ],
        },
        "VWState": {"m": f"{event.policy}/{event.version}"},
        "rebound": {
            "item_id": event.item,
            "user_id": event.user,
            "context": _text(event.context),
            "features": _text(event.features),
            "reward": event.reward,
            "propensity": event.propensity,
            "n": event.n,
            "policy": event.policy,
            "version": event.version,
            "origin": origin,
        },
    }
    return orjson.dumps(line) + b"\n"


def _text(value: Any) -> orjson.Fragment:
    """Write a part by itself: as deep as it may be nested, the line may not be deeper."""
    return orjson.Fragment(orjson.dumps(value))


def readable(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return of an object what Vowpal Wabbit can use: texts, booleans, numbers, lists of numbers, and objects of these.

    Texts of a list become features of their own. Null, numbers beyond float32 and mixed lists are left out.
    """
    found = {}
    for name, inner in value.items():
        kept = _readable(inner)
        if kept is not None:
            found["." + name if name.startswith("_") else name] = kept
    return found


def _readable(value: Any) -> Any:
    if isinstance(value, (str, bool)):
        return value
    if isinstance(value, (int, float)):
        return value if abs(value) < LARGEST else None
    if isinstance(value, Mapping):
        return readable(value)
    if isinstance(value, (list, tuple)):
        if all(isinstance(one, str) for one in value):
            return readable({one: True for one in value})
        if all(isinstance(one, (int, float)) and not isinstance(one, bool) and abs(one) < LARGEST for one in value):
            return list(value)
    return None


def read_dsjson(path: Path) -> Iterator[tuple[str, PastEvent]]:
    """Read the events of a file, of Rebound or of another logger: (line for people, event).

    Of another logger's line the item is its `_tag`, or its number; the context is all of `c` but the actions.

    Raises:
        InvalidRequest: names line and field.
    """
    with path.open("rb") as file:
        number = 0
        while line := file.readline(LONGEST_LINE):
            number += 1
            if line.strip():
                where = f"line {number}"
                yield where, past_event(where, _fields(where, line))


def _fields(where: str, line: bytes) -> dict[str, Any]:
    try:
        said = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise wrong(where, "", f"is no JSON: {error}") from error
    if not isinstance(said, dict):
        raise wrong(where, "", "is no JSON object")
    at = seconds(where, "Timestamp", said.get("Timestamp"))
    own = said.get("rebound")
    if own is not None:
        if not isinstance(own, dict):
            raise wrong(where, "rebound", "is no JSON object")
        return {**own, "decision_id": said.get("EventId"), "at": at}
    try:
        c, index = said["c"], said["_labelIndex"]
        actions = c["_multi"]
        if not 0 <= index < len(actions):
            raise wrong(where, "_labelIndex", f"there are {len(actions)} actions")
        action, cost = actions[index], said["_label_cost"]
        return {
            "decision_id": said.get("EventId"),
            "item_id": str(action.get("_tag", index)),
            "context": {name: value for name, value in c.items() if name != "_multi"},
            "features": {name: value for name, value in action.items() if name != "_tag"},
            "reward": 0.0 - cost,
            "propensity": said.get("_label_probability"),
            "n": len(actions),
            "at": at,
        }
    except KeyError as error:
        raise wrong(where, str(error.args[0]), "is missing") from error
    except (AttributeError, TypeError) as error:
        raise wrong(where, "", f"is no line of DSJSON: {error}") from error
