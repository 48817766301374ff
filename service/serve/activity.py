"""The use case of `/activity`, and what is known of a user when a decision is made."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from redis.asyncio import Redis

from service.decide.active import ActiveLoop
from service.errors import InvalidRequest
from service.records import Features, Seen
from service.represent.graph import GRAPH
from service.represent.user_state import USER, Activity, last_items, user_state
from service.serve.follower import Follower
from service.store.activity import Sent, take_activity, take_rewarded
from service.store.graph_store import read_user
from service.store.group_commit import GroupCommit
from service.store.keys import Keys
from service.store.loop_store import begin


class ActivityKeeper:
    """Keeps what users do, and reads it before a decision, in the round trips of the group commit."""

    def __init__(self, follower: Follower, redis: Redis, commit: GroupCommit) -> None:
        self._follower, self._redis, self._commit = follower, redis, commit

    async def take(self, loop: str, sent: Sequence[Sent]) -> list[str]:
        """Take activity; return for each `accepted` or `duplicate`. The return means that it is stored.

        The loop's workers read states from its first activity on: this one from now on, others when they hear of it.

        Raises:
            NotFound: there is no such loop.
            StoreUnavailable: it may or may not be stored. What has ids may be sent again.
        """
        active = self._follower.loop(loop)
        self._follower.check_store()
        keys = Keys(active.name, active.id)
        if sent and not active.activity:
            await begin(self._redis, keys, "activity")
            await self._follower.refresh(loop)
        by_user: dict[str, list[Sent]] = {}
        for one in sent:
            by_user.setdefault(one.user, []).append(one)
        answers = await take_activity(self._commit, keys, active.settings, by_user, edges=active.edges)
        turns = {user: iter(of_his) for user, of_his in answers.items()}
        return [next(turns[one.user]) for one in sent]

    async def with_state(
        self, context: Features, user: str, active: ActiveLoop, *, at: int, takes_up: bool = True
    ) -> tuple[Features, Seen]:
        """Add the user's state and the fields of his neighbourhood to a context.

        Args:
            takes_up: rewarded items that wait become activity first; False: nothing is written.

        Returns:
            The context, the same one where he has none, and what was read of his activity.

        Raises:
            StoreUnavailable: Redis does not answer.
        """
        keys = Keys(active.name, active.id)
        reading = read_user(self._commit, keys, user)
        if takes_up and active.settings.reward_activity:  # both in one round trip, in this order
            taking = take_rewarded(self._commit, keys, active.settings, user)
            _, (kept, end, fields) = await asyncio.gather(taking, reading)
        else:
            kept, end, fields = await reading
        done = [Activity(*one) for one in kept]
        state = user_state(done, active.catalogue.fields, at=at)
        asked_for = active.retriever is not None and active.retriever.funnel.follows_activity
        seen = Seen(end, last_items(done) if asked_for else ())
        known = {USER: state} if state else {}
        if fields:
            known[GRAPH] = fields
        return {**context, **known} if known else context, seen


def check_names(context: Features) -> None:
    """Refuse a context that uses a name of what the service knows.

    Raises:
        InvalidRequest: names the field.
    """
    for name in context:
        if name[:1] == "@" and (taken := name.partition(".")[0]) in (USER, GRAPH):
            raise InvalidRequest(f"context.{name}", f"the name {taken} is for what the service knows of the user")
