"""The use case of `/feedback`: join a reward with its decision."""

from __future__ import annotations

from service.errors import Conflict, InvalidRequest, NotFound, StoreUnavailable
from service.loop import LoopSettings
from service.serve.follower import Follower
from service.serve.ids import loop_of
from service.store.decisions import join_feedback
from service.store.group_commit import GroupCommit
from service.store.keys import Keys


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
        loop: str | None = None,
    ) -> str:
        """Join one report; return `accepted`, `duplicate` or `late`. The return means that it is stored.

        Raises:
            NotFound: there is no such loop or decision.
            InvalidRequest: the reward is out of range, or the item was not recommended.
            Conflict: the decision has had too many reports.
            StoreUnavailable: it is not stored; send it again.
        """
        active = self._follower.loop(loop_of(decision_id, loop))
        check_reward(active.settings, reward, "reward")
        if not self._follower.store_usable():
            raise StoreUnavailable("Redis lost its data; nothing is acknowledged until a person restarts the workers")
        answer = await join_feedback(
            self._commit,
            Keys(active.name, active.id),
            active.settings,
            decision_id=decision_id,
            item=item_id or "",
            reward=reward,
            feedback_id=feedback_id or "",
        )
        if answer == "unknown":
            raise NotFound(f"no decision {decision_id!r} in loop {active.name!r}", code="unknown_decision")
        if answer == "not_in_slate":
            raise InvalidRequest("item_id", f"{item_id!r} was not recommended by this decision")
        if answer == "too_many":
            raise Conflict("this decision has had 1000 reports; no more are taken", code="too_many_feedback")
        return answer


def check_reward(settings: LoopSettings, reward: float, field: str) -> None:
    """Refuse a reward outside the loop's range.

    Raises:
        InvalidRequest: names `field`.
    """
    low, high = settings.reward_range
    if not low <= reward <= high:
        raise InvalidRequest(field, f"{reward:g} lies outside the loop's reward range [{low:g}, {high:g}]")
