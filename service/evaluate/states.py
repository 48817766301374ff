"""The point-in-time join, checked: the state of a user in a decision, folded again from the log of activity.

A decision says where that log ended when the user's state was read. All of the user's up to there was seen, and nothing
after it: whatever came late, twice or out of order, the order of acceptance decides.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from service.records import Event, LoggedActivity, order
from service.represent.user_state import USER, Activity, ItemFields, user_state

CLOCKS_MS = 60_000  # by which the clocks of a worker and of Redis may differ


@dataclass(frozen=True, slots=True)
class ServedState:
    """The state of a user that a decision was made with."""

    decision_id: str
    user: str
    seen: str  # position of the newest entry of the log of activity when it was read
    catalogue: int  # version
    at: int  # of the decision, in unix milliseconds
    state: Mapping[str, Any]  # {}: none

    @classmethod
    def of(cls, event: Event) -> ServedState | None:
        """Return what an event says of it; None where no state was read."""
        if event.user is None or event.seen is None or event.decided is None:
            return None
        seen, catalogue = event.seen
        at, state = round(1000 * event.decided), event.context.get(USER, {})
        return cls(event.decision_id, event.user, seen, catalogue, at, state)


def same_state(served: ServedState, logged: Sequence[LoggedActivity], items: ItemFields, *, whole: bool) -> bool | None:
    """Return whether the log gives the state that was served, bit for bit.

    Args:
        logged: the user's activity that the log holds, in its order.
        items: of the catalogue of then.
        whole: the log still holds all that was ever accepted.

    Returns:
        None where some of the activity is no longer there.
    """
    before = logged[: bisect_right(logged, order(served.seen), key=lambda one: order(one.position))]
    if not served.state:
        return not before or _forgotten(before[-1], at=served.at)
    count, kept = served.state.get("count"), served.state.get("kept")
    if not isinstance(count, int) or not isinstance(kept, int) or kept < 1:
        return False
    done = before[-kept:]
    if not done:
        return False if whole else None
    if done[-1].number != count:  # something that was accepted later was seen, or something earlier was not
        return False
    if [one.number for one in done] != list(range(count - kept + 1, count + 1)):
        return False if whole else None
    again = user_state([Activity(one.number, one.at, one.item, one.type) for one in done], items, at=served.at)
    return again == served.state


def _forgotten(last: LoggedActivity, *, at: int) -> bool:
    """Return whether a user had been away for so long that nothing was kept of him."""
    ms, _ = order(last.position)
    return at >= ms + last.kept_ms - CLOCKS_MS
