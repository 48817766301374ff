"""The use case of `/edges`, and what a decision reads of a user's neighbourhood."""

from __future__ import annotations

from collections.abc import Sequence

from redis.asyncio import Redis

from service.decide.active import ActiveLoop
from service.errors import NotFound
from service.serve.follower import Follower
from service.store.edges import SentEdge, drop_edges, take_edges
from service.store.group_commit import GroupCommit
from service.store.keys import Keys
from service.store.loop_store import begin


class EdgeKeeper:
    """Keeps whom users know. The learner does the rest: reverse entries, and the fields of neighbourhoods."""

    def __init__(self, follower: Follower, redis: Redis, commit: GroupCommit) -> None:
        self._follower, self._redis, self._commit = follower, redis, commit

    async def take(self, loop: str, sent: Sequence[SentEdge]) -> list[str]:
        """Take edges; return for each `accepted`, `duplicate` or `full`. The return means that they are stored.

        Raises:
            NotFound: there is no such loop.
            StoreUnavailable: they may or may not be stored. Send them again.
        """
        active = self._usable(loop)
        keys = Keys(active.name, active.id)
        if sent and not active.edges:
            await begin(self._redis, keys, "edges")
            await self._follower.refresh(loop)
        by_user: dict[str, list[SentEdge]] = {}
        for one in sent:
            by_user.setdefault(one.user, []).append(one)
        answers = await take_edges(self._commit, keys, active.settings, by_user)
        turns = {user: iter(of_his) for user, of_his in answers.items()}
        return [next(turns[one.user]) for one in sent]

    async def drop(self, loop: str, user: str, to: str, kind: str) -> None:
        """Delete an edge. The return means that it is gone.

        Raises:
            NotFound: there is no such loop, or no such edge.
            StoreUnavailable: it may or may not be gone. Delete it again.
        """
        active = self._usable(loop)
        if not await drop_edges(self._commit, Keys(active.name, active.id), user, [(to, kind)]):
            raise NotFound(f"there is no edge of kind {kind!r} from {user!r} to {to!r}", code="unknown_edge")

    def _usable(self, loop: str) -> ActiveLoop:
        active = self._follower.loop(loop)
        self._follower.check_store()
        return active
