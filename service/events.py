"""The event: a decision's item joined with its final reward, and how it is written to the log.

An entry of the log has five fields: `e` (JSON: who, what, under which policy), `x` (the item's vector as it was served,
float32 little-endian), `o` (its place in the order in which items were shown), `r` (the reward in decimal) and `s`
(where the reward came from). All but the last two are made when the decision is, and lie beside it until its feedback
comes: the join copies them and adds `r` and `s`. Imported events have no `o`: the log's order is theirs.

A control entry has one field, `c`. Either it asks a policy to do something at this very place in the log, so that a
replay does it at the same place; or it says that a policy noticed a change of the world, for whoever reads the log
later: what the policy did about it, a replay does again by itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray


class UndecodableEvent(ValueError):
    """An entry of the log that is no event: it goes to the dead letters and stops nothing."""


@dataclass(frozen=True, slots=True)
class Event:
    """One entry of the log, as the learner reads it."""

    position: str  # id of the log entry
    decision_id: str
    item: str
    user: str | None
    context: Mapping[str, Any]
    x: NDArray[np.float32]  # (d,)
    n: int | None  # candidates that were eligible; None for imported events
    propensity: float | None  # in (0, 1]; None where an imported event did not say
    policy: str | None
    version: int
    reward: float
    source: str  # feedback | default | import
    place: int | None  # among all items shown in the loop, from 0 on; None for imported events


@dataclass(frozen=True, slots=True)
class Control:
    """An entry that is no event.

    `train` is the name of the policy that is to train on all that stands before; `alarm` says which policy noticed a
    change, when (unix seconds), after how many events, at which position of the log, and how it reacted.
    """

    position: str
    train: str | None = None
    alarm: Mapping[str, Any] | None = None


def body(
    *,
    decision_id: str,
    item: str,
    user: str | None,
    context: Mapping[str, Any],
    n: int | None,
    propensity: float | None,
    policy: str | None,
    version: int,
) -> bytes:
    """Field `e` of an event."""
    return orjson.dumps(
        {
            "decision_id": decision_id,
            "item": item,
            "user": user,
            "context": context,
            "n": n,
            "propensity": propensity,
            "policy": policy,
            "version": version,
        }
    )


def decode(position: str, fields: Mapping[bytes, bytes], d: int) -> Event | Control:
    """The event (or control) in one log entry.

    Raises:
        UndecodableEvent: a field is missing or garbled, or the vector has not d finite features.
    """
    try:
        if b"c" in fields:
            return _control(position, orjson.loads(fields[b"c"]))
        e = orjson.loads(fields[b"e"])
        x = np.frombuffer(fields[b"x"], dtype="<f4")
        reward = float(fields[b"r"])
        place = int(fields[b"o"]) if fields.get(b"o") else None
        event = Event(position=position, x=x, reward=reward, source=fields[b"s"].decode(), place=place, **e)
    except (KeyError, TypeError, ValueError) as error:
        raise UndecodableEvent(f"{type(error).__name__}: {error}") from error
    if x.shape != (d,):
        raise UndecodableEvent(f"vector of shape {x.shape}, expected ({d},)")
    if not np.isfinite(x).all() or not np.isfinite(reward):
        raise UndecodableEvent("a feature or the reward is not finite")
    return event


def _control(position: str, said: Mapping[str, Any]) -> Control:
    return Control(position, alarm=said["alarm"]) if "alarm" in said else Control(position, train=str(said["train"]))
