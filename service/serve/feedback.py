"""The use case of `/feedback` and of displays: join a report with its decision."""

from __future__ import annotations

import asyncio
import time
from typing import NoReturn

from service.decide.active import ActiveLoop
from service.errors import Conflict, InvalidRequest, NotFound
from service.loop import LoopSettings
from service.serve.follower import Follower
from service.serve.ids import loop_of, may_come
from service.store.decisions import display_decision, join_feedback
from service.store.group_commit import GroupCommit
from service.store.keys import Keys
from service.store.limits import mark_taken, read_owner

CONFLICTS = {  # answers of the scripts -> (code, what happened and what to do)
    "too_many": ("too_many_feedback", "this decision has had 1000 reports; no more are taken"),
    "too_many_early": (
        "too_many_early",
        "10 000 reports wait for their decisions, and no more are kept: send it again when /recommend has answered",
    ),
    "already_learned": (
        "already_learned",
        "the reward is in the log and cannot be corrected any more: a correction must come within the wait time, and "
        "the aggregation `first` takes none, for it learns at once",
    ),
    "already_replaced": (
        "already_replaced",
        "the report that this one replaces was replaced before; replace the newest one",
    ),
    "too_late": ("display_too_late", "the wait time of this decision is over; it teaches nothing"),
}


class FeedbackJoiner:
    """Joins reports with decisions, in whichever loop they were made."""

    def __init__(self, follower: Follower, commit: GroupCommit) -> None:
        self._follower, self._commit = follower, commit

    async def join(
        self,
        decision_id: str,
        reward: float,
        *,
        item_id: str | None = None,
        feedback_id: str | None = None,
        replaces: str | None = None,
        loop: str | None = None,
    ) -> str:
        """Join one report; return `accepted`, `duplicate`, `late` or `early`. The return means that it is stored.

        Args:
            replaces: the `feedback_id` of the report that this one corrects.

        Raises:
            NotFound: there is no such loop, decision or report to replace.
            InvalidRequest: the reward is out of range, the item was not recommended, or a correction has no
                `feedback_id` of its own.
            Conflict: the decision has had too many reports, or what is to be corrected is learned already.
            StoreUnavailable: it is not stored; send it again.
        """
        active = self._active(decision_id, loop)
        check_reward(active.settings, reward, "reward")
        if replaces is not None and feedback_id in (None, replaces):
            raise InvalidRequest(
                "feedback_id", "a correction needs one of its own, or a repeat of it would not be known"
            )
        keys, taken = Keys(active.name, active.id), active.settings.caps.taken
        joining = join_feedback(
            self._commit,
            keys,
            active.settings,
            decision_id=decision_id,
            item=item_id or "",
            reward=reward,
            feedback_id=feedback_id or "",
            replaces=replaces or "",
            early_ms=_early_ms(active, decision_id),
        )
        if taken is None or taken.reward_above is None or reward <= taken.reward_above:
            answer = await joining
        else:
            answer, owner = await asyncio.gather(joining, read_owner(self._commit, keys, decision_id))
            item = item_id or (owner[1] if owner and replaces is None else None)
            if owner and item and answer in ("accepted", "duplicate", "late"):  # a duplicate: it may have failed then
                await mark_taken(self._commit, keys, owner[0], item, active.settings.caps)
        if answer in ("accepted", "duplicate", "late", "early"):
            return answer
        if answer == "not_in_slate":
            raise InvalidRequest("item_id", f"{item_id!r} was not recommended by this decision")
        if answer == "other_item":
            raise InvalidRequest("item_id", f"the report {replaces!r} is about another item than {item_id!r}")
        if answer == "unknown_feedback":
            raise NotFound(f"there is no report {replaces!r} on this decision; send that first", code=answer)
        _refuse(answer, decision_id, active)

    async def display(self, decision_id: str, *, loop: str | None = None) -> str:
        """Begin the wait for feedback on a deferred decision; return `displayed` or `early`. A repeat changes nothing.

        Raises:
            NotFound: there is no such loop or decision.
            Conflict: it comes too late.
            StoreUnavailable: it is not stored; send it again.
        """
        active = self._active(decision_id, loop)
        keys = Keys(active.name, active.id)
        answer = await display_decision(self._commit, keys, decision_id, early_ms=_early_ms(active, decision_id))
        if answer in ("displayed", "early"):
            return answer
        _refuse(answer, decision_id, active)

    def _active(self, decision_id: str, loop: str | None) -> ActiveLoop:
        """Return the loop of a decision.

        Raises:
            NotFound: there is no such loop.
            StoreUnavailable: its data are gone.
        """
        active = self._follower.loop(loop_of(decision_id, loop))
        self._follower.check_store()
        return active


def _early_ms(active: ActiveLoop, decision_id: str) -> int:
    """Return how long a report is kept if its decision is not there yet, 0 where it cannot come any more."""
    of_loop = active.settings
    within_s = of_loop.wait_time + of_loop.ledger_time + of_loop.early_time
    return of_loop.early_ms if may_come(decision_id, active.name, at=time.time(), within_s=within_s) else 0


def _refuse(answer: str, decision_id: str, active: ActiveLoop) -> NoReturn:
    if answer == "unknown":
        raise NotFound(f"no decision {decision_id!r} in loop {active.name!r}", code="unknown_decision")
    code, detail = CONFLICTS[answer]
    raise Conflict(detail, code=code)


def check_reward(settings: LoopSettings, reward: float, field: str) -> None:
    """Refuse a reward outside the loop's range.

    Raises:
        InvalidRequest: names `field`.
    """
    low, high = settings.reward_range
    if not low <= reward <= high:
        raise InvalidRequest(field, f"{reward:g} lies outside the loop's reward range [{low:g}, {high:g}]")
