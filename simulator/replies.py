"""Replies of the service, as far as the simulator uses them.

Unknown fields are ignored, and `null` means "not given". A field that the simulator cannot do without raises a
KeyError, IndexError, TypeError or ValueError where it is missing; the client turns each into `Failing`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self


@dataclass(frozen=True, slots=True)
class Recommendation:
    """One decision, with its first item."""

    decision_id: str
    item_id: str
    policy: str | None
    version: int
    degraded: bool  # decided from the worker's memory, because the store was unavailable

    @classmethod
    def parse(cls, reply: Mapping[str, Any]) -> Self:
        return cls(
            decision_id=_text(reply, "decision_id"),
            item_id=_text(reply["items"][0], "id"),
            policy=reply.get("policy"),
            version=int(reply.get("version") or 0),
            degraded=bool(reply.get("degraded")),
        )

    def report(self, reward: float) -> dict[str, Any]:
        """Make the feedback on this decision."""
        return {"decision_id": self.decision_id, "item_id": self.item_id, "reward": reward}


@dataclass(frozen=True, slots=True)
class Alarm:
    """A change of the world that a policy noticed."""

    events: int  # learned by then
    reaction: str | None

    @classmethod
    def parse(cls, record: Mapping[str, Any]) -> Self:
        return cls(int(record["events"]), record.get("reaction"))


@dataclass(frozen=True, slots=True)
class PolicyState:
    """One policy of a loop."""

    name: str
    share: float  # of the traffic, in [0, 1]
    version: int  # 0: none is published yet
    alarms: tuple[Alarm, ...]  # oldest first

    @classmethod
    def parse(cls, record: Mapping[str, Any]) -> Self:
        return cls(
            name=_text(record, "name"),
            share=float(record.get("share") or 0),
            version=int(record.get("version") or 0),
            alarms=tuple(Alarm.parse(alarm) for alarm in record.get("alarms") or ()),
        )


def _text(record: Mapping[str, Any], name: str) -> str:
    """Take a field that must be a string.

    Raises:
        ValueError: it is of another type.
    """
    found = record[name]
    if not isinstance(found, str):
        raise ValueError(f"{name} is {found!r}")
    return found
